"""The server half: whole dialogs, byte by byte and at once; sequence, parameters, limits, rubbish."""

from __future__ import annotations

import base64
import itertools
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendswitch.mail.envelope import Client, Recipient
from sendswitch.reply import Reply
from sendswitch.smtp.protocol import replies
from sendswitch.smtp.protocol.sasl import Credentials
from sendswitch.smtp.protocol.server import (
    TRANSITIONS,
    TURN,
    Aborted,
    ContentPiece,
    EndOfData,
    Extensions,
    Limits,
    MailCommand,
    ServerConnection,
    ServerState,
    StartTls,
)
from sendswitch.testing import dialog

PEER = Client(address="192.0.2.9", port="4711", protocol="ESMTP")


def server(*, lmtp: bool = False, xforward: bool = True, starttls: bool = False, **limits: int) -> ServerConnection:
    offered = Extensions(xforward=xforward, starttls=starttls)
    return ServerConnection("mx.example.test", limits=Limits(**limits), client=PEER, lmtp=lmtp, extensions=offered)


def codes(said: bytes) -> list[int]:
    return [int(line[:3]) for line in said.decode().splitlines() if line[3:4] == " "]


def ends(events: list[object]) -> list[EndOfData]:
    return [event for event in events if isinstance(event, EndOfData)]


def content(events: list[object]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, ContentPiece))


HELLO = b"EHLO client.example\r\n"
ENVELOPE = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"
MESSAGE = b"DATA\r\nSubject: x\r\n\r\n..dot\r\n.\r\n"


def test_a_message_whole_byte_by_byte_and_with_bytes_following() -> None:
    wire = HELLO + ENVELOPE + MESSAGE + b"QUIT\r\n"
    for pieces in ([wire], [bytes((byte,)) for byte in wire]):
        machine = server()
        machine.greet()
        events, said = dialog(machine, *pieces)
        assert codes(said) == [220, 250, 250, 250, 354, 250, 221]
        (end,) = ends(events)
        assert end.envelope.sender == "a@b.example"
        assert end.envelope.recipients == (Recipient("c@d.example"),)
        assert end.envelope.client == Client("192.0.2.9", "", "4711", "client.example", "ESMTP")
        assert content(events) == b"Subject: x\r\n\r\n.dot\r\n"
        assert machine.closed


def test_ehlo_offers_what_we_can() -> None:
    _, said = dialog(server(starttls=True), HELLO)
    offered = {line[4:].split()[0] for line in said.decode().splitlines()[1:]}
    assert offered == {
        *(
            "PIPELINING",
            "SIZE",
            "ENHANCEDSTATUSCODES",
            "8BITMIME",
            "DSN",
            "SMTPUTF8",
            "CHUNKING",
            "STARTTLS",
            "XFORWARD",
        )
    }
    assert b"XFORWARD" not in dialog(server(xforward=False), HELLO)[1]
    assert dialog(server(), b"HELO x\r\n")[1] == b"250 mx.example.test\r\n"


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (b"MAIL FROM:<a@b>\r\n", 503),
        (HELLO + b"RCPT TO:<a@b>\r\n", 503),
        (HELLO + b"DATA\r\n", 503),
        (HELLO + b"MAIL FROM:<a@b>\r\nDATA\r\n", 503),
        (HELLO + b"MAIL FROM:<a@b>\r\nMAIL FROM:<a@b>\r\n", 503),
        (HELLO + b"MAIL FROM:a@b\r\n", 501),
        (HELLO + b"MAIL TO:<a@b>\r\n", 501),
        (HELLO + b"MAIL FROM:<a@b> NOPE=1\r\n", 555),
        (HELLO + b"MAIL FROM:<a@b> SIZE=x\r\n", 501),
        (HELLO + b"MAIL FROM:<a@b> SIZE=1 SIZE=2\r\n", 501),
        (HELLO + b"MAIL FROM:<a@b> SIZE=99999999999\r\n", 552),
        (HELLO + b"MAIL FROM:<a@b> BODY=BINARYMIME\r\n", 501),
        (HELLO + b"MAIL FROM:<a@b> RET=SOME\r\n", 501),
        (HELLO + "MAIL FROM:<ü@b>\r\n".encode(), 553),
        (HELLO + "MAIL FROM:<ü@b> SMTPUTF8\r\n".encode(), 250),
        (HELLO + b"MAIL FROM:<\xff@b>\r\n", 500),
        (HELLO + b"MAIL FROM:<a@b> AUTH=<>\r\n", 250),
        (HELLO + b"MAIL FROM:<>\r\n", 250),
        (HELLO + b"MAIL FROM:<a@b>\r\nRCPT TO:<>\r\n", 501),
        (HELLO + b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d> NOTIFY=NEVER,SUCCESS\r\n", 501),
        (HELLO + b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d> NOTIFY=success,FAILURE ORCPT=rfc822;c+40d\r\n", 250),
        (HELLO + b"VRFY joe\r\n", 252),
        (HELLO + b"EXPN list\r\n", 502),
        (HELLO + b"HELP\r\n", 214),
        (HELLO + b"NOOP anything\r\n", 250),
        (HELLO + b"STARTTLS\r\n", 502),
        (HELLO + b"WHAT\r\n", 500),
        (HELLO + b"\r\n", 500),
        (HELLO + b"NOOP \x07\r\n", 500),
        (b"EHLO\r\n", 501),
        (b"LHLO x\r\n", 500),
        (HELLO + b"XFORWARD\r\n", 501),
        (HELLO + b"XFORWARD WHO=x\r\n", 501),
        (HELLO + b"XFORWARD ADDR=nonsense!\r\n", 501),
        (HELLO + b"XFORWARD ADDR=:::::::\r\n", 501),
        (HELLO + "XFORWARD PORT=²\r\n".encode(), 501),
        (HELLO + b"MAIL FROM:<a@b>\r\nXFORWARD ADDR=192.0.2.1\r\n", 503),
    ],
)
def test_one_command_one_reply(wire: bytes, code: int) -> None:
    assert codes(dialog(server(), wire)[1])[-1] == code


