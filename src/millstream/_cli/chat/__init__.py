"""A conversation on a terminal, in a pipe, or as JSON."""
