"""What happened to mail: events, what they add up to, and how they are told. Pure; knows no database and no spool."""