def test_dsn_parameters_are_kept() -> None:
    wire = (
        b"EHLO x\r\nMAIL FROM:<a@b> RET=hdrs ENVID=QQ+2B1 BODY=8bitmime SMTPUTF8 SIZE=10\r\n"
        b"RCPT TO:<c@d> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;e@f\r\nDATA\r\n.\r\n"
    )
    (end,) = ends(dialog(server(), wire)[0])
    assert (end.envelope.ret, end.envelope.envid, end.envelope.body) == ("HDRS", "QQ+2B1", "8BITMIME")
    assert end.envelope.smtputf8
    assert end.envelope.recipients[0] == Recipient("c@d", "SUCCESS,DELAY", "rfc822;e@f")


def test_xforward_replaces_the_connections_facts_for_one_message() -> None:
    forward = (
        b"XFORWARD NAME=mail.example ADDR=IPV6:2001:db8::1 PORT=25\r\nXFORWARD HELO=a+2Bb PROTO=ESMTP SOURCE=remote\r\n"
    )
    events, said = dialog(server(), HELLO + forward + ENVELOPE + MESSAGE + ENVELOPE + MESSAGE)
    first, second = ends(events)
    assert first.envelope.client == Client("2001:db8::1", "mail.example", "25", "a+b", "ESMTP", "REMOTE")
    assert second.envelope.client == Client("192.0.2.9", "", "4711", "client.example", "ESMTP")
    assert set(codes(said)) == {250, 354}


def test_xforward_from_anybody_else_is_refused() -> None:
    events, said = dialog(server(xforward=False), HELLO + b"XFORWARD ADDR=192.0.2.1\r\n" + ENVELOPE + MESSAGE)
    assert 550 in codes(said)
    assert ends(events)[0].envelope.client.address == "192.0.2.9"


def test_xforward_cannot_smuggle_control_characters() -> None:
    events, _ = dialog(server(), HELLO + b"XFORWARD HELO=a+0D+0AEvil:+20x NAME=[UNAVAILABLE]\r\n" + ENVELOPE + MESSAGE)
    assert ends(events)[0].envelope.client.helo == "a??Evil: x"


