"""Upstream results on their way to a client: conversion, redaction, and storage of large ones.

Conversion removes members that each server sets itself, and adds the prefix to URIs. Only members that change are
decoded. Content, including binary data, isn't re-encoded.
"""

import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import lru_cache, partial
from hashlib import sha256
from importlib import import_module
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct, structs

from millstream import EmbeddedResource, ProtocolError, ResourceContents, ToolError, ToolResult
from millstream._gateway.names import Names
from millstream._gateway.options.policy import Redaction
from millstream._protocol import notifications
from millstream._protocol.errors import MissingExtra
from millstream._protocol.jsonrpc import decode_members
from millstream._protocol.metadata import SERVER_KEY
from millstream._protocol.notifications import CallToolResult
from millstream._server.calls.call import Call
from millstream._server.features import Run
from millstream._server.features.resources import Template
from millstream._server.features.sources import ItemSource
from millstream._server.features.tools import Tool
from millstream._server.functions.engine import encode_result
from millstream.protocol import (
    INTERNAL_ERROR,
    MALFORMED,
    Json,
    ToolUnavailable,
    decode_object,
    decoder,
    encode,
    is_array,
    is_object,
    members,
)
from millstream.stores import Map, StoreFull, StoreUnavailable, share_for

T = TypeVar("T")

MAX_PATTERNS = 64
_MAX_PATTERN = 1000
_SMALL = 16 * 1024
"""Size below which a thread costs more than the work, in bytes."""
_MAX_PROGRAM = 1 << 20
"""Maximum size of a compiled expression, in bytes."""


_DEFINED = frozenset(("elicitations", "requiredCapabilities", "supported", "requested", "uri")).union(
    *(
        each.__struct_encode_fields__
        for each in vars(notifications).values()
        if isinstance(each, type) and issubclass(each, Struct)
    )
)
"""Members of params, results, and the data of errors that MCP defines."""


class Redactor:
    """Applies several redactions in order.

    The operator writes the expressions, but the text is untrusted. RE2's run time is linear in the text, whatever the
    expression (docs/decisions/0037), but the text can have many megabytes, so only small messages are redacted on the
    event loop. RE2 doesn't support lookaround or backreferences.

    Raises:
        ValueError: A pattern isn't a regular expression of RE2, or there are more than 64.
        ImportError: The extra `redact` isn't installed.
    """

    def __init__(self, patterns: Sequence[str | Redaction]) -> None:
        try:
            re2: Any = import_module("re2")  # optional, without type hints
        except ImportError:
            raise MissingExtra("Redacting arguments and results", "redact") from None
        if len(patterns) > MAX_PATTERNS:
            raise ValueError(f"There are {len(patterns)} regular expressions. Use at most {MAX_PATTERNS}.")
        options = re2.Options()
        options.max_mem = _MAX_PROGRAM
        options.log_errors = False
        self._steps: list[Callable[[str], str]] = []
        for each in patterns:
            redaction = Redaction(each) if isinstance(each, str) else each
            if len(redaction.pattern) > _MAX_PATTERN:
                raise ValueError(
                    f"The regular expression {redaction.pattern[:40]!r}… is too long. Split it into several."
                )
            try:
                compiled = re2.compile(redaction.pattern, options)
            except re2.error as exc:
                raise ValueError(
                    f"{redaction.pattern!r} isn't a valid RE2 regular expression: {_reason(exc)}."
                ) from None
            if compiled.search("") is not None:
                raise ValueError(
                    f"{redaction.pattern!r} matches the empty string, so it would redact between all characters."
                )
            self._steps.append(partial(compiled.sub, partial(_constant, redaction.replacement)))

    def text(self, text: str) -> str:
        """Return text with its matches replaced."""
        for replace in self._steps:
            text = replace(text)
        return text

    def value(self, value: Any, *, names: bool = True) -> Any:
        """Return a JSON value with matches replaced in strings and numbers.

        Args:
            names: Whether to replace matches in member names as well.
        """
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            written = encode(value).decode()
            text = self.text(written)
            return value if text == written else text
        if is_array(value):
            return [self.value(each, names=names) for each in value]
        if is_object(value):
            found: Json = {}
            for name, each in value.items():
                text = self.text(name) if names else name
                found[f"{text} {len(found) + 1}" if text in found else text] = self.value(each, names=names)
            return found
        return value

    def members(self, value: Any) -> Any:
        """Return a JSON value with matches replaced, except in those of its own member names that MCP defines."""
        if not is_object(value):
            return self.value(value)
        known = {name: self.value(each) for name, each in value.items() if name in _DEFINED}
        return {**known, **self.value({name: each for name, each in value.items() if name not in known})}

    def json(self, data: bytes) -> bytes:
        """Return an encoded result or params with matches replaced, as `members` describes."""
        return encode(self.members(msgspec.json.decode(data)))

    async def redact(self, work: Awaitable[bytes], call: Call) -> bytes:
        """Return the result of `work` for a call, with matches replaced. In its errors, they're replaced as well."""
        try:
            result = await work
        except ProtocolError as exc:
            message, data = self.text(exc.message), self.members(exc.data)
            raise ProtocolError(exc.code, message, data, status=exc.status, head=exc.head) from None
        except ToolError as exc:
            raise ToolError(self.text(str(exc))) from None
        return await run_aside(call, len(result), self.json, result)


