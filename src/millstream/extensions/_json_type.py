"""`JsonType`: conversion between JSON and a declared type."""

from typing import Any

from millstream._protocol.json_schema import Schema
from millstream._server.functions.engine import VALUE, engine_of_type, read_value
from millstream._server.functions.outputs import encode


class JsonType:
    """The JSON schema of a type, and conversion of its values from and to JSON.

    It supports the types that tools support: msgspec Structs, dataclasses, TypedDicts, and pydantic models.

    Raises:
        TypeError: the type has no JSON schema.

    Example:
        ``JsonType(Order).read(b'{"id": "7"}')`` is an ``Order``.
    """

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

    def read(self, data: bytes) -> Any:
        """Return the value of JSON text.

        Raises:
            ValueError: the JSON doesn't match the type. The message lists each problem with its location.
        """
        return read_value(self._engine, data)

    @staticmethod
    def write(value: Any) -> bytes:
        """Return the JSON of a value.

        Raises:
            TypeError: the value can't be encoded as JSON.
        """
        return encode(value)