@pytest.mark.parametrize(
    ("zone", "code"), [("%25eth0", 250), ("%eth0", 250), ("%x)+20by+20bank.example+20(x", 501), ("%(", 501)]
)
def test_an_address_s_zone_forges_nothing(zone: str, code: int) -> None:
    wire = f"XFORWARD ADDR=IPV6:fe80::1{zone.replace('%25', '%')}\r\n".encode()
    events, said = dialog(server(), HELLO + wire + ENVELOPE + MESSAGE)
    assert codes(said)[1] == code
    if code == 250:
        assert ends(events)[0].envelope.client.address == "fe80::1"


@pytest.mark.parametrize(
    ("hello", "mail", "protocol"),
    [
        (b"HELO x", b"", "SMTP"),
        (b"EHLO x", b"", "ESMTP"),
        (b"EHLO x", b" SMTPUTF8", "UTF8SMTP"),
        (b"HELO x\r\nEHLO x", b"", "ESMTP"),
        (b"EHLO x\r\nXFORWARD PROTO=SMTP", b"", "SMTP"),
        (b"EHLO x\r\nXFORWARD PROTO=ESMTP", b" SMTPUTF8", "UTF8SMTP"),
    ],
)
def test_how_it_came_is_told_as_it_was(hello: bytes, mail: bytes, protocol: str) -> None:
    wire = hello + b"\r\nMAIL FROM:<a@b>" + mail + b"\r\nRCPT TO:<c@d>\r\n" + MESSAGE
    assert ends(dialog(server(), wire)[0])[0].envelope.client.protocol == protocol


def test_addresses_may_have_joiners_where_a_script_needs_them() -> None:
    for local, code in (("\u0646\u0627\u0645\u0647\u200c\u0627\u06cc", 250), ("jo\u200ce", 501), ("jo\u200de", 501)):
        wire = f"MAIL FROM:<{local}@x.example> SMTPUTF8\r\n".encode()
        assert codes(dialog(server(), HELLO + wire)[1])[1] == code
    assert codes(dialog(server(), HELLO + "MAIL FROM:<a@b>\u202e SMTPUTF8\r\n".encode())[1])[1] == 500


def test_only_accepted_recipients_count() -> None:
    machine = server()
    machine.receive_data(HELLO + b"MAIL FROM:<a@b>\r\nRCPT TO:<no@d>\r\nRCPT TO:<yes@d>\r\nDATA\r\n.\r\n")
    verdicts = iter((replies.OK, Reply(550, "5.1.1", "no"), replies.OK, replies.OK))
    end = None
    while (event := machine.next_event()) is not None:
        end = event if isinstance(event, EndOfData) else end
        if machine.waiting:
            machine.reply(next(verdicts))
    assert end is not None
    assert end.envelope.recipients == (Recipient("yes@d"),)


def test_no_reply_overtakes_another() -> None:
    machine = server()
    machine.receive_data(HELLO + ENVELOPE + MESSAGE + b"NOOP\r\nQUIT\r\n")
    waited = 0
    while not machine.closed:
        if machine.next_event() is None and machine.waiting:
            break
        if machine.waiting:
            said_before = machine.data_to_send()
            assert machine.next_event() is None
            assert machine.data_to_send() == b""
            waited += 1
            assert said_before is not None
            machine.reply(replies.OK)
    assert waited == 3


def test_bdat() -> None:
    wire = HELLO + ENVELOPE + b"BDAT 6\r\nab\r\n\r\nBDAT 3\r\n.\r\nBDAT 0 LAST\r\nNOOP\r\n"
    for pieces in ([wire], [bytes((byte,)) for byte in wire]):
        events, said = dialog(server(), *pieces)
        assert content(events) == b"ab\r\n\r\n.\r\n"
        assert codes(said) == [250, 250, 250, 250, 250, 250, 250]
        assert len(ends(events)) == 1


def test_bdat_out_of_place_is_read_to_its_end() -> None:
    events, said = dialog(server(), HELLO + b"BDAT 6 LAST\r\nQUIT\r\nNOOP\r\n")
    assert codes(said) == [250, 503, 250]
    assert not ends(events)


@pytest.mark.parametrize("count", [b"-1", b"x", b"", b"99999999999", b"1 FIRST", "٣".encode()])
def test_bdat_without_a_count_ends_the_session(count: bytes) -> None:
    machine = server()
    _, said = dialog(machine, HELLO + ENVELOPE + b"BDAT " + count + b"\r\n")
    assert codes(said)[-1] == 421
    assert machine.closed


