"""JSON-RPC 2.0 messages: bytes to `Envelope` and back (https://www.jsonrpc.org/specification).

This module decodes only the envelope and keeps `params`, `result`, and `error` as raw bytes. Ids keep their type. It
has no knowledge of methods or revisions.

JSON is bounded before it's parsed: nesting depth, and the number of arrays, objects, members, and long numbers. These
bounds protect recursive decoders and the event loop. A million empty arrays fit into 4 MiB and take half a second to
build, because the garbage collector walks them repeatedly. Half a million numbers such as ``1.5e300`` take four
seconds. The steps are linear passes, without a loop in Python.
"""

import functools
import re
from codecs import BOM_UTF8
from collections.abc import Callable
from contextlib import suppress
from itertools import accumulate
from typing import Any, Literal, TypeVar, cast

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from millstream._protocol.errors import INTERNAL_ERROR, INVALID_REQUEST, PARSE_ERROR, ProtocolError

MAX_NESTING = 64
MAX_CONTAINERS = 100_000
"""Maximum number of arrays and objects in one message. Building this many takes about 20 ms."""

MAX_MEMBERS = 50_000
"""Maximum number of members in all objects of a value that is read into a dict. This many take about 20 ms."""

MAX_LONG_NUMBERS = 5_000
"""Maximum number of numbers in one message that take the decoder's slow path. This many take about 40 ms."""

_FEW_NUMBERS = MAX_LONG_NUMBERS * len(b"1e200,")
"""Maximum size of a body that's too short to exceed `MAX_LONG_NUMBERS`."""
_DIGITS_TO_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_SMALL_E = bytes.maketrans(b"E", b"e")
_SIGNS = b".+-"
_LARGE_EXPONENT = re.compile(rb"e0*[23]\d\d")
"""For text without `_SIGNS`. Numbers near the limits of a float always take the decoder's slow path."""
_OTHERS = bytes(byte for byte in range(256) if byte not in b'"[]{}')
_NOT_COMMAS = bytes(byte for byte in range(256) if byte not in b'",')
_NOT_COLONS = bytes(byte for byte in range(256) if byte not in b'":')
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""Brackets as signed bytes: +1 opens, -1 closes."""


def exceeds_limits(body: bytes, max_depth: int = MAX_NESTING) -> str:
    """Return why `body` must not be decoded, or an empty string. Brackets inside strings don't count.

    The function doesn't validate: if the text isn't JSON, the result is arbitrary, and the decoder rejects the text
    afterward. Nearly all bodies have at most `max_depth` opening brackets, which are only counted.

    Args:
        body: Undecoded JSON.
        max_depth: Maximum nesting of arrays and objects.

    Example:
        ``if problem := exceeds_limits(body): raise ProtocolError(INVALID_REQUEST, problem)``
    """
    if len(body) > _FEW_NUMBERS and _too_many_long_numbers(body):
        return (
            f"more than {MAX_LONG_NUMBERS:,} numbers with very many digits or very large exponents; "
            "round them, or send several messages"
        )
    # Comparing lengths after `replace` is ten times as fast as `count` when there are few brackets. `max_depth` bounds
    # the cost when there are many.
    few = max_depth + 1
    brackets = len(body) - len(body.replace(b"{", b"", few).replace(b"[", b"", few))
    if brackets <= max_depth:
        return ""
    outside = _outside_strings(body, _STEPS, _OTHERS)
    if outside.count(b"\x01") > MAX_CONTAINERS:
        return f"more than {MAX_CONTAINERS:,} arrays and objects"
    if max(accumulate(memoryview(outside).cast("b")), default=0) > max_depth:
        return f"nested deeper than {max_depth}"
    return ""


def _too_many_long_numbers(body: bytes) -> bool:
    if body.count(b"e") + body.count(b"E") <= MAX_LONG_NUMBERS:
        return False
    return _is_slow(body) and _is_slow(_outside_strings(body, None, b""))


def _is_slow(text: bytes) -> bool:
    """Return whether the decoder's slow path would run: a large exponent, or a smaller one after more than 64 bits of
    digits.
    """
    numbers = text.translate(_SMALL_E, _SIGNS)
    zeros = numbers.translate(_DIGITS_TO_ZEROS)
    if zeros.count(b"0e00") <= MAX_LONG_NUMBERS:
        return False
    large = _LARGE_EXPONENT.subn(b"", numbers, MAX_LONG_NUMBERS + 1)[1] if b"0e000" in zeros else 0
    return large + zeros.count(b"0" * 20 + b"e00") > MAX_LONG_NUMBERS


def too_many_members(value: bytes) -> bool:
    """Return whether the objects of a value have more members than `MAX_MEMBERS`.

    Args:
        value: The JSON text.

    Example:
        ``if too_many_members(body): raise ProtocolError(INVALID_PARAMS, "Send less at a time.")``
    """
    return value.count(b":") > MAX_MEMBERS and len(_outside_strings(value, None, _NOT_COLONS)) > MAX_MEMBERS


def too_many_values(value: bytes, most: int) -> bool:
    """Return whether an array or object has more than `most` values, by counting commas outside strings."""
    return value.count(b",") > most and len(_outside_strings(value, None, _NOT_COMMAS)) > most


def _outside_strings(body: bytes, table: bytes | None, dropped: bytes) -> bytes:
    """Return the part of `body` outside strings, without the `dropped` bytes, which must not include quotes."""
    # After pairs of backslashes are gone, a backslash before a quote escapes it.
    text = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # With their contents removed, most strings are two adjacent quotes. Removing adjacent pairs keeps the parity of
    # quotes before each remaining byte, which separates inside from outside.
    marks = text.translate(table, dropped).replace(b'""', b"")
    return b"".join(marks.split(b'"')[::2])


T = TypeVar("T")
RequestId = int | str

encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode
"""Return the compact JSON of builtins, Structs, and dataclasses."""
MALFORMED = (ValueError, RecursionError)
"""Errors that a decoder raises: ``except MALFORMED``. msgspec's errors and UnicodeDecodeError are ValueErrors."""


