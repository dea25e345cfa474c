"""The web port and its pages. Takes functions for its data; knows no spool and no queue."""