def test_rset_amid_bdat_forgets_the_message() -> None:
    events, _ = dialog(server(), HELLO + ENVELOPE + b"BDAT 2\r\nabRSET\r\n" + ENVELOPE + MESSAGE)
    assert any(isinstance(event, Aborted) for event in events)
    assert len(ends(events)) == 1


def test_a_message_that_is_too_large_is_read_and_refused() -> None:
    events, _said = dialog(server(size=1000), HELLO + ENVELOPE + b"DATA\r\n" + b"x" * 5000 + b"\r\n.\r\nNOOP\r\n")
    (end,) = ends(events)
    assert end.refusal == replies.TOO_BIG
    assert len(content(events)) <= 1000


def test_too_many_recipients() -> None:
    many = b"".join(b"RCPT TO:<r%d@d>\r\n" % n for n in range(120))
    events, said = dialog(server(recipients=100), HELLO + b"MAIL FROM:<a@b>\r\n" + many + MESSAGE)
    assert codes(said).count(452) == 20
    assert len(ends(events)[0].envelope.recipients) == 100


def test_too_many_errors_close() -> None:
    machine = server(errors=3)
    _, said = dialog(machine, b"X\r\n" * 10)
    assert codes(said) == [500, 500, 500, 421]
    assert machine.closed


def test_whom_a_refused_command_was_about() -> None:
    machine = server()
    two = b"RCPT TO:<c@d>\r\nrcpt to:<e@f> NOTIFY=NEVER\r\n"
    machine.receive_data(HELLO + b"MAIL FROM:<a@b>\r\n" + two + b"NOOP\r\nRCPT TO:<x@y>\r\n")
    assert isinstance(machine.next_event(), MailCommand)
    assert [to.address for to in machine.refused().recipients] == ["c@d", "e@f"]
    assert machine.refused().sender == "a@b"
    machine.reply(replies.OK)
    for address in ("c@d", "e@f", "x@y"):
        machine.next_event()
        assert [to.address for to in machine.refused().recipients] == [address]
        machine.reply(Reply(550, "5.1.1", "no") if address == "e@f" else replies.OK)
    assert [to.address for to in machine.refused().recipients] == ["c@d", "x@y"]


@pytest.mark.parametrize(
    ("behind", "found"),
    [
        (b"RCPT TO:<c@d>\r\n" * 200, 100),
        (b"RCPT TO:<c@d>\r\nRCPT TO:<\xff@d>\r\n", 1),
        (b"RCPT TO:<c", 0),
        (b"RCPT TO:<>\r\n", 0),
        (b"", 0),
    ],
)
def test_what_is_behind_a_refused_command_is_looked_at_with_care(behind: bytes, found: int) -> None:
    machine = server()
    machine.receive_data(HELLO + b"MAIL FROM:<a@b>\r\n" + behind)
    machine.next_event()
    assert len(machine.refused().recipients) == found


def test_a_message_that_is_accepted_makes_up_for_errors() -> None:
    machine = server(errors=3)
    _, said = dialog(machine, HELLO + (b"X\r\n" * 3 + ENVELOPE + MESSAGE) * 5)
    assert not machine.closed
    assert codes(said).count(500) == 15
    machine = server(errors=3, size=5)
    dialog(machine, HELLO + (b"X\r\n" * 3 + ENVELOPE + MESSAGE) * 5)
    assert machine.closed  # the message was refused


def test_too_many_commands_that_lead_nowhere_are_errors() -> None:
    machine = server(errors=3, junk=5)
    _, said = dialog(machine, HELLO + b"NOOP\r\nRSET\r\nVRFY x\r\nHELP\r\n" + b"NOOP\r\n" * 10)
    assert codes(said) == [250, 250, 250, 252, 214, 250, 250, 250, 421]
    assert machine.closed
    machine = server(errors=0, junk=2)
    message = ENVELOPE + MESSAGE
    _, said = dialog(machine, HELLO + (message + b"RSET\r\nNOOP\r\n") * 10)
    assert not machine.closed  # a message between them, and they are none