async def run_aside(call: Call, size: int, function: Callable[..., T], *args: Any) -> T:
    """Run a function that examines each value of a message, using a worker thread for large messages.

    Args:
        call: The current call.
        size: Message size, in bytes (see `Call.weight`).
        args: Its arguments.

    Raises:
        ToolError: The caller's share of worker threads is in use.
    """
    if size < _SMALL:
        return function(*args)
    result: T = await call.services.threads.run(function, *args, owner=call.owner)
    return result


def _constant(text: str, match: Any) -> str:
    return text


def _reason(exc: Exception) -> str:
    reason: object = exc.args[0] if exc.args else ""
    return reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)


Rename = Callable[[str], str]
"""Returns the URI that clients of the gateway use."""
Members = dict[str, Raw]

_COMPLETE = Raw(b'"complete"')
_COMPLETE_TYPES = (bytes(_COMPLETE), b"null")
_OPEN, _NULL = ord("["), ord("n")
_MAX_CACHED_META = 512
MAX_BLOCKS = 10_000
"""Maximum blocks per result. Converting this many takes about 100 ms."""
_NO_ITEMS = Raw(b"[]")
_decode_items = decoder(list[Raw])
_decode_meta = msgspec.json.Decoder(Json | None).decode
_decode_text = decoder(str)


def split_result(
    result: bytes, array: str, rename: Rename | None = None, drop: Collection[str] = ()
) -> tuple[bytes, Json | None]:
    """Return the members of a result without its type and `_meta`, and the members of `_meta` beyond the server's name.

    Args:
        result: JSON object.
        array: Member that must be an array, and is added if missing, or empty for none.
        rename: Changes the URIs in the array; None keeps them.
        drop: Members to leave out.

    Raises:
        ValueError, RecursionError: The result is malformed.
    """
    found = decode_members(result)
    if bytes(found.pop("resultType", _COMPLETE)) not in _COMPLETE_TYPES:
        raise ValueError("its resultType is unknown")
    if array and (opening := memoryview(found.setdefault(array, _NO_ITEMS))[0]) != _OPEN:
        if opening != _NULL:
            raise ValueError(f"{array} must be an array")
        found[array] = _NO_ITEMS
    if array and len(result) > MAX_BLOCKS and len(_decode_items(found[array])) > MAX_BLOCKS:
        raise ValueError(f"it has more than {MAX_BLOCKS:,} blocks")
    if rename is not None and (b'"uri"' in result or b"\\u" in result):  # names may be escaped
        convert = partial(_convert, _CONVERSIONS[array], rename)
        found[array] = Raw(encode([*map(convert, _decode_items(found[array]))]))
    meta = found.pop("_meta", None)
    for each in drop:
        found.pop(each, None)
    if (error := found.pop("isError", None)) is not None:
        found["isError"] = error  # last, where `Dispatcher.call` looks for it
    own_meta: Json | None = None
    if meta is not None:
        raw = bytes(meta)
        own_meta = _read_meta(raw) if len(raw) > _MAX_CACHED_META else _cached_meta(raw)
    return encode(found)[1:-1], own_meta


def _read_meta(meta: bytes) -> Json | None:
    try:
        members: Json = _decode_meta(meta) or {}
    except MALFORMED:  # there's no member for it beside our own
        return None
    members.pop(SERVER_KEY, None)
    return members or None


