"""Three shelves and a house: unit (no I/O), integration (real parts), e2e (the real command), house (docs, layers)."""
