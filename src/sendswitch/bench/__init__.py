"""Measuring against real peers: the peers, each started privately and stopped again, and the measurements."""
