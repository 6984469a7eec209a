"""Servers and APIs behind this server. `millstream.gateway` has the public names.

A folder imports the folders and files above it in `GATEWAY` in `tests/test_structure.py`, and from another folder only
the names that its docstring lists.
"""
