"""What administrators do, one function for each task. Knows the database; knows no terminal."""
