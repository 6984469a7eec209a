"""A store in a SQLite file that one process owns. It only needs Python's own `sqlite3`."""
