"""`message list --follow`: show deliveries as they change, until Ctrl-C."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

import orjson

from sendswitch.admin import messages
from sendswitch.admin.messages import MessageSummary
from sendswitch.cli.output import Session, readable

# Seconds between two looks at the journal. Another process writes it, in a database that tells nobody of a change.
# MOST is how many deliveries a look sees, LATEST how many are shown at the beginning.
LOOK, MOST, LATEST = 0.5, 1000, 10


def follow(session: Session, search: str, listed: Callable[[MessageSummary], dict[str, Any]]) -> None:
    """Print a line for each of the newest MOST deliveries that a search finds, and again whenever its state changes.

    On a terminal lines are cut to its width; with --json each line is an object. The journal is read in this process:
    a search every half second would cost the node too much.
    """
    client = session.here
    seen: dict[str, object] = {}
    latest = LATEST
    try:
        while True:
            # The search is read each time: `after:1h` moves on.
            rows = [listed(row) for row in client.call(messages.search, search=search, limit=MOST).items]
            new = [row for row in reversed(rows) if seen.get(row["id"]) != row["state"]]
            for row in new[-latest:]:
                print(_line(session, row), flush=True)
            seen = {row["id"]: row["state"] for row in rows}
            latest = MOST
            time.sleep(LOOK)
    except KeyboardInterrupt:
        return


def _line(session: Session, row: dict[str, Any]) -> str:
    if session.json:
        return orjson.dumps(row, default=str, option=orjson.OPT_UTC_Z).decode()
    cells = [readable(row[name]) for name in ("received", "id", "state", "from", "to", "subject", "why")]
    if not sys.stdout.isatty():
        return "\t".join(cells)
    received, id_, state, sender, to, subject, why = cells
    line = f"{received}  {id_:<15}  {state:<11}  {sender} -> {to}  {subject}{': ' * bool(why)}{why}"
    return line[: shutil.get_terminal_size().columns]
