"""`message raw|show`: the content of a message in the spool, as it came or decoded for reading."""

from __future__ import annotations

import base64
import hashlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sendswitch.admin import messages
from sendswitch.cli.ids import Id
from sendswitch.cli.output import Bytes, Session, readable
from sendswitch.errors import NotFound
from sendswitch.mail.content import Content, read_all
from sendswitch.mail.message import Mail
from sendswitch.mail.mime.words import decoded

# The fields that a reader looks at; --headers shows all.
FIELDS = frozenset(("from", "reply-to", "to", "cc", "date", "subject", "message-id"))

Output = Annotated[Path | None, typer.Option("--output", help="Write here instead of standard output.")]


def raw(context: typer.Context, id_: Id, output: Output = None) -> None:
    """Print a message exactly as received. The spool must still have it."""
    session: Session = context.obj
    message, content = _content(session, id_)
    if output is None and session.json:
        text = base64.b64encode(read_all(content)).decode()
        session.print_json({"id": message, "size": content.size, "raw": text})
        return
    _write(session, content, output)


def show(
    context: typer.Context,
    id_: Id,
    headers: Annotated[bool, typer.Option("--headers", help="All header fields.")] = False,
    attachment: Annotated[
        int, typer.Option("--attachment", min=0, help="Print only the content of the attachment with this number.")
    ] = 0,
    output: Output = None,
) -> None:
    """Show a message decoded: its header, text and attachments. The spool must still have it."""
    session: Session = context.obj
    message, content = _content(session, id_)
    mail = Mail(content)
    if attachment:
        if attachment > len(mail.attachments):
            raise NotFound(f"{message} has {len(mail.attachments)} attachments; there is no {attachment}")
        data = mail.attachments[attachment - 1].data
        if output is None and session.json:
            session.print_json({"id": message, "size": len(data), "data": base64.b64encode(data).decode()})
            return
        _write(session, data, output)
        return
    told = _facts(mail)
    if session.json:
        session.print_json({"id": message, **told})
        return
    for name, value in told["headers"]:
        if headers or name.lower() in FIELDS:
            print(f"{readable(name)}: {readable(value)}")
    print()
    for line in (told["text"] or told["html"]).splitlines():
        print(readable(line.expandtabs()))
    if told["attachments"]:
        print()
        session.show(told["attachments"], ("number", "name", "type", "size", "sha256"), "", spare=("sha256", "type"))
    for finding in told["findings"]:
        print(f"! {readable(finding)}")


def _facts(mail: Mail) -> dict[str, Any]:
    """Return a message as JSON has it. Nothing in it is cut."""
    attachments = [
        {
            "number": number,
            "name": one.name,
            "type": one.type,
            "size": Bytes(one.size),
            "sha256": hashlib.sha256(one.data).hexdigest(),
        }
        for number, one in enumerate(mail.attachments, 1)
    ]
    return {
        "size": Bytes(mail.size),
        "headers": [(field.name, decoded(field.value)) for field in mail.fields],
        "text": mail.text,
        "html": mail.html,
        "attachments": attachments,
        "findings": [str(finding) for finding in mail.findings],
    }


def _content(session: Session, id_: str) -> tuple[str, Content]:
    return id_.partition(".")[0], session.client.call(messages.content, id=id_)


def _write(session: Session, content: Content | bytes, output: Path | None) -> None:
    """Write to a new file, or to standard output. Raises FileExistsError."""
    pieces = [content] if isinstance(content, bytes) else content.chunks()
    size = len(content) if isinstance(content, bytes) else content.size
    if output is not None:
        with output.open("xb") as file:
            file.writelines(pieces)
        session.done(f"{size} bytes in {output}", size=size, file=str(output))
        return
    sys.stdout.flush()
    for piece in pieces:
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
