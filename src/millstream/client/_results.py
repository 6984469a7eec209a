"""Results of requests: tool results and their conversion to types, the cache, and paginated lists."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import suppress
from functools import lru_cache, partial
from importlib import import_module
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast, get_origin

import msgspec
from msgspec import UNSET, Raw, Struct

from millstream._override import override
from millstream._protocol.content import Text
from millstream._protocol.foreign import foreign_decoder
from millstream._protocol.jsonrpc import MALFORMED, Json, encode
from millstream._protocol.notifications import CallToolResult
from millstream._recent import RecentBytes
from millstream._text import add_article
from millstream.client._errors import InvalidResponse, ToolFailed, client_logger
from millstream.client._server_messages import Change

_MAX_ENTRIES = 512
"""Maximum number of cached results."""
_MAX_TTL_MS = 24 * 3600 * 1000
_MAX_CHECKED = 64 * 1024
"""Maximum bytes of structured content to compare with the output schema of its tool."""
_CHANGED_BY = {
    "tools/list": "tools",
    "prompts/list": "prompts",
    "resources/list": "resources",
    "resources/templates/list": "resources",
    "resources/read": "resource",  # an update may be for a part of the cached resource
}
"""Method -> the kind of change that its results depend on."""


class Cache:
    """A least-recently-used cache of results.

    It keeps results with a time to live and is cleared when the server reports a change, see
    https://modelcontextprotocol.io/specification/2026-07-28/server/utilities/caching. Each client has its own cache, so
    public and private results are treated the same.

    Args:
        max_bytes: Maximum size of all results together, as JSON.
    """

    def __init__(self, max_bytes: int) -> None:
        self._entries: RecentBytes[tuple[str, bytes], tuple[float, Any, int]] = RecentBytes(
            _MAX_ENTRIES, max_bytes=max_bytes, size_of=itemgetter(2)
        )

    def get(self, method: str, params: bytes) -> Any:
        """Return the cached result, or None if it's missing or stale."""
        key = method, params
        found = self._entries.get(key)
        if found is None or found[0] <= time.monotonic():
            return None
        self._entries.move_to_end(key)
        return found[1]

    def put(self, method: str, params: bytes, result: Any, ttl_ms: int, size: int) -> None:
        """Cache a result of some bytes for `ttl_ms` milliseconds."""
        if ttl_ms > 0:
            self._entries.keep((method, params), (time.monotonic() + min(ttl_ms, _MAX_TTL_MS) / 1000, result, size))

    def invalidate(self, change: Change, subscription: Any) -> None:
        """Drop the results that a change affects."""
        for method, params in list(self._entries):
            if change.kind == "again" or _CHANGED_BY.get(method) == change.kind:
                del self._entries[method, params]


T = TypeVar("T")

Page = Callable[[str | None], Awaitable[tuple[str | None, list[T], int]]]
"""Fetches the page at a cursor: the next cursor, its items, and its size in bytes."""


class PaginatedList(Struct, Generic[T], eq=False):
    """A paginated list: ``await client.tools()`` for all items, or ``async for`` to fetch pages as needed."""

    _page: Page[T]
    _max_pages: int
    _max_bytes: int

    async def __aiter__(self) -> AsyncIterator[T]:
        """Yield each item in order.

        Raises:
            InvalidResponse: The list doesn't end, or is larger than `Options.max_bytes`.
        """
        total = 0
        cursor: str | None = None
        seen: set[str] = set()
        last: list[T] = []
        while True:
            cursor, items, size = await self._page(cursor)
            total += size
            if total > self._max_bytes:
                raise InvalidResponse(f"The server's list is larger than {self._max_bytes:,} bytes.")
            # Some servers ignore the cursor, and send their only page with the same cursor again.
            repeats = cursor in seen
            if not (repeats and items == last):
                for item in items:
                    yield item
            if cursor is None or repeats:
                return
            if len(seen) >= self._max_pages:
                raise InvalidResponse(f"The server's list doesn't end: it has more than {self._max_pages:,} pages.")
            seen.add(cursor)
            last = items

    if not TYPE_CHECKING:  # type checkers report this themselves

        def __iter__(self) -> NoReturn:
            raise TypeError("This list comes in pages. Write `async for`, or `await` it first.")

    def __await__(self) -> Generator[Any, None, list[T]]:
        return self._all().__await__()

    async def _all(self) -> list[T]:
        return [item async for item in self]


class _WrappedValue(Struct):
    """A value in an object, for revisions that allow only objects as structured content."""

    result: Raw


_decode_wrapped = msgspec.json.Decoder(_WrappedValue, strict=True).decode


