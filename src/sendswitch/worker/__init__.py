"""The worker: takes tasks from the broker, runs pipelines, answers. Knows no spool and no next hop."""
