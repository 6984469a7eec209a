"""How a function's arguments are read. Tests of types and defaults share these names, so that they import them once."""

from typing import Any

from millstream._protocol.errors import LocalError, ProtocolError
from millstream._server.calls.questions import parse_answer, requested_schema
from millstream._server.functions import engine
from millstream._server.functions.core_types import TypeReader
from millstream._server.functions.engine import MsgspecEngine, Output, decoder_of, encode_result
from millstream._server.functions.parameters import normalize
from millstream._server.functions.plan import ArgumentError, Plan, plan, read_arguments, read_texts

__all__ = [
    "ArgumentError",
    "LocalError",
    "MsgspecEngine",
    "Output",
    "Plan",
    "ProtocolError",
    "decoder_of",
    "encode_result",
    "engine",
    "parse_answer",
    "plan",
    "read_arguments",
    "read_texts",
    "requested_schema",
    "schema_of",
    "schema_of_result",
]


def schema_of_result(made: Plan) -> dict[str, Any] | None:
    """Return the output schema, or None if the result isn't structured."""
    return None if made.output is None else made.output.schema


def schema_of(annotation: Any) -> dict[str, Any]:
    """Return the schema of a type that pydantic isn't needed for."""
    reader = TypeReader()
    return reader.whole_schema(reader.read(normalize(annotation)).schema)