def decoder(kind: type[T]) -> Callable[[bytes | str], T]:
    """Return a function that decodes JSON into a type: ``read = decoder(Order)``, then ``read(body)``.

    The function raises one of `MALFORMED` for text that isn't JSON or doesn't match the type. Create it once, and limit
    the size of the text before you decode it.

    Args:
        kind: The type: a msgspec Struct, a dataclass, a builtin, or another type that msgspec decodes.
    """
    return msgspec.json.Decoder(kind).decode


Json = dict[str, Any]
"""A JSON object."""
decode_object: Callable[[bytes | str], Json] = decoder(Json)
"""Return the members of a JSON object, or raise one of `MALFORMED`."""
decode_members = decoder(dict[str, Raw])
"""Return the members of a JSON object, with their values as JSON, or raise one of `MALFORMED`."""

MAX_ID = 16 * 1024
"""Maximum size of an id, in bytes. An id is kept for the whole call, which can be long, and repeated in messages."""

_EMPTY = Raw(b"")
_NULL = b"null"
NO_MEMBERS = (_NULL, b"[]")
"""JSON that some clients send instead of an empty object, for example because PHP encodes it as an array."""


class _Envelope(Struct, gc=False):
    jsonrpc: Raw = _EMPTY
    id: Raw = _EMPTY
    method: Raw = _EMPTY
    params: Raw = _EMPTY
    result: Raw = _EMPTY
    error: Raw = _EMPTY


