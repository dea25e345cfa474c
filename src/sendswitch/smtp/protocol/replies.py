"""The replies that the server half sends by itself, in Postfix's words where it has them."""

from __future__ import annotations

from sendswitch.reply import Reply

OK = Reply(250, "2.0.0", "Ok")
SENDER_OK = Reply(250, "2.1.0", "Ok")
RECIPIENT_OK = Reply(250, "2.1.5", "Ok")
START_DATA = Reply(354, "", "End data with <CR><LF>.<CR><LF>")
READY_FOR_TLS = Reply(220, "2.0.0", "Ready to start TLS")
BYE = Reply(221, "2.0.0", "Bye")
HELP = Reply(214, "2.0.0", "EHLO HELO LHLO MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT STARTTLS AUTH XFORWARD XCLIENT")
CANNOT_VERIFY = Reply(252, "2.0.0", "Cannot VRFY, but will take the message and attempt delivery")

UNKNOWN = Reply(500, "5.5.2", "Error: command not recognized")
TOO_LONG = Reply(500, "5.5.2", "Error: line too long")
NOT_TEXT = Reply(500, "5.5.2", "Error: bad UTF-8 or control characters")
BAD_SYNTAX = Reply(501, "5.5.4", "Syntax error in parameters")
NOT_NOW = Reply(503, "5.5.1", "Error: bad sequence of commands")
NO_HELLO = Reply(503, "5.5.1", "Error: send HELO/EHLO first")
NO_RECIPIENTS = Reply(503, "5.5.1", "Error: need RCPT command")
NOT_IMPLEMENTED = Reply(502, "5.5.1", "Error: command not implemented")
NOT_ALLOWED = Reply(550, "5.7.0", "Error: insufficient authorization")
BAD_ADDRESS = Reply(501, "5.1.7", "Bad address syntax")
NEED_SMTPUTF8 = Reply(553, "5.6.7", "Address needs SMTPUTF8")
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3", "Error: too many recipients")
TOO_BIG = Reply(552, "5.3.4", "Error: message size exceeds the limit")
TLS_ACTIVE = Reply(503, "5.5.1", "Error: TLS already active")

# RFC 4954 4 and 6.
LOGGED_IN = Reply(235, "2.7.0", "Authentication successful")
WRONG_CREDENTIALS = Reply(535, "5.7.8", "Error: authentication failed")
LOGIN_UNKNOWN = Reply(454, "4.7.0", "Temporary authentication failure")
LOGIN_FIRST = Reply(530, "5.7.0", "Authentication required")
LOGIN_ABORTED = Reply(501, "5.7.0", "Authentication aborted")
BAD_CREDENTIALS = Reply(501, "5.5.2", "Error: malformed authentication response")
UNKNOWN_MECHANISM = Reply(504, "5.5.4", "Error: unrecognized authentication type")
ENCRYPT_FIRST = Reply(538, "5.7.11", "Error: send STARTTLS first, a password needs encryption")
LOGGED_IN_ALREADY = Reply(503, "5.5.1", "Error: already authenticated")

BARE_LF = Reply(521, "5.5.2", "Error: bare LF received; lines end in CR LF")
TOO_MANY_ERRORS = Reply(421, "4.7.0", "Error: too many errors")
NOT_SMTP = Reply(421, "4.7.0", "Error: this is a mail server")
TIMED_OUT = Reply(421, "4.4.2", "Error: timeout exceeded")
TOO_MANY_CONNECTIONS = Reply(421, "4.7.0", "Error: too many connections")
SHUTTING_DOWN = Reply(421, "4.3.2", "Service shutting down, please try again later")
