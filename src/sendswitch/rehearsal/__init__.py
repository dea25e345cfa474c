"""Pipelines tried without effect: on a file, on recorded mail, beside the live one. Knows no next hop."""
