"""SMTP and LMTP as functions of bytes: bytes in, events out. Imports no asyncio, socket, ssl, time, os, logging."""
