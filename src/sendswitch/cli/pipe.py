"""`pipe`: take one message on standard input, for Postfix's pipe(8). Ends with the codes of sysexits.h.

The message goes to the node's own listener, so that 0 means that it is on disk. 75 (EX_TEMPFAIL) makes Postfix keep the
message and try again, 69 (EX_UNAVAILABLE) makes Postfix return it to its sender with the printed text in the report.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, NoReturn

import typer

from sendswitch.cli.exit_codes import EX_TEMPFAIL, EX_UNAVAILABLE
from sendswitch.cli.output import Session
from sendswitch.errors import InvalidConfiguration, in_words
from sendswitch.mail.content import InMemory
from sendswitch.mail.envelope import Client, Envelope, Recipient
from sendswitch.reply import Reply, printable
from sendswitch.smtp.client import ClientOptions
from sendswitch.smtp.endpoint import Endpoint, parse_endpoint
from sendswitch.smtp.pool import Pool
from sendswitch.smtp.protocol.replies import TOO_BIG

# Seconds; Postfix's command_time_limit for pipe(8) is 1000.
LIMIT = 600.0


def pipe(
    context: typer.Context,
    recipients: Annotated[list[str], typer.Argument(metavar="RCPT...", help="Recipients.")],
    sender: Annotated[str, typer.Option("-f", "--from", help="The envelope sender; '' for the null sender.")],
    address: Annotated[str, typer.Option("--client-address", help="${client_address} of pipe(8).")] = "",
    name: Annotated[str, typer.Option("--client-name", help="${client_hostname} of pipe(8).")] = "",
    helo: Annotated[str, typer.Option("--helo", help="${client_helo} of pipe(8).")] = "",
    queue_id: Annotated[str, typer.Option("--queue-id", help="${queue_id} of pipe(8).")] = "",
) -> None:
    """Take a message on standard input, for Postfix's pipe(8)."""
    session: Session = context.obj
    try:
        config = session.config()
    except InvalidConfiguration as error:
        _end(session, Reply(451, "4.3.5", "; ".join(error.problems)))
    # Over SMTP all recipients are taken or none, and one exit code can say which; LMTP answers for each.
    listener = next((s for s in config.listener if (s.mode, s.protocol) == ("filter", "smtp")), None)
    if listener is None:
        _end(session, Reply(451, "4.3.5", 'no listener has mode = "filter" and protocol = "smtp"'))
    data = _read(listener.message_size)
    if data is None:
        _end(session, TOO_BIG)
    source = "LOCAL" if address in ("", "127.0.0.1", "::1", "unknown") else "REMOTE"
    client = Client(address=address, name=name, helo=helo, ident=queue_id, protocol="SMTP", source=source)
    sender = "" if sender in ("<>", "MAILER-DAEMON") else sender
    smtputf8 = not all(one.isascii() for one in (sender, *recipients))
    to = tuple(Recipient(address) for address in recipients)
    envelope = Envelope(sender, to, client, body="8BITMIME", smtputf8=smtputf8)
    try:
        replies = asyncio.run(_deliver(parse_endpoint(listener.bind), config.node.host, envelope, data))
    except TimeoutError:
        replies = [Reply(451, "4.4.2", f"the node did not answer within {LIMIT:g} s")]
    except Exception as error:  # whatever it is, Postfix keeps the mail
        replies = [Reply(451, "4.3.0", printable(f"the node could not be asked: {in_words(error)}"))]
    # Nobody got it unless all did: who was refused for now makes it come again, else who was refused decides.
    worst = next((r for r in replies if r.temporary), None) or next((r for r in replies if not r.positive), None)
    _end(session, worst or replies[0])


def _read(most: int) -> bytes | None:
    """Return the message on standard input with CRLF line ends; None when it is larger than the listener takes."""
    data = sys.stdin.buffer.read(most + 1)
    if len(data) > most:
        return None
    if data.startswith(b"From "):  # flags=F of pipe(8), a mailbox's separator
        data = data.partition(b"\n")[2]
    return data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


async def _deliver(node: Endpoint, host: str, envelope: Envelope, data: bytes) -> list[Reply]:
    pool = Pool(node, ClientOptions(helo=host), size=1, idle=1.0)
    try:
        async with asyncio.timeout(LIMIT):
            result = await pool.deliver(envelope, InMemory(data), unanimous=True)
    finally:
        pool.close()
    return [outcome.reply for outcome in result.outcomes if outcome.reply is not None]


def _end(session: Session, reply: Reply) -> NoReturn:
    """Print the text that pipe(8) puts into its log and its reports, and exit."""
    code = 0 if reply.positive else EX_TEMPFAIL if reply.temporary else EX_UNAVAILABLE
    session.done(str(reply), reply=str(reply), exit=code)
    raise typer.Exit(code)
