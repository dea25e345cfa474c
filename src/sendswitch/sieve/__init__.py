"""Sieve: the language of RFC 5228 for rules about mail. Pure: takes text, returns actions."""
