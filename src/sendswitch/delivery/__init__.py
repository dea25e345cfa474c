"""Handing mail on: couriers to a next hop, and what is decided about retries, bounces and forwards.

Knows SMTP and folders; knows nothing of the spool or the switch."""
