"""The tables. Alembic's migrations make them; a test holds the two together."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.mysql import MEDIUMTEXT

metadata = MetaData()

# An event tells of every recipient and every step; MySQL's TEXT ends at 64 KiB.
Long = Text().with_variant(MEDIUMTEXT(), "mysql", "mariadb")

# 320 is the longest address we take. The key is what addresses are compared by; the password is a hash, empty for who
# cannot log in. The last version is the highest that a pipeline of an earlier user with this address had. `workers` is
# `site` or `own`, and `when_offline` says what happens to mail while none of them is there, empty for the default.
# `changed` is the number of the last change (`db.marks`), of the pipeline too.
users = Table(
    "users",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("address", String(320), nullable=False),
    Column("key", String(320), nullable=False, unique=True),
    Column("created", Double, nullable=False),
    Column("password", String(255), nullable=False, server_default=""),
    Column("last_version", Integer, nullable=False, server_default="0"),
    Column("workers", String(16), nullable=False, server_default="site"),
    Column("when_offline", String(16), nullable=False, server_default=""),
    Column("changed", BigInteger, nullable=False, server_default="0", index=True),
)

# Keys by which programs of a user prove whose they are: each has one scope, and the hash of the key (SHA-256).
access_keys = Table(
    "access_keys",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("user_id", Integer, nullable=False, index=True),
    Column("scope", String(16), nullable=False),
    Column("name", String(100), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("created", Double, nullable=False),
    Column("used", Double),
)

# Every version stays: a message on its way is judged by the version it was offered to, and history has diffs. The
# newest whose role is `live` decides; a `candidate` runs beside it without effect, and is `retired` afterwards. The
# summary is what nodes know before mail comes (`conditions.pipeline.Summary`), empty where the text cannot be read.
pipelines = Table(
    "pipelines",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("user_id", Integer, nullable=False, index=True),
    Column("version", Integer, nullable=False),
    Column("text", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("role", String(16), nullable=False, server_default="live"),
    Column("author", String(64), nullable=False, server_default=""),
    Column("summary", String(200), nullable=False, server_default=""),
    UniqueConstraint("user_id", "version"),
)

# Users that were removed, with all of their rows as JSON, so that a removal can be undone. `changed` as for users.
removed_users = Table(
    "removed_users",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("address", String(320), nullable=False),
    Column("key", String(320), nullable=False),
    Column("removed", Double, nullable=False),
    Column("author", String(64), nullable=False),
    Column("data", Long, nullable=False),
    Column("changed", BigInteger, nullable=False, server_default="0", index=True),
)

# The journal. What holds now, one row a message and one a delivery, to search in; message ids rise with time. `parts`
# are words between spaces, as tags are.
messages = Table(
    "messages",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("received", Double, nullable=False),
    Column("sender", String(320), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("via", String(16), nullable=False),
    Column("client_address", String(64), nullable=False),
    Column("client_name", String(255), nullable=False),
    Column("helo", String(255), nullable=False),
    Column("queue_id", String(64), nullable=False),
    Column("subject", String(500), nullable=False),
    Column("message_id", String(500), nullable=False),
    Column("header_to", String(1000), nullable=False, server_default=""),
    Column("header_cc", String(1000), nullable=False, server_default=""),
    Column("reply_to", String(500), nullable=False, server_default=""),
    Column("parts", String(32), nullable=False, server_default=""),
)
deliveries = Table(
    "deliveries",
    metadata,
    Column("message", BigInteger, primary_key=True, autoincrement=False),
    Column("n", Integer, primary_key=True, autoincrement=False),
    Column("recipient", String(320), nullable=False),
    Column("recipient_key", String(320), nullable=False),
    Column("state", String(16), nullable=False),
    Column("since", Double, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("action", String(16), nullable=False),
    Column("tags", String(2000), nullable=False),
    Column("processor", String(64), nullable=False),
    Column("reason", String(500), nullable=False),
    Column("reply", String(500), nullable=False),
    Column("score", Double),
    Index("deliveries_of_recipient", "recipient_key", "message"),
)
# What happened, in the order of one spool. A message is in one spool, so both together name an event for ever.
events = Table(
    "events",
    metadata,
    Column("message", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("n", Integer),
    Column("at", Double, nullable=False),
    Column("event", String(32), nullable=False),
    Column("data", Long, nullable=False),
)
# Allow and deny lists. The scope is a user's address or a domain, as they are compared by, or empty for the site.
list_entries = Table(
    "list_entries",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("scope", String(320), nullable=False),
    Column("list", String(16), nullable=False),
    Column("entry", String(320), nullable=False),
    Column("reason", String(500), nullable=False),
    Column("author", String(64), nullable=False),
    Column("created", Double, nullable=False),
    Column("expires", Double),
    UniqueConstraint("scope", "list", "entry"),
)
# Numbers that must be remembered: `pruned`, the newest message that was forgotten; others count changes (`db.marks`).
marks = Table(
    "marks",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)
# Keys of message authentication codes, in Base64.
secrets = Table(
    "secrets",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", String(64), nullable=False),
)
# The nodes of this database. The id is the number in the ids of a node's messages; the spool's name never changes, so
# that a node that moves or restarts is known again. `seen` is its last heartbeat, `ended` when it was stopped in order.
# `adopter` is the name of the spool whose node adopts this one, empty when it runs.
nodes = Table(
    "nodes",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("spool", String(32), nullable=False, unique=True),
    Column("host", String(255), nullable=False),
    Column("data", String(500), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("version", String(32), nullable=False),
    Column("web", String(255), nullable=False),
    Column("started", Double, nullable=False),
    Column("seen", Double, nullable=False),
    Column("ended", Double),
    Column("draining", Boolean, nullable=False),
    Column("queued", Integer, nullable=False),
    Column("held", Integer, nullable=False),
    Column("quarantined", Integer, nullable=False),
    Column("workers", Integer, nullable=False),
    Column("adopter", String(32), nullable=False),
)
# What a candidate would have done beside what was done.
comparisons = Table(
    "comparisons",
    metadata,
    Column("message", BigInteger, primary_key=True, autoincrement=False),
    Column("n", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("owner_key", String(320), nullable=False),
    Column("was", String(16), nullable=False),
    Column("now", String(16), nullable=False),
    Column("differs", Boolean, nullable=False),
    Column("told_was", String(500), nullable=False),
    Column("told_now", String(500), nullable=False),
    Column("reason", String(500), nullable=False),
    Index("comparisons_of_owner", "owner_key", "version"),
)
