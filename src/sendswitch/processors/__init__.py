"""The processors: the steps of pipelines, and the way they are found. Knows mail; knows no broker and no spool."""
