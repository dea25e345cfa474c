"""A pipeline that runs: on live mail, on a file, on recorded mail, beside the live one. Knows no next hop."""
