"""The type engine of a function, which reads its arguments and encodes its result.

pydantic's validator decides what a type accepts. msgspec reads and writes the types for which tests prove that it does
the same, only faster (`is_simple`). `SchemaCheck` validates against a handwritten schema instead.

Results are encoded as JSON members of the newest result, without braces (``"content":[…]``), so a handler can add
``resultType`` and ``_meta`` without encoding again. A tool's return value: `str` is one text. A content block, or a
list with at least one, is content; `bytes` is an image if it begins like PNG, JPEG, GIF, or WebP, otherwise an embedded
resource; `None` is empty content. Everything else (dataclass, Struct, pydantic model, dict, list, number, bool) is
structured, with the same JSON as text for clients without structured content.
"""

from collections import UserString
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from math import isfinite
from typing import Annotated, Any, TypeGuard, cast, get_args, get_origin

import msgspec
from msgspec import UNSET, Struct, UnsetType

from millstream._protocol.content import (
    BLOCKS,
    Content,
    EmbeddedResource,
    Image,
    Media,
    Message,
    ResourceContents,
    Text,
    image_type,
)
from millstream._protocol.errors import LocalError, MissingExtra
from millstream._protocol.json_schema import Schema, check_schema, drop_modules
from millstream._server.functions.core_types import TypeReader, describe_arguments, read_result
from millstream._server.functions.dependencies import RegistrationError
from millstream._server.functions.msgspec_engine import (
    Engine,
    MsgspecEngine,
    NotJson,
    Output,
    OutputError,
    checked_encoder,
    encode,
    is_structured,
    once_per_type,
    output_error,
)
from millstream._server.functions.parameters import (
    UNIONS,
    WHAT_WORKS,
    ArgumentList,
    Parameter,
    ParameterError,
    PatternError,
    is_simple,
    may_be_type,
    normalize,
    what_to_write,
)
from millstream._server.functions.problems import (
    MAX_SLOW_STEPS,
    MAX_WALKED,
    Matches,
    find_problems,
    place,
    problem_text,
)


def engine_of(arguments: ArgumentList, returns: Any = None) -> Engine:
    """Choose and build the engine of a function.

    Args:
        arguments: The arguments that clients send.
        returns: The result type, if the result is structured.

    Raises:
        ParameterError: The engine doesn't support a parameter. The text identifies it.
        OutputError: The result can't be described.
    """
    are_simple = all(is_simple(each.annotation) for each in arguments.parameters)
    engine = _build(_read_simple if are_simple else _load_core().CoreEngine, arguments)
    if returns is not None and is_simple(returns):
        engine.output = _write_simple(returns)
    elif returns is not None:
        engine.output, engine.write = _load_core().writers_of(returns)
    return engine


def _read_simple(arguments: ArgumentList) -> Engine:
    reader = TypeReader()
    made = [reader.read_argument(each.annotation, each.default) for each in arguments.parameters]
    return MsgspecEngine(arguments, describe_arguments(arguments, reader, made))


@once_per_type
def _write_simple(annotation: Any) -> Output | None:
    try:
        schema = read_result(annotation).schema
    except RegistrationError as error:
        raise OutputError(str(error)) from error
    return Output(schema, checked_encoder(annotation, schema)) if is_structured(schema) else None


def _load_core() -> Any:
    """Import pydantic's validator only for types that need it."""
    return import_module("millstream._server.functions.core_engine")


def _build(kind: Callable[[ArgumentList], Engine], arguments: ArgumentList) -> Engine:
    """Return an engine. If the engine can't read the arguments, find the one to show in the error."""
    try:
        return kind(arguments)
    except (TypeError, RecursionError, NameError):
        for parameter in arguments.parameters:
            where = f"{arguments.function}: parameter {parameter.name!r}"
            try:
                kind(ArgumentList(arguments.function, [parameter]))
            except (RegistrationError, PatternError) as error:
                raise type(error)(f"{where}: {error}.") from error
            except (TypeError, RecursionError, NameError) as error:
                why = drop_modules(str(error)).partition(" - type")[0]
                raise ParameterError(f"{where}: {why}; {WHAT_WORKS}.") from error
        raise


VALUE = "value"


