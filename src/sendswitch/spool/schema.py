"""The spool's tables, their version, and how an older version becomes this one.

message   one row a message: envelope without recipients, where the content is, and its SHA-256
content   the bytes of messages up to 256 KiB; larger ones are `content/<id>.eml` beside the database
delivery  one row a recipient: its state, when to look at it next (`due`), what was decided
outbox    journal events in the order they happened, for the journal to take over; kept for a time
recorded  messages whose content is kept although they are final, so that pipelines can be tried on them
rule      administrators' rules for mail in the queue: suspend, bounce, quarantine, drop
answered  whom automatic answers went to, and when
suspect   deliveries that were in hand when the node was killed, and how often their own pipeline broke
rule_delivery  the deliveries that were in the spool when a rule was added
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sendswitch.errors import Temporary
from sendswitch.mail.ids import to_text

VERSION = 5

_RULES = """
CREATE TABLE rule (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  kind TEXT NOT NULL,
  words TEXT NOT NULL,
  reason TEXT NOT NULL,
  author TEXT NOT NULL,
  created REAL NOT NULL,
  expires REAL NOT NULL,
  ended REAL
);
CREATE TABLE rule_delivery (id INTEGER NOT NULL, message INTEGER NOT NULL, n INTEGER NOT NULL,
  PRIMARY KEY (id, message, n)) WITHOUT ROWID;
"""
# Until version 5 rules were called orders.
_ORDERS = _RULES.replace("TABLE rule_delivery", "TABLE ordered").replace("TABLE rule", "TABLE orders")
_RENAMED = """
ALTER TABLE orders RENAME TO rule;
ALTER TABLE ordered RENAME TO rule_delivery;
UPDATE delivery SET reply = replace(reply, 'suspended by order ', 'suspended by rule ')
  WHERE reply LIKE 'suspended by order %';
"""
_ANSWERED = """
CREATE TABLE answered (owner TEXT NOT NULL, sender TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (owner, sender))
  WITHOUT ROWID;
"""
_RECORDED = """
CREATE TABLE recorded (message INTEGER PRIMARY KEY, size INTEGER NOT NULL, since REAL NOT NULL);
CREATE INDEX recorded_since ON recorded (since);
"""
_SUSPECT = """
CREATE TABLE suspect (message INTEGER NOT NULL, n INTEGER NOT NULL, broke INTEGER NOT NULL, PRIMARY KEY (message, n))
  WITHOUT ROWID;
"""
_CREATE = f"""
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
  envelope TEXT NOT NULL,
  lifetime REAL NOT NULL,
  digest BLOB
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
{_RECORDED}
{_RULES}
{_ANSWERED}
{_SUSPECT}
"""

# Messages with a file that must be there: one that a delivery needs, or that is recorded.
FILES_NEEDED = (
    "SELECT id, size FROM message WHERE in_file"
    " AND (EXISTS (SELECT 1 FROM delivery WHERE message = id AND due IS NOT NULL)"
    " OR EXISTS (SELECT 1 FROM recorded WHERE message = id))"
)

# Whose content is kept when its last delivery ends. `filtered`: mail that a pipeline gave a verdict on.
RECORDINGS = ("filtered", "all", "none")

# What the writer inserts into: one row a message, one row a change, and SQLite does the rest without the
# interpreter lock. One view for both, so that a whole group is one statement. Temporary, so it is this program's and
# never part of the file. A row of nothing but NULL does nothing.
#
# A change counts only when the delivery still is in the state it was made for (`was`): a person's release and the
# node's expiry cannot both win. Mail that was kept gets its whole delivery time again. Whether a delivery is the last
# that needs the content is looked for from the end: they end roughly in order, and a message may have thousands. What a
# person threw away is kept like what is recorded, so that it can be had back.
COLUMNS_WRITTEN = (
    *("message", "at", "event", "data"),
    *("n", "was", "state", "due", "verdict", "attempts", "reply"),  # a change
    *(
        "expires",
        "sender",
        "size",
        "in_file",
        "via",
        "envelope",
        "bytes",
        "deliveries",
        "recorded",
        "digest",
    ),  # a message
)
_NONE_LEFT = "(SELECT n FROM delivery WHERE message = NEW.message AND due IS NOT NULL ORDER BY n DESC LIMIT 1) IS NULL"
WRITER = f"""
CREATE TEMP VIEW writing AS SELECT {", ".join(f"NULL AS {name}" for name in COLUMNS_WRITTEN)};
CREATE TEMP TRIGGER accept INSTEAD OF INSERT ON writing
  WHEN NEW.was IS NULL AND NEW.message IS NOT NULL BEGIN
  INSERT INTO message VALUES (NEW.message, NEW.at, NEW.expires, NEW.sender, NEW.size, NEW.in_file,
    json_array_length(NEW.deliveries), NEW.via, NEW.envelope, NEW.expires - NEW.at, NEW.digest);
  INSERT INTO content SELECT NEW.message, NEW.bytes WHERE NEW.bytes IS NOT NULL;
  INSERT INTO delivery SELECT NEW.message, value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4,
    NEW.at, value ->> 5, value ->> 6, value ->> 7, value ->> 8, value ->> 9 FROM json_each(NEW.deliveries);
  INSERT INTO outbox (message, n, at, event, data) VALUES (NEW.message, NULL, NEW.at, NEW.event, NEW.data);
  INSERT INTO recorded SELECT NEW.message, NEW.size, NEW.at WHERE NEW.recorded;
