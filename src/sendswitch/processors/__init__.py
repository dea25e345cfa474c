"""What a pipeline is made of: the processors, and how they are found. Knows mail; knows no broker and no spool."""