class Envelope(Struct, gc=False, frozen=True):
    """A request (`method` and `id`), a notification (`method` only), or a response (`id`, and `result` or `error`).

    Example:
        ``if envelope.method == "tools/call": ...``
    """

    id: RequestId | None
    method: str
    params: bytes
    """A raw JSON object, or empty bytes."""
    result: bytes = b""
    error: bytes = b""

    @property
    def is_request(self) -> bool:
        return self.id is not None and self.method != ""

    @property
    def is_answer(self) -> bool:
        return self.method == ""


class PeerError(Struct, gc=False):
    """The error in a response."""

    code: int = INTERNAL_ERROR
    message: str = ""
    data: Raw = _EMPTY


_decode_envelope = decoder(_Envelope)
_decode_raw = decoder(Raw)
decode_id = msgspec.json.Decoder(RequestId).decode
_decode_text = decoder(str)


def _invalid(why: str) -> ProtocolError:
    return ProtocolError(INVALID_REQUEST, f"Invalid request: {why}", status=400)


class _Unreadable(ProtocolError):
    answered: RequestId | None = None
    """Id of the question that the message answers."""


def _unreadable(why: object) -> _Unreadable:
    return _Unreadable(PARSE_ERROR, f"Parse error: {why}", status=400)


def check_text(body: bytes) -> None:
    """Reject JSON that a decoder accepts, but that isn't safe to process: ``check_text(body)`` before decoding.

    That is bad UTF-8 in skipped members, deep nesting, and too many containers.

    Args:
        body: The JSON text.

    Raises:
        ProtocolError: PARSE_ERROR.
    """
    if not (body.isascii() or is_utf8(body)):
        raise _unreadable("the body isn't UTF-8")
    why = exceeds_limits(body)
    if why:
        raise _unreadable(why)


def is_utf8(body: bytes) -> bool:
    """Return whether text is UTF-8. Decoders check only the parts that they read."""
    try:
        str(body, "utf-8")
    except UnicodeDecodeError:
        return False
    return True


class _Result(Struct, gc=False):
    jsonrpc: Literal["2.0"]
    id: int
    result: Raw
    method: UnsetType = UNSET
    error: UnsetType = UNSET


_decode_result = decoder(_Result)


def read_result(body: bytes, request_id: int) -> Envelope | None:
    """Decode a successful response. Return None for any other message, which `read` then reports exactly."""
    try:
        if not body.isascii():
            str(body, "utf-8")  # the decoder doesn't check what it skips
        found = _decode_result(body)
    except MALFORMED:
        return None
    return Envelope(request_id, "", b"", bytes(found.result)) if found.id == request_id else None


def read(body: bytes, *, fails_answers: bool = True) -> Envelope:
    """Decode one envelope. The last of duplicate keys wins, and unknown keys are ignored. Null means absent.

    Args:
        body: The bytes of the message.
        fails_answers: Whether a response with half of a surrogate pair becomes an error response, so that its request
            ends.

    Raises:
        ProtocolError: PARSE_ERROR if the bytes aren't JSON, INVALID_REQUEST if they aren't a JSON-RPC message.
    """
    body = body.removeprefix(BOM_UTF8)  # RFC 8259 §8.1 lets a parser ignore it
    try:
        envelope = _decode_envelope(body)
    except msgspec.ValidationError:
        require_json(body)
        raise _invalid("a message must be a JSON object") from None
    except MALFORMED as exc:
        refusal = _explain(body, exc)
        if refusal.answered is None or not fails_answers:
            raise refusal from exc
        error = encode({"code": refusal.code, "message": refusal.message})
        return Envelope(refusal.answered, "", b"", b"", error)
    return _message(envelope)


