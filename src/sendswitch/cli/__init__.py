"""The commands, one module a noun. Each does one thing, speaks to people in tables and to programs with --json."""
