"""The accounts: users, their pipelines and their passwords. Knows the database; knows no protocol."""