def _explain(body: bytes, exc: Exception) -> _Unreadable:
    """Return the error for bytes that can't be decoded.

    Half of a surrogate pair, which JavaScript makes from shortened text, fits JSON's grammar. So the error is for the
    message's id.
    """
    if b"\\u" not in body or len(body) > _MAX_REREAD:
        return _unreadable(exc if body else "the body is empty instead of a JSON-RPC message")
    import json  # noqa: PLC0415  few messages need it

    try:
        found: Any = json.loads(body, parse_constant=int)  # which refuses NaN and infinities
    except MALFORMED:
        return _unreadable(exc)
    refusal = _unreadable("a string has half of a surrogate pair")
    if isinstance(found, dict):
        message = cast("Json", found)
        with suppress(ValueError, ProtocolError):
            number = _request_id(encode(message.get("id")), may_be_null=True)
            if message.get("method") is not None:
                refusal.request_id = number
            elif "result" in message or "error" in message:
                refusal.answered = number
    return refusal


_MAX_REREAD = 2 * 1024 * 1024


def require_json(body: bytes) -> None:
    """Check that the bytes are one JSON value.

    Raises:
        ProtocolError: PARSE_ERROR.
    """
    try:
        _decode_raw(body)
    except MALFORMED as exc:
        raise _explain(body, exc) from exc


def _is_two(raw: bytes) -> bool:
    try:
        return bool(_decode_text(raw) == "2.0")
    except ValueError:
        return False


def _request_id(raw: bytes, *, may_be_null: bool) -> RequestId | None:
    if not raw or (raw == _NULL and may_be_null):
        return None
    if len(raw) > MAX_ID:
        raise _invalid(f'"id" must have at most {MAX_ID} bytes')
    try:
        # Libraries that read every number as a float also write ids as floats.
        request_id: RequestId = decode_id(raw[:-2] if raw.endswith(b".0") else raw)
    except ValueError:
        raise _invalid('"id" must be a string or an integer') from None
    return request_id


def _message(envelope: _Envelope) -> Envelope:
    # The member nearly always has these exact bytes, but JSON allows escapes.
    if bytes(envelope.jsonrpc) != b'"2.0"' and not _is_two(bytes(envelope.jsonrpc)):
        raise _invalid('"jsonrpc" must be "2.0"')
    raw_method, result, error = bytes(envelope.method), bytes(envelope.result), bytes(envelope.error)
    if bool(raw_method) + bool(result) + bool(error) != 1:
        # Some peers write every member.
        raw_method, error = (b"" if raw == _NULL else raw for raw in (raw_method, error))
        result = b"" if result == _NULL and (raw_method or error) else result
        if bool(raw_method) + bool(result) + bool(error) != 1:
            raise _invalid('a message must have a "method", or exactly one of "result" and "error"')
    may_be_null = bool(error) or raw_method.startswith(b'"notifications/')
    request_id = _request_id(bytes(envelope.id), may_be_null=may_be_null)
    if not raw_method:
        if request_id is None and result:
            raise _invalid('a response must have the "id" of its request')
        return Envelope(request_id, "", b"", result, error)
    try:
        method = _decode_text(raw_method)
    except ValueError:
        raise _invalid('"method" must be a string') from None
    if not method:
        raise _invalid('"method" must not be empty')
    params = bytes(envelope.params)
    if params and params[:1] != b"{":
        if params not in NO_MEMBERS:
            raise _invalid('"params" must be an object')
        params = b""
    return Envelope(request_id, method, params)


@functools.cache
def _batch_decoder(max_items: int) -> Callable[[bytes], Struct]:
    """Return a decoder for a batch, as a struct with `max_items` members. It stops at the first extra element."""
    members: list[Any] = [(f"m{index}", Raw, _EMPTY) for index in range(max_items)]
    return decoder(msgspec.defstruct("_Batch", members, array_like=True, forbid_unknown_fields=True))


def split_batch(body: bytes, max_items: int) -> list[bytes]:
    """Return the raw elements of a batch array.

    Raises:
        ProtocolError: PARSE_ERROR, or INVALID_REQUEST for a batch that is empty or too large.
    """
    try:
        items = [bytes(item) for item in msgspec.structs.astuple(_batch_decoder(max_items)(body))]
    except msgspec.ValidationError:
        raise _invalid(f"a batch must have at most {max_items} messages") from None
    except MALFORMED as exc:
        raise _unreadable(exc) from exc
    items = [item for item in items if item]
    if not items:
        raise _invalid("a batch must not be empty")
    return items