class Result(CallToolResult, frozen=True, kw_only=True):
    """The result of a tool. ``result = await client.call("search", words="tea")``"""

    @override
    def __repr__(self) -> str:
        """Show the value, and whether the tool failed."""
        try:
            return f"Result({self.data!r}{', is_error=True' if self.is_error else ''})"
        except InvalidResponse:
            return f"Result({self.text!r})"

    if not TYPE_CHECKING:  # type checkers report this themselves

        def __getitem__(self, key: object) -> NoReturn:
            instead = f"result.data[{key!r}], or call(…, result_type=dict)[{key!r}]"
            raise TypeError(f"A Result isn't the value. Write {instead}.")

    @property
    def text(self) -> str:
        """Text of all text blocks, one per line."""
        return "\n".join(block.text for block in self.content if isinstance(block, Text))

    @property
    def data(self) -> Any:  # whatever JSON value the tool returned
        """Structured content as plain values, or the text if there's none.

        Raises:
            InvalidResponse: It contains numbers or characters that can't be decoded.
        """
        raw = self.structured_content
        return self.text if raw is UNSET else read("tools/call", msgspec.json.decode, raw)

    def check(self) -> None:
        """Raise if the tool reported an error.

        Raises:
            ToolFailed: The tool reported an error.
        """
        if self.is_error:
            raise ToolFailed(self.text or "The tool failed without giving a reason.", self)

    def into(self, wanted: type[T]) -> T:
        """Convert the structured content, or else the text, which can be JSON, to a type.

        Args:
            wanted: Any type msgspec supports (builtins, dataclasses, Structs, TypedDicts, unions), or a Pydantic model.

        Raises:
            ToolFailed: The tool reported an error.
            InvalidResponse: The value has a different type.
        """
        self.check()
        raw = self.structured_content
        if raw is UNSET:
            if wanted is str:
                return cast("T", self.text)
            is_empty = bool(self.content) and not self.text  # not None, which has no content
            plain = encode(self.text)  # a date or a choice, for example
            first, second = (plain, b"null") if is_empty else (self.text.encode() or b"null", plain)
            try:
                return _read(first, wanted)
            except InvalidResponse as exc:
                try:
                    return _read(second, wanted)
                except InvalidResponse as other:
                    raise exc if _is_json(first) else other from None
        try:
            return _read(bytes(raw), wanted)
        except InvalidResponse:
            with suppress(*MALFORMED):
                return _read(bytes(_decode_wrapped(raw).result), wanted)
            raise


def find_mismatch(result: Result, schema: Json) -> str:
    """Describe the difference between a result and its tool's output schema (MCP, server/tools#output-schema).

    The string is empty for a matching result, for an error, and for content larger than 64 KiB, which isn't checked.
    """
    raw = result.structured_content
    if result.is_error or (raw is not UNSET and len(memoryview(raw)) > _MAX_CHECKED):
        return ""
    return "it has no structured content" if raw is UNSET else describe_mismatch(result.data, schema, "it")


def describe_mismatch(value: Any, schema: Json, whole: str) -> str:
    """Describe the difference between a value and another server's schema. The string is empty for a matching value.

    Args:
        value: The value.
        schema: The schema, whose keywords can have any value.
        whole: The name of the value.
    """
    problems = import_module("millstream._server.functions.problems")  # imported only for listed schemas
    find = partial(problems.find_problems, value=value, formats=False, steps=problems.MAX_DECIDING_STEPS)
    found: Any = None
    with suppress(TypeError, ValueError, ArithmeticError):  # a keyword has a wrong value
        found = find(schema)
    if found != []:
        with suppress(RecursionError):  # the schema is too deep
            found = find(import_module("millstream._protocol.schema_repair").repair_schema(schema) or {})
    return str(problems.problem_text(found, whole=whole)) if found else ""


logger = client_logger(__name__)
_read_result = foreign_decoder(Result, logger.debug)


def read_result(raw: bytes) -> Result:
    """Decode the result of `tools/call`.

    Raises:
        InvalidResponse: The result is malformed.
    """
    return read("tools/call", _read_result, raw)


def read(method: str, decode: Callable[[bytes], T], raw: bytes) -> T:
    """Decode the result of a method.

    Raises:
        InvalidResponse: The result is malformed.
    """
    try:
        return decode(raw)
    except MALFORMED as exc:
        raise InvalidResponse(f"The server's result of {method} is malformed: {exc}.") from exc


def _is_json(raw: bytes) -> bool:
    try:
        msgspec.json.decode(raw)
    except MALFORMED:
        return False
    return True


def _read(raw: bytes, wanted: type[T]) -> T:
    kind: Any = wanted
    try:
        return cast("T", _decoder(kind)(raw))
    except MALFORMED as exc:  # msgspec's and Pydantic's errors are ValueErrors
        name = getattr(wanted, "__name__", str(wanted)) if get_origin(wanted) is None else str(wanted)
        raise InvalidResponse(f"The tool's value isn't {add_article(name)}: {exc}.") from exc


@lru_cache(256)
def _decoder(wanted: Any) -> Callable[[bytes], Any]:
    engine = import_module("millstream._server.functions.engine")  # imported only for typed results
    decode: Callable[[bytes], Any] = engine.decoder_of(wanted)
    return decode
