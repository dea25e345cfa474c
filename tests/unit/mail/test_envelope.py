"""The envelope as JSON."""

from __future__ import annotations

from sendswitch.mail.envelope import Client, Envelope, from_json

# envelopes and verdicts


def test_an_envelope_comes_back_from_json() -> None:
    envelope = Envelope("a@b", (), Client("1.2.3.4", "n", "25", "h", "ESMTP", "LOCAL"), "8BITMIME", True, "FULL", "id")
    assert from_json("a@b", (), envelope.to_json()) == envelope
    assert from_json("", (), {}) == Envelope("", ())


def test_an_envelope_is_read_as_it_was_written() -> None:
    client = Client("192.0.2.1", helo="h")
    for envelope in (Envelope("a@b", ()), Envelope("a@b", (), client, "8BITMIME", True, "FULL", "x")):
        assert from_json("a@b", (), envelope.to_json()) == envelope
