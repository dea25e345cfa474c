"""The web port: health and metrics. Gets what it shows as functions; knows no spool and no switch."""
