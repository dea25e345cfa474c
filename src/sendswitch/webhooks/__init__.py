"""Telling others about mail: events in an outbox of their own, sent until they are taken. Knows no spool."""
