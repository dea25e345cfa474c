"""Allow and deny lists: what an entry matches, which list counts, and that many cost what one costs."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendswitch.mail.content import InMemory
from sendswitch.mail.envelope import Client
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Action
from sendswitch.processors.base import Services
from sendswitch.processors.list_entries import Book, Entries, Entry, KeptLists, checked
from sendswitch.processors.lists import Lists, ListsOptions
from sendswitch.testing import context, mail
from tests.timing import took
from tests.verdicts import verdict_of

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("entry", "matches", "misses"),
    [
        ("joe@a.example", ["joe@a.example"], ["xjoe@a.example", "joe@b.example"]),
        (" Joe@A.Example ", ["joe@a.example"], ["xjoe@a.example"]),
        ("A.Example", ["x@a.example"], ["x@sub.a.example", "x@ba.example", "a.example@b"]),
        ("@a.example", ["x@a.example"], ["x@sub.a.example"]),
        (".a.example", ["x@sub.a.example", "x@s.s.a.example"], ["x@a.example", "x@sub-a.example"]),
        ("*@*.a.example", ["x@sub.a.example"], ["x@a.example", "x@sub.a.example.evil"]),
        ("news-??@a.example", ["news-01@a.example"], ["news-1@a.example"]),
        ("news[0-9]@a.example", ["news5@a.example"], ["newsx@a.example", "news[0-9]@a.example"]),
        ("news[!0-9]@a.example", ["newsx@a.example"], ["news5@a.example"]),
        ("news[@a.example", ["news[@a.example"], ["newsx@a.example"]),
        ("*.a.example", ["x@y.a.example", "x@z.y.a.example"], ["x@a.example", "x@ya.example", "x@y.a.example.b"]),
        ("*@A.example", ["x@a.example"], ["x@y.a.example", ""]),
        ("*@*.*.example", ["x@y.a.example"], ["x@a.example"]),
        ("<>", [""], ["x@a.example"]),
        ("/^news-\\d+@/", ["news-12@a.example"], ["news-x@a.example", "my-news-12@a.example"]),
        ("/SHOP/", ["x@workshop.example"], ["x@a.example"]),
    ],
)
def test_senders(entry: str, matches: list[str], misses: list[str]) -> None:
    entries = Entries([Entry(checked(entry))])
    assert all(entries.sender(address, NOW) for address in matches)
    assert not any(entries.sender(address, NOW) for address in misses)


@pytest.mark.parametrize(
    ("entry", "matches", "misses"),
    [
        ("192.0.2.7", ["192.0.2.7"], ["192.0.2.8", "::ffff:192.0.2.7", "", "unknown"]),
        ("ip:192.0.2.0/24", ["192.0.2.7", "192.0.2.255"], ["192.0.3.7"]),
        ("192.0.2.9/24", ["192.0.2.7"], ["192.0.3.7"]),
        ("2001:db8::/32", ["2001:db8:1::1"], ["2001:db9::1", "192.0.2.7"]),
        ("::1", ["::1"], ["127.0.0.1"]),
        ("0.0.0.0/0", ["8.8.8.8"], ["2001:db8::1"]),
    ],
)
def test_clients(entry: str, matches: list[str], misses: list[str]) -> None:
    entries = Entries([Entry(checked(entry))])
    assert all(entries.client(address, NOW) for address in matches)
    assert not any(entries.client(address, NOW) for address in misses)


def test_more_patterns_than_one_set_takes() -> None:
    entries = Entries([Entry(f"*news{n}@*.example") for n in range(2500)])
    found = [entries.sender(f"x-news{n}@a.example", NOW) for n in (0, 999, 1000, 2499)]
    assert [entry.text if entry else "" for entry in found] == [f"*news{n}@*.example" for n in (0, 999, 1000, 2499)]
    assert entries.sender("x-news2500x@a.example", NOW) is None


@pytest.mark.parametrize(
    ("texts", "sender", "client"),
    [
        (("@a.example", "a.example"), "x@a.example", ""),
        (("Joe@a.example", "joe@A.example"), "joe@a.example", ""),
        (("192.0.2.0/24", "192.0.2.9/24"), "", "192.0.2.7"),
    ],
)
def test_of_two_that_mean_the_same_the_one_that_holds_longer_counts(texts: Any, sender: str, client: str) -> None:
    for first, second in (
        ((texts[0], None), (texts[1], NOW)),
        ((texts[0], NOW), (texts[1], None)),
        ((texts[0], NOW), (texts[1], NOW + 9)),
    ):
        entries = Entries([Entry(*first), Entry(*second)])
        assert (entries.client(client, NOW + 1) if client else entries.sender(sender, NOW + 1)) is not None


def test_patterns_that_are_too_much_for_one_set() -> None:
    entries = Entries([Entry(checked(f"/^[^@]{{1,64}}@spam{n}\\.example$/")) for n in range(1000)])
    assert all(entries.sender(f"x@spam{n}.example", NOW) for n in (0, 500, 999))
    assert len(entries.alike.sets) > 1  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="RE2"):
        Entries([Entry("/(((a{1,100}){1,100}){1,100})/")])


def test_the_smallest_network_is_found_first() -> None:
    entries = Entries([Entry("192.0.0.0/8"), Entry("192.0.2.0/24"), Entry("192.0.2.7", expires=NOW)])
    found = [entries.client("192.0.2.7", now) for now in (NOW - 1, NOW)]
    assert [entry.text if entry else "" for entry in found] == ["192.0.2.7", "192.0.2.0/24"]


@pytest.mark.parametrize(
    ("entry", "holds"),
    [
        ("header:List-Id", True),
        ("header:List-Unsubscribe", False),
        ("header:list-id=shop", True),
        ("header:List-Id=*.shop.example>", True),
        ("header:List-Id=*.other.example>", False),
        ("header:Subject=grüße", True),
    ],
)
def test_fields(entry: str, holds: bool) -> None:
    one = mail(List_Id="Offers <offers.shop.example>", Subject="=?utf-8?q?viele_Gr=C3=BC=C3=9Fe?=")
    found = Entries([Entry(checked(entry))]).field(one, NOW)
    assert (found is not None) is holds


def test_an_entry_holds_until_its_time_is_over() -> None:
    for text in ("joe@a.example", "a.example", ".example", "*@a.example", "/joe/"):
        entries = Entries([Entry(text, expires=NOW)])
        assert entries.sender("joe@a.example", NOW - 1)
        assert entries.sender("joe@a.example", NOW) is None
    assert Entries([Entry("header:From", expires=NOW)]).field(mail(), NOW) is None


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("", "has 1 to 320 characters"),
        ("x" * 400, "has 1 to 320 characters"),
        ("two words", "is no address, domain, glob"),
        ("http://shop.example/", "is no address, domain, glob"),
        ("joe@", "is no address, domain, glob"),
        ("/(/", "is no regular expression that RE2 takes: missing"),
        ("/(?=x)/", "is no regular expression that RE2 takes: invalid"),
        ("header:Bad Name=x", "is no name of a header field"),
        ("header:", "is no name of a header field"),
        ("news[z-a]@x", "is no regular expression that RE2 takes"),
    ],
)
def test_what_is_no_entry(entry: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        checked(entry)


@given(st.text(max_size=40), st.text(max_size=40))
def test_what_was_checked_compiles_and_never_raises(text: str, address: str) -> None:
    try:
        entry = checked(text)
    except ValueError:
        return
    entries = Entries([Entry(entry)])
    entries.sender(address, NOW)
    entries.client(address, NOW)
    entries.field(Mail(InMemory(f"Subject: {address}".encode("utf-8", "replace"))), NOW)


def test_no_expression_is_slow() -> None:
    """One that takes a backtracking engine longer than the universe lasts."""
    entries = Entries([Entry(checked("/^(a+)+$/"))])
    began = time.process_time()
    assert entries.sender("a" * 5000 + "!", NOW) is None
    assert took(began) < 3


# Which list counts


@pytest.mark.parametrize(
    ("sender", "author", "action"),
    [
        ("x@good.example", "y@neutral.example", Action.PASS),
        ("x@neutral.example", "Someone <y@good.example>", Action.PASS),
        ("x@bad.example", "y@neutral.example", Action.DENY),
        ("x@neutral.example", '"Nice <y@good.example>" <z@bad.example>', Action.DENY),
        ("x@neutral.example", "y@good.example, z@bad.example", Action.DENY),
        ("x@neutral.example", "y@neutral.example", None),
        ("x@good.example", "z@bad.example", Action.PASS),
        ("", "", None),
    ],
)
async def test_lists(sender: str, author: str, action: Action | None) -> None:
    lists = Lists(ListsOptions(allow=("good.example",), deny=("bad.example",)))
    verdict = await lists.process(mail(From=author), context(sender))
    assert (verdict.action if verdict else None) is action
    if verdict:
        assert "list" in verdict.reason


async def test_two_from_headers_do_not_slip_round_a_deny_list() -> None:
    lists = Lists(ListsOptions(allow=("good.example",), deny=("bad.example",)))
    two = Mail(InMemory(b"From: a@good.example\r\nFrom: b@bad.example\r\n\r\nx\r\n"))
    verdict = verdict_of(await lists.process(two, context("x@neutral.example")))
    assert verdict.action is Action.DENY


def kept(*rows: tuple[str, str, str], delimiters: str = "+") -> Services:
    return Services(
        lists=KeptLists(lambda: Book([(scope, kind, Entry(text)) for scope, kind, text in rows], delimiters))
    )


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([("", "deny", "a.example")], "deny list of the site (a.example)"),
        ([("", "deny", "a.example"), ("x.example", "allow", "a.example")], "allow list of x.example (a.example)"),
        (
            [("joe@x.example", "deny", "*@a.*"), ("x.example", "allow", "a.example")],
            "deny list of joe@x.example (*@a.*)",
        ),
        ([("", "deny", "a.example"), ("", "allow", "s@a.example")], "allow list of the site (s@a.example)"),
        ([("ann@x.example", "deny", "a.example"), ("y.example", "deny", "a.example")], None),
        ([], None),
    ],
)
@pytest.mark.parametrize("to", ["joe@x.example", "Joe+news@X.example"])
async def test_the_more_particular_list_counts(rows: Any, told: str | None, to: str) -> None:
    lists = Lists(ListsOptions())
    lists.setup(kept(*rows))
    verdict = await lists.process(mail(), context("s@a.example", to))
    assert (verdict and verdict.reason) == (told and f"envelope sender <s@a.example> is on the {told}")


async def test_the_steps_own_lists_come_first_and_it_may_ask_no_other() -> None:
    site = kept(("joe@x.example", "deny", "a.example"))
    asked = context("s@a.example", "joe@x.example")
    own = Lists(ListsOptions(allow=("a.example",)))
    alone = Lists(ListsOptions(allow=("b.example",), kept=False))
    for lists in (own, alone):
        lists.setup(site)
    assert (
        verdict_of(await own.process(mail(), asked))
    ).reason == "envelope sender <s@a.example> is on the allow list (a.example)"
    assert await alone.process(mail(), asked) is None


async def test_clients_and_fields_and_reasons_are_told() -> None:
    asked = replace(context(), client=Client(address="192.0.2.7"))
    lists = Lists(ListsOptions(deny=("192.0.2.0/24",)))
    assert (
        verdict_of(await lists.process(mail(), asked))
    ).reason == "client 192.0.2.7 is on the deny list (192.0.2.0/24)"
    lists = Lists(ListsOptions(deny=("header:Precedence=bulk",)))
    told = verdict_of(await lists.process(mail(Precedence="bulk"), context())).reason
    assert told == "the field precedence is on the deny list (header:Precedence=bulk)"
    book = Book([("", "deny", Entry("192.0.2.7", reason="scans us"))])
    lists = Lists(ListsOptions())
    lists.setup(Services(lists=KeptLists(lambda: book)))
    assert verdict_of(await lists.process(mail(), asked)).reason.endswith(
        "on the deny list of the site (192.0.2.7): scans us"
    )


def test_lists_are_read_when_asked_for_and_again_when_told() -> None:
    books = [Book([("", "deny", Entry("a.example"))]), Book()]
    shelf = KeptLists(lambda: books.pop(0))
    assert shelf.book.of("x@y")
    assert shelf.book.of("x@y")
    shelf.refresh()
    assert not shelf.book.of("x@y")


def test_a_hundred_thousand_entries_are_looked_up_like_ten() -> None:
    def seconds(number: int) -> float:
        texts = [f"user{n}@host{n}.example" for n in range(number // 2)] + [f"d{n}.example" for n in range(number // 4)]
        texts += [f".p{n}.example" for n in range(number // 8)]
        texts += [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(number // 8)]
        entries = Entries(map(Entry, texts))
        best = 1.0
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(200):
                entries.sender("nobody@a.b.c.elsewhere.example", NOW)
                entries.client("192.0.2.7", NOW)
            best = min(best, time.perf_counter() - began)
        return best

    assert seconds(100_000) < 5 * seconds(16)
