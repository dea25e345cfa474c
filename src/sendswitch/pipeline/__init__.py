"""A pipeline that runs: on live mail, on a file, on recorded mail, or as a candidate. Knows no next hop."""
