"""The values of mail: address, envelope, content, headers, verdict, task, delivery status. Pure: no I/O but for
reading a content's own file; knows nothing of SMTP sessions, the spool or the switch."""
