"""Settings: one model with type, default and a line of help per key; read, checked and explained.

Knows files and the environment; nothing else in the program reads either for settings."""
