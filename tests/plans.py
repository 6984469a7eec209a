"""How a function's arguments are read. Tests of types and defaults share these names, so that they import them once."""

from millstream._server.functions.plan import Plan, plan, read_arguments

__all__ = ["Plan", "plan", "read_arguments"]
