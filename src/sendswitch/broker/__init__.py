"""Offers and answers between switch and workers. A broker may lose any of them; the spool never does."""
