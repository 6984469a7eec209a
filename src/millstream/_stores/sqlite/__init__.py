"""A store in a file, owned by one process: memory that survives. It needs nothing but Python's own SQLite."""
