"""`JsonType`: JSON values of a declared type."""

from typing import Any

from millstream._protocol.json_schema import Schema
from millstream._server.functions.engine import VALUE, engine_of_type, read_value
from millstream._server.functions.outputs import encode


class JsonType:
    """A type as JSON: its schema, and values that are read and written by it.

    The types are those of tools: msgspec Structs, dataclasses, TypedDicts, and with pydantic its models.

    Raises:
        TypeError: the type can't be described.

    Example:
        ``JsonType(Order).read(b'{"id": "7"}')`` is an ``Order``.
    """

    __slots__ = ("_engine", "_whole")

    def __init__(self, annotation: Any) -> None:
        self._engine = engine_of_type(annotation)
        self._whole: Schema = self._engine.input_schema

    @property
    def schema(self) -> Schema:
        """The JSON schema of the type, with its ``$defs``."""
        schema = self._whole["properties"][VALUE]
        while "$ref" in schema:
            schema = self._whole["$defs"][schema["$ref"].rpartition("/")[2]]
        if "$defs" in self._whole:
            schema = {**schema, "$defs": self._whole["$defs"]}
        return {key: value for key, value in schema.items() if key != "default"}

    def read(self, written: bytes) -> Any:
        """Return the value of its JSON.

        Raises:
            ValueError: it's of another type. The text names each problem and its place.
        """
        return read_value(self._engine, written)

    @staticmethod
    def write(value: Any) -> bytes:
        """Return the JSON of a value.

        Raises:
            TypeError: it can't be written as JSON.
        """
        return encode(value)
