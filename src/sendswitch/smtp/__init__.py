"""SMTP and LMTP: `protocol` is the sans-IO half, the modules here are the asyncio shells over it.

Knows connections, timeouts and limits; knows nothing of the spool, routes or pipelines."""