_cached_meta = lru_cache(256)(_read_meta)
"""Cached, because most results of an upstream have the same `_meta`."""


def _convert(convert: Callable[[Members, Rename], Members], rename: Rename, raw: Raw) -> Raw:
    """Return an item with other URIs. An item that can't be read stays unchanged."""
    try:
        return Raw(encode(convert(decode_members(raw), rename)))
    except MALFORMED:
        return raw


def _convert_message(message: Members, rename: Rename) -> Members:
    content = message.get("content", _NO_ITEMS)
    if not bytes(content).startswith(b"{"):
        return message
    return {**message, "content": Raw(encode(_convert_block(decode_members(content), rename)))}


def _convert_block(block: Members, rename: Rename) -> Members:
    kind = _decode_text(block["type"]) if "type" in block else ""
    if kind == "resource_link":
        return _convert_uri(block, rename)
    if kind == "resource" and "resource" in block:
        return {**block, "resource": Raw(encode(_convert_uri(decode_members(block["resource"]), rename)))}
    return block


def _convert_uri(item: Members, rename: Rename) -> Members:
    return {**item, "uri": Raw(encode(rename(_decode_text(item["uri"]))))} if "uri" in item else item


_CONVERSIONS: Mapping[str, Callable[[Members, Rename], Members]] = {
    "content": _convert_block,
    "messages": _convert_message,
    "contents": _convert_uri,
}
"""Array of a result -> the function that changes the URIs in one of its items."""


class NoResponse(ProtocolError):
    """The upstream didn't respond."""


def call_error(call: "Call", text: str, error: type[ToolError] = ToolUnavailable) -> ToolError | ProtocolError:
    """Return the error for a call that has no result from its upstream. Pass ToolError if its client is the cause."""
    return error(text) if call.method == "tools/call" else ProtocolError(INTERNAL_ERROR, text)


URI = "result://{id}"
CHARACTERS_PER_TOKEN = 4
"""Characters of JSON per token, as in ``millstream tokens``."""
RESULT_SECONDS = 3600.0
"""Default lifetime of a stored result."""


class StoredResults(Struct, frozen=True):
    """Stores results that were too large for their caller, so that the same caller can read them as resources.

    They're temporary. The key is a hash of the principal, the set, and a random id, so no other principal can read a
    result, even with its URI. Without sign-in, all callers are one.
    """

    kv: Map
    names: Names
    """Names of the results' upstream."""

    async def save(self, call: Call, contents: Sequence[ResourceContents], seconds: float) -> str:
        """Store a result and return its URI, or an empty string if the store can't take it.

        Args:
            call: Call of the result.
            contents: What reading the URI returns. Their own URIs aren't used.
            seconds: Lifetime of the URI.
        """
        id = (f"{share_for(call.owner)}." if call.owner else "") + secrets.token_urlsafe(18)
        try:
            await self.kv.put(_key(call, id), encode(contents), seconds, lossy=True)
        except (StoreFull, StoreUnavailable):
            return ""
        return self.names.uri(f"result://{id}")

    def template(self) -> Template:
        """Return the resource template for stored results."""

        async def read(values: Json, call: Call) -> list[EmbeddedResource] | None:
            found = await self.kv.get(_key(call, str(values["id"])))
            uri = self.names.uri(f"result://{values['id']}")
            if found is None:
                return None
            contents = _decode_contents(found)
            return [EmbeddedResource(resource=structs.replace(each, uri=uri)) for each in contents]

        schema = {"properties": {"id": {"type": "string"}}}
        description = "A result that was too large for its call. The shortened result has its URI."
        return Template(
            self.names.uri(URI),
            ItemSource("result", read, lambda values: values, description=description, schema=schema, asks=False),
        )


_decode_contents = decoder(list[ResourceContents])


def _key(call: Call, id: str) -> str:
    owner = b"" if call.principal is None else call.principal.binding
    address: str = call.dispatcher.address.name
    readers = owner + b"\0" + address.encode() if address else owner
    name = sha256(b"%b %b" % (readers, id.encode("utf-8", "surrogatepass"))).hexdigest()
    share, dot, _ = id.partition(".")
    return f"result:{share}.{name}" if dot else f"result:{name}"


READ_RESOURCE = "read_resource"
"""The tool that reads the rest of a shortened result."""
_JSON = "application/json"
_NO_URI = "result:"
"""URI of contents that aren't stored yet."""


