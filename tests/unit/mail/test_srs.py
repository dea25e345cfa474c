"""The Sender Rewriting Scheme."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendswitch.intake.after_queue import each_once, returned
from sendswitch.mail.address import MAX_ADDRESS
from sendswitch.mail.envelope import Envelope, Recipient
from sendswitch.mail.srs import VALID, Srs, looks_rewritten

NOW = 1.7e9
DAY = 86_400
SRS = Srs("srs.example.com", b"secret")
OTHER = Srs("forwarder.example", b"another")

local = st.from_regex(r"[A-Za-z0-9+=_.-]{1,40}", fullmatch=True).filter(
    lambda text: text[:4].upper() not in ("SRS0", "SRS1")
)


@given(local, st.from_regex(r"[A-Za-z0-9-]{1,20}\.example", fullmatch=True), st.floats(0, 1e10))
def test_there_and_back(local: str, domain: str, now: float) -> None:
    sender = f"{local}@{domain}"
    rewritten = SRS.rewritten(sender, now)
    assert SRS.ours(rewritten)
    assert SRS.reversed(rewritten, now) == sender
    assert SRS.reversed(rewritten.lower(), now) == sender.lower()


def test_the_form_is_the_papers() -> None:
    rewritten = SRS.rewritten("ann@example.org", NOW)
    assert re.fullmatch(r"SRS0=[A-Z2-7]{8}=[A-Z2-7]{2}=example\.org=ann@srs\.example\.com", rewritten)


def test_two_forwarders_and_three() -> None:
    """The second and every later one finds back to the first, in an address that grows no more."""
    first = OTHER.rewritten("ann@example.org", NOW)
    second = SRS.rewritten(first, NOW)
    assert second.startswith("SRS1=")
    assert second.endswith("@srs.example.com")
    assert SRS.reversed(second, NOW + 100 * DAY) == first  # how old it is, the first one says
    third = Srs("third.example", b"third").rewritten(second, NOW)
    assert Srs("third.example", b"third").reversed(third, NOW) == first
    assert len(third) <= len(second) + len("third.example")


def test_what_only_looks_like_a_forwarders() -> None:
    for sender in ("SRS1=odd@example.org", "srs0=@example.org", "SRS0@example.org"):
        assert SRS.reversed(SRS.rewritten(sender, NOW), NOW) == sender


@pytest.mark.parametrize("now", [NOW - DAY, NOW + VALID * DAY, NOW + (1024 + 3) * DAY])
def test_in_time(now: float) -> None:
    assert SRS.reversed(SRS.rewritten("ann@example.org", NOW), now) == "ann@example.org"


@pytest.mark.parametrize(
    ("address", "now", "why"),
    [
        (SRS.rewritten("ann@example.org", NOW), NOW + (VALID + 1) * DAY, "older than 21 days"),
        (SRS.rewritten("ann@example.org", NOW), NOW - 2 * DAY, "older than 21 days"),
        (SRS.rewritten("ann@example.org", NOW).replace("ann", "eve"), NOW, "was not made here"),
        (re.sub("=.{8}=", "==", SRS.rewritten("ann@example.org", NOW), count=1), NOW, "nobody has a mailbox"),
        # However short a hash is given, all of it counts.
        *[
            (f"SRS0={c}=AA=example.org=ann@srs.example.com", 0.0, "was not made here")
            for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
        ],
        ("SRS0=ÄÄÄÄ=AA=example.org=ann@srs.example.com", NOW, "was not made here"),
        (OTHER.rewritten("ann@example.org", NOW), NOW, "was not made here"),
        (OTHER.rewritten(SRS.rewritten("ann@example.org", NOW), NOW), NOW, "was not made here"),
        ("SRS0=AAAA@srs.example.com", NOW, "nobody has a mailbox"),
        ("SRS1=AAAA=example.org@srs.example.com", NOW, "nobody has a mailbox"),
    ],
)
def test_what_stands_for_nobody(address: str, now: float, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        SRS.reversed(address, now)


@pytest.mark.parametrize(
    "sender",
    ["", "postmaster", '"a b"@example.org', "ann@[192.0.2.7]", "ann@a=b.example", f"{'x' * 250}@{'y' * 50}.example"],
)
def test_senders_that_stay(sender: str) -> None:
    """No other could stand for them, or it would be read as another's."""
    assert len(sender) <= MAX_ADDRESS
    assert SRS.rewritten(sender, NOW) == sender


def test_whose_address_it_is() -> None:
    assert SRS.ours("srs0=x@SRS.example.com")
    assert not SRS.ours("SRS0=x@example.org")
    assert SRS.ours("postmaster@srs.example.com")


@pytest.mark.parametrize(
    ("address", "looks"), [("srs0=x@y", True), ("SRS1+x@y", True), ("SRS0@y", False), ("postmaster@y", False)]
)
def test_what_looks_rewritten(address: str, looks: bool) -> None:
    assert looks_rewritten(address) == looks


def test_a_hash_of_one_kind_is_none_of_the_other() -> None:
    second = SRS.rewritten("SRS0-victim.example=bob@AB", NOW)
    with pytest.raises(ValueError, match="was not made here"):
        SRS.reversed(f"SRS0={second[5:13]}=AB=-victim.example=bob@srs.example.com", NOW)


def test_who_stands_for_the_same_sender_is_one_recipient() -> None:
    """And what each came for is told."""
    first, second = SRS.rewritten("ann@example.org", NOW - 2 * DAY), SRS.rewritten("Ann@example.org", NOW)
    to = ("bob@example.com", first, second, "ANN@example.org", "SRS0=forged@srs.example.com")
    envelope = Envelope("", tuple(Recipient(address, notify="NEVER") for address in to))
    found, told = returned(envelope, SRS, NOW)
    found = each_once(found)
    assert [recipient.address for recipient in found.recipients] == ["bob@example.com", "ann@example.org", to[-1]]
    assert {recipient.notify for recipient in found.recipients} == {"NEVER"}
    assert told == {"returned": {first: "ann@example.org", second: "Ann@example.org"}}
    plain = Envelope("", (Recipient("bob@example.com"), Recipient("BOB@example.com")))
    assert returned(plain, SRS, NOW) == (plain, {})


def test_the_secret_is_not_shown() -> None:
    assert "secret" not in repr(SRS)