def test_many_commands_at_once_are_taken_in_turns() -> None:
    machine = server(junk=10_000)
    machine.receive_data(b"NOOP\r\n" * (TURN + 1))
    assert machine.next_event() is None
    assert machine.more
    assert codes(machine.data_to_send()) == [250] * TURN
    assert machine.next_event() is None
    assert not machine.more
    assert codes(machine.data_to_send()) == [250]


@pytest.mark.parametrize(
    ("wire", "said"),
    [
        (HELLO + b"MAIL FROM:<a@b>\r\nRCPT <c@d>\r\n", [250, 250, 501]),
        (HELLO + b"MAIL FROM:<a@b>\r\nRCPT TO:<\xc3\xa4@d>\r\n", [250, 250, 553]),
        (HELLO + ENVELOPE + b"DATA now\r\n", [250, 250, 250, 501]),
        (HELLO + b"STARTTLS now\r\n", [250, 501]),
    ],
)
def test_what_is_refused_leaves_the_session_open(wire: bytes, said: list[int]) -> None:
    machine = server(starttls=True)
    assert codes(dialog(machine, wire)[1]) == said
    assert not machine.closed


def test_tls_is_asked_for_once() -> None:
    machine = server(starttls=True)
    machine.receive_data(HELLO + b"STARTTLS\r\n")
    assert isinstance(machine.next_event(), StartTls)
    machine.reply(replies.READY_FOR_TLS)
    machine.tls_started()
    assert codes(dialog(machine, HELLO + b"STARTTLS\r\n")[1]) == [250, 220, 250, 503]


def test_a_reply_of_421_ends_the_session() -> None:
    machine = server()
    machine.receive_data(HELLO + b"MAIL FROM:<a@b>\r\nNOOP\r\n")
    assert machine.next_event() is not None
    assert not machine.in_transaction
    machine.reply(replies.SHUTTING_DOWN)
    assert codes(machine.data_to_send()) == [250, 421]
    assert machine.next_event() is None
    machine.close(replies.TIMED_OUT)
    assert machine.data_to_send() == b""


def test_the_caller_can_see_where_the_transaction_is() -> None:
    machine = server()
    dialog(machine, HELLO + ENVELOPE + b"RCPT TO:<e@f>\r\n")
    assert machine.in_transaction
    assert machine.accepted == 2
    machine.receive_data(b"RS")
    assert machine.next_event() is None
    assert machine.buffered == 2


def test_a_line_that_is_too_long_by_one() -> None:
    machine = server(line=100)
    machine.receive_data(b"NOOP " + b"x" * 93 + b"\r\nNOOP " + b"x" * 94 + b"\r\n")
    assert machine.next_event() is None
    assert codes(machine.data_to_send()) == [250, 500]


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (b"EHLO x\n", 521),
        (b"NOOP\nNOOP\r\n", 521),
        (b"\n", 521),
        (b"GET / HTTP/1.1\r\n", 421),
        (b"x" * 5000, 421),
    ],
)
def test_what_ends_a_session_at_once(wire: bytes, code: int) -> None:
    machine = server()
    _, said = dialog(machine, wire)
    assert codes(said) == [code]
    assert machine.closed
    machine.receive_data(b"NOOP\r\n")
    assert machine.next_event() is None
    assert machine.data_to_send() == b""


def test_starttls_forgets_what_came_in_the_clear() -> None:
    machine = server(starttls=True)
    events, _said = dialog(machine, HELLO + b"STARTTLS\r\nMAIL FROM:<evil@x>\r\n")
    assert any(isinstance(event, StartTls) for event in events)
    machine = server(starttls=True)
    machine.receive_data(HELLO + b"STARTTLS\r\nMAIL FROM:<evil@x>\r\n")
    assert isinstance(machine.next_event(), StartTls)
    machine.reply(replies.READY_FOR_TLS)
    machine.data_to_send()
    machine.tls_started()
    assert machine.next_event() is None
    assert machine.data_to_send() == b""
    assert codes(dialog(machine, b"MAIL FROM:<a@b>\r\n")[1]) == [503]
    assert b"STARTTLS" not in dialog(machine, HELLO)[1]


