"""Python functions as data: arguments, schema, results, and description."""
