"""Results of tools, raw and converted to a type."""

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any, TypeVar, cast, get_origin

import msgspec
from msgspec import UNSET, Raw, Struct

from millstream._override import override
from millstream._protocol.content import Text
from millstream._protocol.foreign import foreign_decoder
from millstream._protocol.jsonrpc import MALFORMED
from millstream._protocol.notifications import CallToolResult
from millstream.client._errors import BadAnswer, ToolFailed

T = TypeVar("T")


class _WrappedValue(Struct):
    """A value in an object, for revisions whose structured content is always an object."""

    result: Raw


_decode_wrapped = msgspec.json.Decoder(_WrappedValue, strict=True).decode


class Result(CallToolResult, frozen=True, kw_only=True):
    """The result of a tool. ``result = await client.call("search", words="tea")``"""

    @override
    def __repr__(self) -> str:
        """Show the value, and whether the tool failed."""
        try:
            return f"Result({self.data!r}{', is_error=True' if self.is_error else ''})"
        except BadAnswer:
            return f"Result({self.text!r})"

    def __getitem__(self, key: object) -> Any:
        """Explain how to get the value.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"A Result isn't the value. Write result.data[{key!r}], or call(…, into=dict)[{key!r}]")

    @property
    def text(self) -> str:
        """Text of all text blocks, one per line."""
        return "\n".join(block.text for block in self.content if isinstance(block, Text))

    @property
    def data(self) -> Any:
        """Structured content as plain values, or the text if there's none.

        Raises:
            BadAnswer: it contains numbers or characters that can't be decoded.
        """
        raw = self.structured_content
        return self.text if raw is UNSET else read("tools/call", msgspec.json.decode, raw)

    def check(self) -> None:
        """Raise if the tool reported an error.

        Raises:
            ToolFailed: the tool reported an error.
        """
        if self.is_error:
            raise ToolFailed(self.text or "The tool failed without giving a reason.", self)

    def into(self, wanted: type[T]) -> T:
        """Convert the value to a type, from the structured content or else from text that is JSON.

        Args:
            wanted: any type msgspec supports (builtins, dataclasses, Structs, TypedDicts, unions), or a Pydantic model.

        Raises:
            ToolFailed: the tool reported an error.
            BadAnswer: the value has another type.
        """
        self.check()
        raw = self.structured_content
        if raw is UNSET:
            if wanted is str:
                return cast("T", self.text)
            return cast("T", _read(self.text.encode(), wanted))
        try:
            return cast("T", _read(bytes(raw), wanted))
        except BadAnswer:
            try:
                inner = _decode_wrapped(raw).result
            except MALFORMED:
                inner = None
            if inner is None:
                raise
            return cast("T", _read(bytes(inner), wanted))


_read_result = foreign_decoder(Result)


def read_result(raw: bytes) -> Result:
    """Decode the result of `tools/call`.

    Raises:
        BadAnswer: the result is malformed.
    """
    return read("tools/call", _read_result, raw)


def read(method: str, decode: Callable[[bytes], T], raw: bytes) -> T:
    """Decode the result of a method.

    Raises:
        BadAnswer: the result is malformed.
    """
    try:
        return decode(raw)
    except MALFORMED as exc:
        raise BadAnswer(f"The server's result of {method} is malformed: {exc}.") from exc


def _read(raw: bytes, wanted: Any) -> Any:
    try:
        return _decoder(wanted)(raw)
    except MALFORMED as exc:  # msgspec's and Pydantic's errors are ValueErrors
        name = getattr(wanted, "__name__", str(wanted)) if get_origin(wanted) is None else str(wanted)
        raise BadAnswer(f"The tool's value isn't a {name}: {exc}.") from exc


@lru_cache(256)
def _decoder(wanted: Any) -> Callable[[bytes], Any]:
    engine = import_module("millstream._server.functions.engine")  # imported only for typed results
    decode: Callable[[bytes], Any] = engine.decoder_of(wanted)
    return decode
