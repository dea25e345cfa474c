"""Ids of messages and deliveries on the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from sendswitch.errors import NotFound
from sendswitch.mail.ids import from_text

Id = Annotated[str, typer.Argument(metavar="ID", help="A message's id, or message and recipient number, as listed.")]


def parse_message(text: str) -> tuple[int, int | None]:
    """Return a message's number and the recipient's, None without one. Raises NotFound for what is not an id."""
    message, dot, n = text.partition(".")
    try:
        if dot and not n.isdecimal():
            raise ValueError(f"{text!r} is not an id; behind the dot is the recipient's number, like {message}.0")
        return from_text(message), int(n) if dot else None
    except ValueError as error:
        raise NotFound(f"{error}; `sendswitch message list` shows all") from error
