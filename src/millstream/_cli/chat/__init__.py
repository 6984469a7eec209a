"""A conversation at a terminal, in a pipe or as JSON."""
