"""SMTP and LMTP as functions of bytes: takes bytes, gives events. Imports no asyncio, socket, ssl, time, os, logging."""
