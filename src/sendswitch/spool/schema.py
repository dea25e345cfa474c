"""The spool's tables, their version, and how an older version becomes this one.

message   one row a message: envelope without recipients, and where the content is
content   the bytes of messages up to 256 KiB; larger ones are `content/<id>.eml` beside the database
delivery  one row a recipient: its state, when to look at it next (`due`), what was decided
outbox    journal events in the order they happened, for the journal to take over; kept for a time
"""

from __future__ import annotations

import sqlite3

from sendswitch.errors import Temporary

VERSION = 1

_CREATE = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE message (
  id INTEGER PRIMARY KEY,
  received REAL NOT NULL,
  expires REAL NOT NULL,
  sender TEXT NOT NULL,
  size INTEGER NOT NULL,
  in_file INTEGER NOT NULL,
  recipients INTEGER NOT NULL,
  via TEXT NOT NULL,
  envelope TEXT NOT NULL
);
CREATE TABLE content (message INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
CREATE TABLE delivery (
  message INTEGER NOT NULL,
  n INTEGER NOT NULL,
  recipient TEXT NOT NULL,
  notify TEXT NOT NULL,
  orcpt TEXT NOT NULL,
  state TEXT NOT NULL,
  since REAL NOT NULL,
  due REAL,
  attempts INTEGER NOT NULL,
  origin INTEGER,
  verdict TEXT,
  reply TEXT NOT NULL,
  PRIMARY KEY (message, n)
) WITHOUT ROWID;
CREATE INDEX delivery_due ON delivery (due) WHERE due IS NOT NULL;
CREATE INDEX delivery_kept ON delivery (state, since) WHERE state IN ('held', 'quarantined');
CREATE TABLE outbox (
  id INTEGER PRIMARY KEY,
  message INTEGER NOT NULL,
  n INTEGER,
  at REAL NOT NULL,
  event TEXT NOT NULL,
  data TEXT NOT NULL
);
CREATE INDEX outbox_message ON outbox (message);
"""

# From version N to N + 1, in order.
_MIGRATIONS: dict[int, str] = {}


def prepare(connection: sqlite3.Connection) -> None:
    """Create or upgrade the tables in one transaction. Raises Temporary for a spool of a newer program."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise Temporary(
            f"the spool has schema version {version}, this program knows {VERSION}; start the newer program"
        )
    if version == VERSION:
        return
    scripts = [_CREATE] if version == 0 else [_MIGRATIONS[n] for n in range(version, VERSION)]
    connection.executescript(f"BEGIN IMMEDIATE;{''.join(scripts)}PRAGMA user_version = {VERSION};COMMIT;")