def test_lmtp() -> None:
    machine = server(lmtp=True)
    _, said = dialog(machine, b"EHLO x\r\nLHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\n")
    assert codes(said) == [500, 250, 250, 250, 250]
    machine.receive_data(b"DATA\r\n.\r\n")
    assert isinstance(machine.next_event(), EndOfData)
    machine.reply(replies.OK, Reply(450, "4.2.1", "full"))
    assert codes(machine.data_to_send()) == [354, 250, 450]


def test_the_table_is_complete() -> None:
    """Every state can be left, and an end of data always leads back to where a message can begin."""
    for state in ServerState:
        if state is not ServerState.CLOSED:
            assert any(before is state for before, _ in TRANSITIONS), state
    assert {after for (_, event), after in TRANSITIONS.items() if event == "END"} == {ServerState.READY}


WORDS = st.sampled_from(
    [
        b"EHLO x\r\n", b"LHLO x\r\n", b"MAIL FROM:<a@b>\r\n", b"RCPT TO:<c@d>\r\n", b"DATA\r\n", b".\r\n",
        b"BDAT 3\r\n",
        b"BDAT 3 LAST\r\n", b"abc", b"RSET\r\n", b"NOOP\r\n", b"XFORWARD ADDR=1.2.3.4\r\n", b"STARTTLS\r\n", b"\r\n",
        b"\n", b"\r", b"\x00\xff", b"MAIL FROM:<", b"x" * 3000,
    ]
)  # fmt: skip


@given(st.lists(st.one_of(WORDS, st.binary(max_size=20)), max_size=30), st.booleans())
def test_nothing_raises_and_memory_is_bounded(words: list[bytes], lmtp: bool) -> None:
    machine = server(lmtp=lmtp, starttls=True, size=10_000)
    for word in words:
        machine.receive_data(word)
        while (event := machine.next_event()) is not None:
            if isinstance(event, StartTls):
                machine.reply(replies.READY_FOR_TLS)
                machine.tls_started()
            elif machine.waiting:
                machine.reply(replies.OK)
        for line in machine.data_to_send().split(b"\r\n"):
            assert not line or line[:3].isdigit()
        assert machine.closed or machine.buffered <= 4096


@given(st.lists(WORDS, max_size=20), st.lists(st.integers(0, 400), max_size=8))
def test_cut_anywhere_the_dialog_is_the_same(words: list[bytes], cuts: list[int]) -> None:
    wire = b"".join(words)
    places = [0, *sorted({min(cut, len(wire)) for cut in cuts}), len(wire)]
    whole_events, whole = dialog(server(), wire)
    cut_events, said = dialog(server(), *[wire[a:b] for a, b in itertools.pairwise(places)])
    assert said == whole
    assert content(cut_events) == content(whole_events)
    assert ends(cut_events) == ends(whole_events)


def offering(offered: Extensions) -> ServerConnection:
    return ServerConnection("mx.example.test", limits=Limits(), client=PEER, extensions=offered)


def trusting() -> ServerConnection:
    return offering(Extensions(xforward=True, xclient=True))


def test_xclient_makes_the_client_somebody_else_and_begins_anew() -> None:
    wire = (
        HELLO + b"XCLIENT NAME=mail.example.org ADDR=192.0.2.77 PORT=99 LOGIN=joe DESTPORT=25\r\n"
        b"MAIL FROM:<a@b>\r\nEHLO other.example\r\n" + ENVELOPE + MESSAGE
    )
    machine = trusting()
    machine.greet()
    events, said = dialog(machine, wire)
    assert codes(said) == [220, 250, 220, 503, 250, 250, 250, 354, 250]
    assert b"XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT" in said
    (end,) = ends(events)
    client = end.envelope.client
    assert (client.address, client.name, client.port) == ("192.0.2.77", "mail.example.org", "99")
    assert (client.helo, client.login) == ("other.example", "joe")


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (HELLO + b"XCLIENT\r\n", 501),
        (HELLO + b"XCLIENT SOURCE=LOCAL\r\n", 501),
        (HELLO + b"XCLIENT ADDR=nonsense\r\n", 501),
        (HELLO + b"XCLIENT LOGIN=joe\r\n", 220),
        (b"XCLIENT ADDR=192.0.2.1\r\n", 220),
        (HELLO + b"MAIL FROM:<a@b>\r\nXCLIENT ADDR=192.0.2.1\r\n", 503),
    ],
)
def test_xclient_is_read_strictly(wire: bytes, code: int) -> None:
    assert codes(dialog(trusting(), wire)[1])[-1] == code


