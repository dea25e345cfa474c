"""The list of parts: the only package that names concrete adapters. Makes each and hands it only what it needs."""
