"""The web port and its pages. Gets what it shows as functions; knows no spool and no queue."""
