"""How a function's arguments are read. Tests of types and defaults share these names, so that they import them once."""

from typing import Any

from millstream._server.functions.plan import Plan, plan, read_arguments

__all__ = ["Plan", "plan", "read_arguments", "schema_of_result"]


def schema_of_result(made: Plan) -> dict[str, Any] | None:
    """Return the output schema, or None if the result isn't structured."""
    return None if made.output is None else made.output.schema
