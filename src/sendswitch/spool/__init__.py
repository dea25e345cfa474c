"""The spool: where every message is safe from 250 to its last state. It alone owns mail.

Knows SQLite and files; knows nothing of SMTP sessions, pipelines or next hops."""
