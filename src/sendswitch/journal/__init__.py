"""The history of mail: events, the rows they add up to, and the text people read. Pure; knows no database and
no spool.
"""