def test_xclient_is_for_trusted_peers() -> None:
    assert codes(dialog(server(), HELLO + b"XCLIENT ADDR=192.0.2.1\r\n")[1])[-1] == 550
    assert b"XCLIENT" not in dialog(server(), HELLO)[1]


def test_a_tap_hears_commands_and_no_content() -> None:
    machine, heard = server(), list[bytes]()
    machine.tap = heard.append
    dialog(machine, HELLO + ENVELOPE + MESSAGE + b"QUIT\r\n")
    assert [line[:4] for line in heard] == [b"EHLO", b"MAIL", b"RCPT", b"DATA", b"QUIT"]


JOE = {"joe@example.test": "pässword"}


def b64(text: str) -> bytes:
    return base64.b64encode(text.encode())


PLAIN = b"AUTH PLAIN " + b64("\0joe@example.test\0pässword") + b"\r\n"


def asking(auth: Literal["may", "require"] = "require", *, clear: bool = True) -> ServerConnection:
    return offering(Extensions(xforward=True, xclient=True, starttls=True, auth=auth, clear=clear))


@pytest.mark.parametrize(
    "wire",
    [
        PLAIN,
        b"auth plain\r\n" + b64("joe@example.test\0joe@example.test\0pässword") + b"\r\n",
        b"AUTH LOGIN\r\n" + b64("joe@example.test") + b"\r\n" + b64("pässword") + b"\r\n",
        b"AUTH LOGIN " + b64("joe@example.test") + b"\r\n" + b64("pässword") + b"\r\n",
    ],
)
def test_who_logs_in_may_send(wire: bytes) -> None:
    events, said = dialog(asking(), HELLO + wire + ENVELOPE + MESSAGE, passwords=JOE)
    assert b"250-AUTH PLAIN LOGIN" in said
    assert codes(said)[-5:] == [235, 250, 250, 354, 250]
    (end,) = ends(events)
    assert (end.envelope.client.login, end.envelope.client.protocol) == ("joe@example.test", "ESMTPA")
    (mail,) = [event for event in events if isinstance(event, MailCommand)]
    assert mail.login == "joe@example.test"


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (b"AUTH\r\n", 504),
        (b"AUTH CRAM-MD5\r\n", 504),
        (b"AUTH PLAIN not*base64\r\n", 501),
        (b"AUTH PLAIN =\r\n", 501),
        (b"AUTH PLAIN " + b64("joe@example.test\0pässword") + b"\r\n", 501),
        (b"AUTH PLAIN " + b64("ann\0joe@example.test\0pässword") + b"\r\n", 501),
        (b"AUTH PLAIN " + b64("\0joe@example.test\0") + b"\r\n", 501),
        (b"AUTH PLAIN " + base64.b64encode(b"\0joe\0\xff") + b"\r\n", 501),
        (b"AUTH LOGIN " + b64("joe\0x") + b"\r\n" + b64("pässword") + b"\r\n", 501),
        (b"AUTH PLAIN\r\n*\r\n", 501),
        (b"AUTH PLAIN " + b64("\0joe@example.test\0wrong") + b"\r\n", 535),
        (PLAIN + PLAIN, 503),
        (PLAIN + b"MAIL FROM:<a@b>\r\n" + PLAIN, 503),
        (b"MAIL FROM:<a@b>\r\n", 530),
    ],
)
def test_who_does_not_log_in_as_it_should_is_told_why(wire: bytes, code: int) -> None:
    for pieces in ([HELLO + wire], [bytes((byte,)) for byte in HELLO + wire]):
        assert codes(dialog(asking(), *pieces, passwords=JOE)[1])[-1] == code


def test_an_answer_that_is_too_long_is_no_answer() -> None:
    wire = HELLO + b"AUTH PLAIN\r\n" + b"A" * 3000 + b"\r\n" + PLAIN
    assert codes(dialog(asking(), wire, passwords=JOE)[1]) == [250, 334, 500, 235]


