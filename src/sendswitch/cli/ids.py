"""Ids of messages and deliveries on the command line."""

from __future__ import annotations

from typing import Annotated

import typer

Id = Annotated[str, typer.Argument(metavar="ID", help="A message id or a delivery id, as listed.")]