def has_companion(call: Call, name: str) -> bool:
    """Return whether a tool at the call's address is the gateway's own."""
    tool = call.dispatcher.registry.tools.get(name)
    return tool is not None and tool.companion_of is not None


async def shorten_result(call: Call, result: bytes, budget: int, stored: StoredResults, seconds: float) -> bytes:
    """Return the beginning of a tool's result, with the URI of the whole in its text. Many clients don't show blocks of
    other kinds to their models, or fail, so none is added. Those that fit stay.

    Args:
        result: JSON of the result.
        budget: Bytes to keep.
        stored: Keeps the whole result.
        seconds: Lifetime of its URI.
    """
    try:
        decoded = decode_object(result)
    except MALFORMED:
        return result  # an error, once it's converted
    content = decoded.get("content")
    blocks = [each for each in content if is_object(each)] if is_array(content) else []
    texts = [each["text"] for each in blocks if isinstance(each.get("text"), str)]
    text, structured = "\n".join(texts), decoded.get("structuredContent")
    repeats = structured is not None and _repeats(text, structured)
    kind = _JSON if repeats and structured != {"result": text} else "text/plain"
    contents = [ResourceContents(_NO_URI, kind, text)] if texts else []
    if structured is not None and not repeats:
        contents.append(ResourceContents(_NO_URI, _JSON, encode(structured).decode()))
        text = text or contents[-1].text or ""
    is_whole, others = len(contents) < 2, list[Json]()
    for each in blocks:
        if not isinstance(each.get("text"), str):
            contents.append(_contents_of(each))
            if (size := len(encode(each))) <= budget:
                others.append(each)
                budget -= size
            else:
                is_whole = False
    beginning = text.encode()[:budget].decode("utf-8", "ignore")
    kept: Json = {key: decoded[key] for key in ("isError", "_meta") if key in decoded}
    shown = beginning
    if beginning != text or not is_whole:
        count = f"The first {len(beginning):,} of {len(text):,} characters." if beginning != text else _INCOMPLETE
        reading_on = f"To read on, call {READ_RESOURCE} with offset {len(beginning)} and"
        where = reading_on if has_companion(call, READ_RESOURCE) else "All of it is at"
        uri = await stored.save(call, contents, seconds)
        note = (
            f"[{count} {where} this URI:] {uri}"
            if uri
            else f"[{count} The rest couldn't be stored. Request less, or try again later.]"
        )
        shown = f"{beginning}\n{note}" if beginning else note
    kept["content"] = [*([{"type": "text", "text": shown}] if shown else []), *others]
    return encode(kept)


def limit_result(tool: Tool) -> Run:
    """Return a `run` of a server's own tool that shortens a result beyond the tool's `result_tokens`."""
    run, budget = tool.run, tool.result_tokens * CHARACTERS_PER_TOKEN

    async def run_within(arguments: Any, call: Call) -> Any:
        try:
            value = await run(arguments, call)
        except ToolError as exc:
            if len(text := str(exc)) <= budget:
                raise
            value = ToolResult(text, is_error=True)
        whole = encode_result(value, tool.output)
        if len(whole) <= budget:
            return value
        results = StoredResults(call.services.store.kv, Names(""))
        short = _decode_result(await shorten_result(call, b"{%b}" % whole, budget, results, RESULT_SECONDS))
        meta = value.meta if isinstance(value, ToolResult) else None
        return ToolResult([*short.content], is_error=short.is_error, meta=meta)

    return run_within


_decode_result = decoder(CallToolResult)
_INCOMPLETE = "This isn't the whole result."


def _repeats(text: str, structured: Any) -> bool:
    """Return whether a text says the same as a structured value."""
    try:
        said = msgspec.json.decode(text)
        return structured in (said, {"result": said}, {"result": text})
    except MALFORMED:
        return bool(structured == {"result": text})


def _contents_of(block: Json) -> ResourceContents:
    """Return a block other than text as it's read at the URI of its result."""
    found = members(block.get("resource")) or {"mimeType": block.get("mimeType"), "blob": block.get("data")}
    try:
        contents = msgspec.convert({**found, "uri": _NO_URI}, ResourceContents)
    except msgspec.ValidationError:
        contents = ResourceContents(_NO_URI)
    if (contents.text is None) == (contents.blob is None):  # a link, or malformed
        return ResourceContents(_NO_URI, _JSON, encode(block).decode())
    return contents