def result_message(request_id: RequestId, result: bytes) -> bytes:
    """Return a successful response with an encoded result."""
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (encode(request_id), result)


def error_message(request_id: RequestId | None, code: int, message: str, data: Any = None) -> bytes:
    """Return an error response. For an unreadable request the id is omitted, because MCP's schemas don't allow null."""
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    known = {} if request_id is None else {"id": request_id}
    return encode({"jsonrpc": "2.0", **known, "error": error})


def refusal_message(request_id: RequestId | None, exc: ProtocolError) -> bytes:
    """Return the error response for a request that is rejected."""
    return error_message(exc.request_id if request_id is None else request_id, exc.code, exc.message, exc.data)


def notification_message(method: str, params: Any = None) -> bytes:
    """Return a notification. `params` is any encodable value, including `msgspec.Raw`.

    Args:
        method: The method of the notification.
        params: Its parameters, or None for none.

    Example:
        ``notification_message("notifications/message", {"level": "info", "data": "ready"})``
    """
    if params is None:
        return encode({"jsonrpc": "2.0", "method": method})
    return encode({"jsonrpc": "2.0", "method": method, "params": params})


def request_message(request_id: RequestId, method: str, params: Any) -> bytes:
    """Return a request to the peer."""
    given = {} if params is None else {"params": params}
    return encode({"jsonrpc": "2.0", "id": request_id, "method": method, **given})


_MAX_CLIPPED = 200
_MAX_EXCESS = 4
"""Lines longer than this multiple of the limit probably have no end."""


Lines = list[bytes | None]
"""Lines without line ends. A line that's too long is None."""


class LineStart(bytes):
    """The start and the end of a line over the limit."""


class LineSplitter:
    """A splitter of bytes into newline-delimited messages, without I/O, for stdio in both directions.

    Messages end with a newline and don't contain one (MCP 2025-11-25, basic/transports#stdio). A line over the limit is
    reported once, and the rest of it is skipped. The limit bounds memory for any input. If `clip` is set, the line is
    reported at its end, as `LineStart`, unless it's much longer.
    """

    def __init__(self, limit: int, *, clip: bool = False) -> None:
        self._limit = limit
        self._clip = clip
        self._parts: list[bytes] = []
        self._size = 0
        self._skipping = False
        self._start = self._end = b""

    def feed(self, data: bytes) -> Lines:
        """Return the lines completed by `data`."""
        lines: Lines = []
        *complete, rest = data.split(b"\n")
        for piece in complete:
            self._keep(piece, lines)
            if not self._skipping:
                line = b"".join(self._parts).strip(b" \t\r")
                if line:
                    lines.append(line)
            elif self._clip:
                lines.append(LineStart(self._start + self._end.rstrip(b" \t\r")))
            self._parts.clear()
            self._size = 0
            self._skipping = False
        self._keep(rest, lines)
        return lines

    def end(self) -> Lines:
        """Return the bytes after the last newline as a line. Call it at the end of the input."""
        return self.feed(b"\n")

    def _keep(self, piece: bytes, lines: Lines) -> None:
        if not piece or (self._skipping and not self._clip):
            return
        self._size += len(piece)
        if self._size <= self._limit:
            self._parts.append(piece)
            return
        if not self._skipping:
            self._skipping = True
            self._start = self._end = b""
            for each in (*self._parts, piece):
                self._start += each[: _MAX_CLIPPED - len(self._start)]
            self._parts.clear()
        self._end = (self._end + piece[-_MAX_CLIPPED:])[-_MAX_CLIPPED:]
        if not self._clip or self._size > _MAX_EXCESS * self._limit:
            self._clip = False  # report it only once
            lines.append(None)