END;
CREATE TEMP TRIGGER change INSTEAD OF INSERT ON writing WHEN NEW.was IS NOT NULL BEGIN
  INSERT INTO outbox (message, n, at, event, data)
    SELECT NEW.message, NEW.n, NEW.at, NEW.event, NEW.data FROM delivery
    WHERE message = NEW.message AND n = NEW.n AND state = NEW.was;
  UPDATE message SET expires = max(expires, NEW.at + lifetime)
    WHERE id = NEW.message AND NEW.event IN ('released', 'answered', 'hold expired');
  UPDATE delivery SET state = NEW.state, since = NEW.at, due = NEW.due,
    verdict = coalesce(NEW.verdict, verdict), attempts = NEW.attempts, reply = NEW.reply
    WHERE message = NEW.message AND n = NEW.n AND state = NEW.was;
  INSERT OR REPLACE INTO recorded SELECT id, size, NEW.at FROM message
    WHERE NEW.due IS NULL AND id = NEW.message AND (NEW.event IN ('deleted', 'dropped') OR ({_NONE_LEFT}
      AND CASE (SELECT value FROM meta WHERE key = 'recording')
      WHEN 'all' THEN 1
      WHEN 'filtered' THEN EXISTS (SELECT 1 FROM delivery WHERE message = NEW.message AND verdict IS NOT NULL)
      ELSE 0 END));
  DELETE FROM content WHERE NEW.due IS NULL AND message = NEW.message AND {_NONE_LEFT}
    AND NOT EXISTS (SELECT 1 FROM recorded WHERE message = NEW.message);
END;
"""

# From version N to N + 1, in order.
_MIGRATIONS: dict[int, str] = {
    1: f"{_RECORDED}{_ORDERS}ALTER TABLE message ADD COLUMN lifetime REAL NOT NULL DEFAULT 432000;",
    2: _ANSWERED,
    3: f"{_SUSPECT}ALTER TABLE message ADD COLUMN digest BLOB;",
    4: _RENAMED,
}


def prepare(connection: sqlite3.Connection) -> int:
    """Create or upgrade the tables in one transaction; return the version that was there, 0 for none.

    Raises Temporary for a spool of a newer program.
    """
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise Temporary(
            f"the spool has schema version {version}, this program knows {VERSION}; start the newer program"
        )
    if version == VERSION:
        return version
    scripts = [_CREATE] if version == 0 else [_MIGRATIONS[n] for n in range(version, VERSION)]
    connection.executescript(f"BEGIN IMMEDIATE;{''.join(scripts)}PRAGMA user_version = {VERSION};COMMIT;")
    return version


def content_file(folder: Path, message: int) -> Path:
    """Return where a large message's content is, in the spool's folder for it."""
    return folder / f"{to_text(message)}.eml"