def test_a_password_is_asked_for_only_where_nobody_else_can_read_it() -> None:
    machine = asking("may", clear=False)
    said = dialog(machine, HELLO + PLAIN, passwords=JOE)[1]
    assert (b"AUTH" in said, codes(said)[-1]) == (False, 538)
    dialog(machine, b"STARTTLS\r\n")
    machine.tls_started()
    events, said = dialog(machine, HELLO + PLAIN + ENVELOPE + MESSAGE, passwords=JOE)
    assert b"AUTH PLAIN LOGIN" in said
    assert ends(events)[0].envelope.client.protocol == "ESMTPSA"
    assert codes(dialog(server(), HELLO + PLAIN)[1])[-1] == 502


def test_a_login_ends_with_what_it_was_given_for() -> None:
    """TLS that begins later, and a client that is somebody else, begin without it (RFC 3207 4.2)."""
    machine = asking()
    dialog(machine, HELLO + PLAIN + b"STARTTLS\r\n", passwords=JOE)
    machine.tls_started()
    events, said = dialog(machine, HELLO + b"MAIL FROM:<a@b>\r\n" + PLAIN + ENVELOPE + MESSAGE, passwords=JOE)
    assert 530 in codes(said)
    assert ends(events)[0].envelope.client.protocol == "ESMTPSA"
    other = dialog(asking(), HELLO + PLAIN + b"XCLIENT ADDR=192.0.2.77\r\n" + HELLO + ENVELOPE, passwords=JOE)[1]
    assert codes(other)[-2:] == [530, 503]
    wire = HELLO + PLAIN + b"XCLIENT ADDR=192.0.2.77\r\n" + HELLO + ENVELOPE + MESSAGE
    assert ends(dialog(asking("may"), wire, passwords=JOE)[0])[0].envelope.client.login == ""


def test_a_login_stays_when_somebody_else_s_client_is_told() -> None:
    wire = HELLO + PLAIN + b"XFORWARD ADDR=192.0.2.7\r\n" + ENVELOPE + MESSAGE
    (end,) = ends(dialog(asking(), wire, passwords=JOE)[0])
    assert (end.envelope.client.address, end.envelope.client.login) == ("192.0.2.7", "joe@example.test")


def test_guessing_ends_the_session_and_an_outage_does_not() -> None:
    wrong = b"AUTH PLAIN " + b64("\0joe@example.test\0wrong") + b"\r\n"
    assert codes(dialog(asking(), HELLO + wrong * 4)[1]) == [250, 535, 535, 535, 421]
    machine = asking()
    dialog(machine, HELLO)
    for _ in range(4):
        machine.receive_data(wrong)
        assert isinstance(machine.next_event(), Credentials)
        machine.logged_in("", replies.LOGIN_UNKNOWN)
        assert codes(machine.data_to_send()) == [454]
    # But it is an error, of which a session has so many.
    assert codes(dialog_of_outages(offering(Extensions(auth="may", clear=True))))[-2:] == [454, 421]


def dialog_of_outages(machine: ServerConnection) -> bytes:
    machine.receive_data(HELLO + PLAIN * 30)
    while machine.next_event() is not None:
        machine.logged_in("", replies.LOGIN_UNKNOWN)
    return machine.data_to_send()


def test_who_speaks_for_somebody_elsewhere_asks_for_no_password_in_clear() -> None:
    wire = HELLO + b"XCLIENT ADDR=203.0.113.9\r\n" + HELLO + PLAIN
    said = dialog(asking("may"), wire, passwords=JOE)[1]
    assert said.count(b"AUTH PLAIN") == 1  # before XCLIENT only
    assert codes(said)[-1] == 538
    # A login that a trusted peer tells of is one.
    wire = HELLO + b"XCLIENT LOGIN=joe@example.test\r\n" + HELLO + ENVELOPE + MESSAGE
    events, _ = dialog(asking(), wire)
    assert ends(events)[0].envelope.client.login == "joe@example.test"


def test_a_password_is_never_shown() -> None:
    machine, heard = asking(), list[bytes]()
    machine.tap = heard.append
    events, _ = dialog(machine, HELLO + b"AUTH PLAIN\r\n" + PLAIN[11:] + PLAIN, passwords=JOE)
    assert heard == [HELLO[:-2], b"AUTH [not shown]", b"[not shown]", b"AUTH [not shown]"]
    assert "pässword" not in repr(events)
