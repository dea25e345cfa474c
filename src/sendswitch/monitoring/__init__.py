"""The health of a node: audit, canary, load, housekeeping, and the relay of events from the spool to the journal."""
