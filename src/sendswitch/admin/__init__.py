"""The tasks of administrators, one function for each. Knows the database; knows no terminal."""
