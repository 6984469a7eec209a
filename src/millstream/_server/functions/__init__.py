"""A Python function as data: its arguments, schema, results and description."""