def engine_of_type(annotation: Any) -> Engine:
    """Return the engine of one type, as a function with one parameter, `VALUE`.

    Raises:
        TypeError: The type isn't supported, or it isn't a type.
    """
    if not may_be_type(annotation):
        raise TypeError(f"{annotation!r} can't be read from JSON: {what_to_write(annotation)}.")
    return engine_of(ArgumentList("value", [Parameter(VALUE, VALUE, normalize(annotation), msgspec.NODEFAULT)]))


def read_value(engine: Engine, raw: bytes) -> Any:
    """Return one JSON value of the type of `engine_of_type`.

    Raises:
        ValueError: The value has the wrong type. The text names each problem and its place.
    """
    msgspec.json.decode(raw, type=msgspec.Raw)  # the text must be one value
    wrapped = b'{"%b":%b}' % (VALUE.encode(), raw)
    try:
        return getattr(engine.decode(wrapped), VALUE)
    except msgspec.ValidationError:
        values = decode_integral(wrapped)
    try:
        return getattr(engine.convert(values), VALUE)
    except msgspec.ValidationError as error:
        problems = engine.problems(error, values)
        raise ValueError("; ".join(f"{place(each.path[1:])} {each.text}".strip() for each in problems)) from error


def _whole(text: str) -> float:
    value = float(text)
    if value.is_integer():
        return int(value)
    if not isfinite(value):
        raise ValueError("Number out of range")
    return value


decode_integral = msgspec.json.Decoder(float_hook=_whole).decode
"""Decodes JSON with ``2.0`` as the integer 2, as JSON Schema does."""


def decoder_of(annotation: Any) -> Callable[[bytes], Any]:
    """Return a decoder of one JSON value, which raises ValueError for a value of the wrong type.

    Raises:
        TypeError: The type isn't supported.
    """
    return partial(read_value, engine_of_type(annotation))


MAX_BACKTRACKS = 10_000
"""Maximum steps of a `pattern` with lookaround or backreferences on one string. All other patterns take linear time."""
MAX_REASONS = 3


class SchemaCheck:
    """A compiled schema.

    `jsonschema-rs` validates in time that grows with the value, not with the number of paths through the schema. Its
    list of errors has no such bound, so `problems` finds the reasons. References are never fetched. The library is an
    extra, loaded when such a schema is registered (docs/decisions/0008).

    Raises:
        ValueError: The schema is invalid. The message identifies the problem and its location.
        ImportError: The library isn't installed.
    """

    def __init__(self, schema: Schema, *, whole: str, object_root: bool = True) -> None:
        check_schema(schema, object_root=object_root)
        try:
            import jsonschema_rs  # noqa: PLC0415  an extra
        except ImportError:
            raise MissingExtra("Validating arguments against a handwritten schema", "schema") from None
        patterns = jsonschema_rs.FancyRegexOptions(backtrack_limit=MAX_BACKTRACKS)
        compiled = partial(jsonschema_rs.Draft202012Validator, offline=True, pattern_options=patterns)
        try:
            validator = compiled(schema)
        except jsonschema_rs.ValidationError as error:
            raise ValueError(f"#{''.join(f'/{each}' for each in error.instance_path)}: {error.message}") from error
        self.fits: Callable[[Any], bool] = validator.is_valid
        """Returns whether a JSON value is valid."""

        @cache
        def check_of(pattern: str) -> Callable[[Any], bool]:
            return compiled({"pattern": pattern}).is_valid

        self._matches: Matches = lambda pattern, text: check_of(pattern)(text)
        self._schema = schema
        self._whole = whole
        """The name for the whole value."""

    def reasons(self, value: Any, size: int) -> str:
        """Explain how to fix an invalid value: ``'a.b' must be an integer, got a string; missing 'c'``.

        Args:
            value: The JSON value.
            size: The size of its JSON in bytes. Large values aren't examined.
        """
        found = (
            find_problems(self._schema, value, matches=self._matches, formats=False, steps=MAX_SLOW_STEPS)
            if size <= MAX_WALKED
            else []
        )
        if not found:
            return f"{self._whole} must match the schema"
        return problem_text(found, whole=self._whole, most=MAX_REASONS)


