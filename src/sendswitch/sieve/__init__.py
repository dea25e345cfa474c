"""Sieve: the language of RFC 5228 in which people say what becomes of their mail. Pure: text in, what to do out."""
