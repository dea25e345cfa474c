"""Who somebody is: passwords. Knows the database, and nothing of the protocols that ask."""