CONTENT: tuple[type, ...] = (*BLOCKS, bytes, bytearray, UserString)
"""Classes of values that are content by themselves."""
BYTES_URI = "resource://result"
"""The URI of bytes that a tool returns, because an embedded resource requires one."""


class ToolResult(Struct, frozen=True):
    """An explicit result: ``ToolResult(content=["done", image], structured={"n": 1})``.

    Without `content`, the text repeats `structured`. `encode_result` doesn't include `meta`; the handler merges it with
    its own.
    """

    content: str | Content | list[str | Content] = []
    structured: Any | UnsetType = UNSET
    is_error: bool = False
    meta: dict[str, Any] | None = None


def may_be_content(annotation: Any) -> bool:
    """Return whether values of a type are or can contain content. Such a type has no output schema."""
    return _is_content(annotation) or _may_hold_content(annotation)


def _is_content(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, (ToolResult, *CONTENT)):
        return True
    return get_origin(annotation) is not dict and any(map(_is_content, get_args(annotation)))


def _may_hold_content(annotation: Any) -> bool:
    """Return whether a type is, or has as an alternative, a list or tuple of unknown items."""
    if annotation in (list, tuple):
        return True
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (list, tuple):
        return any(part in (Any, object) for part in parts)
    return origin in (*UNIONS, Annotated) and any(map(_may_hold_content, parts))


def output_from_schema(schema: Schema) -> Output:
    """Return the output of a handwritten schema.

    Raises:
        ValueError: The schema is invalid.
        ImportError: The extra for schema checks isn't installed.
    """
    check = SchemaCheck(schema, whole="the result", object_root=False)

    def encode_checked(value: Any) -> bytes:
        data = encode(value)
        if not check.fits(written := msgspec.json.decode(data)):
            raise output_error(check.reasons(written, len(data)))
        return data

    return Output(schema, encode_checked)


def encode_result(value: Any, output: Output | None = None) -> bytes:
    """Return the members of a tool result: ``encode_result({"n": 1})``

    Args:
        value: The return value of the tool's function.
        output: Its output schema, if there's one.

    Raises:
        LocalError: The value doesn't match `output`.
        TypeError: The value isn't JSON-serializable.
        UnicodeEncodeError: Its text has a lone surrogate.
    """
    if output is None:
        if type(value) is str:
            return b'"content":[{"type":"text","text":%b}]' % encode(value)
        blocks = _blocks(value)
        if blocks is not None:
            return b'"content":%b' % encode(blocks)
    if isinstance(value, ToolResult):
        return _explicit(value, output)
    return _encode_structured(value, output)


def encode_value(value: Any, output: Output | None) -> bytes:
    """Return the JSON of a structured value. Raises the errors of `encode_result`."""
    try:
        return encode(value) if output is None else output.encode(value)
    except RecursionError:
        raise NotJson(
            "the result contains itself, is nested too deeply for JSON, or has a dict whose keys aren't text or numbers"
        ) from None


def _encode_structured(value: Any, output: Output | None) -> bytes:
    data = encode_value(value, output)
    return b'"content":[{"type":"text","text":%b}],"structuredContent":%b' % (encode(data.decode()), data)


def _explicit(result: ToolResult, output: Output | None) -> bytes:
    items = result.content if isinstance(result.content, list) else [result.content]
    structured = b""
    if result.structured is not UNSET:
        data = encode_value(result.structured, None if result.is_error else output)
        structured, items = b',"structuredContent":%b' % data, items or [data.decode()]
    elif output is not None and not result.is_error:
        raise output_error("it has no structured value")
    members = b'"content":%b%b' % (encode([_given_block(item) for item in items]), structured)
    return members + b',"isError":true' if result.is_error else members


def _blocks(value: Any) -> list[Content] | None:
    """Return the content blocks of a value, or `None` if it's structured."""
    if value is None:
        return []
    if isinstance(value, CONTENT):
        return [_block(value)]
    if _is_several(value) and any(isinstance(item, BLOCKS) for item in value):
        return [_block(item) for item in value]
    return None


def _is_several(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple)


def _block(item: Any) -> Content:
    if isinstance(item, BLOCKS):
        return item  # type: ignore[return-value]  # BLOCKS are the members of Content
    if isinstance(item, bytes | bytearray):
        item = bytes(item)
        if media := image_type(item):
            return Image(item, media)
        return EmbeddedResource(BYTES_URI, blob=item, mime_type="application/octet-stream")
    return Text(as_text(item))


