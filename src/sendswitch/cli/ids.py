"""Ids of messages and deliveries on the command line."""

from __future__ import annotations

from typing import Annotated

import typer

Id = Annotated[str, typer.Argument(metavar="ID", help="A message's id, or message and recipient number, as listed.")]