def _given_block(item: Any) -> Content:
    """Return a content block. A dict can be one, as in other packages."""
    if isinstance(item, dict):
        with suppress(msgspec.ValidationError):
            return cast("Content", msgspec.convert(item, Content))
    return _block(item)


def as_text(value: Any) -> str:
    """Return a value as text: itself, the text of a `Text`, or JSON. Streaming tools report their progress with it."""
    if isinstance(value, str | UserString):
        return str(value)
    return value.text if isinstance(value, Text) else encode(value).decode()


def encode_messages(value: Any) -> bytes:
    """Return the members of a prompt: a string, content block, or `Message`, or a list of them.

    Strings and blocks have the role user. A dict with a role and content is a message, as in other packages.
    """
    messages = [each for message in read_messages(value) for each in message.one_by_one()]
    for message in messages:
        if not isinstance(message.content, BLOCKS):
            raise LocalError(
                f"a prompt contains a {type(message.content).__name__}, which is allowed only in sampling messages"
            )
    return b'"messages":%b' % encode(messages)


def read_messages(value: Any) -> list[Message]:
    """Return messages: ``read_messages(["Look:", Image(data, "image/png")])``. Text and blocks are from the user."""
    return [_message(item) for item in (value if _is_several(value) else [value])]


def _message(item: Any) -> Message:
    if isinstance(item, Message):
        return item
    if isinstance(item, dict) and item.keys() == {"role", "content"}:
        try:
            return msgspec.convert(item, Message)
        except msgspec.ValidationError as exc:
            raise LocalError(f"a message has the role user or assistant, and text or content blocks: {exc}") from exc
    if item is None or isinstance(item, ToolResult):
        what = "nothing" if item is None else "a ToolResult"
        raise LocalError(f"the prompt returned {what}. Return text, content, or messages instead")
    return Message("user", _block(item))


def encode_contents(value: Any, uri: str, mime_type: str | None = None, meta: Mapping[str, Any] | None = None) -> bytes:
    """Return the members of a resource: text, bytes, or any other value as JSON.

    `EmbeddedResource`, or a list of them, sets several contents with their own URIs. Each content has `meta`, which the
    `meta` of an `EmbeddedResource` overrides.

    Raises:
        LocalError: The value is `None`, which isn't content.
    """
    if value is None:
        raise LocalError(f"the resource {uri} returned nothing")
    items = value if _is_several(value) and any(isinstance(item, BLOCKS) for item in value) else [value]
    return b'"contents":%b' % encode([_contents(item, uri, mime_type, meta) for item in items])


def _contents(value: Any, uri: str, mime_type: str | None, meta: Mapping[str, Any] | None) -> ResourceContents:
    if isinstance(value, EmbeddedResource):
        return _own_contents(value, uri, meta)
    text: str | None = None
    blob: bytes | None = None
    if isinstance(value, Media):
        value, mime_type = value.data, mime_type or value.mime_type
    elif isinstance(value, Text):
        value = value.text
    elif isinstance(value, (ToolResult, *BLOCKS)):
        raise LocalError(f"the resource {uri} returned a {type(value).__name__}. Return text, bytes, or data instead")
    if isinstance(value, str):
        usual, text = "text/plain", value
    elif isinstance(value, bytes | bytearray):
        usual, blob = "application/octet-stream", bytes(value)
    else:
        usual, text = "application/json", encode(value).decode()
    contents = ResourceContents("", mime_type or usual, text, blob, dict(meta) if meta else None)
    return msgspec.structs.replace(contents, uri=uri)  # in the client's spelling


def _own_contents(item: EmbeddedResource, uri: str, meta: Mapping[str, Any] | None) -> ResourceContents:
    contents = item.resource
    assert contents is not None  # noqa: S101  `EmbeddedResource` makes one of its other fields
    if not contents.uri:
        contents = msgspec.structs.replace(contents, uri=uri)
    about = {**(meta or {}), **(item.meta or {}), **(contents.meta or {})}
    return msgspec.structs.replace(contents, meta=about) if about else contents
