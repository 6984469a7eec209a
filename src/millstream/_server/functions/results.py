"""What a function may return, and the members of the newest result that it becomes.

Each function gives the JSON members without the braces (``"content":[…]``), so that a handler can splice
``resultType`` and ``_meta`` beside them without encoding again.

A tool's natural values: `str` is one text; a content block, or a list with at least one, is content; `bytes` is an
image when it begins like PNG, JPEG, GIF or WebP, and otherwise an embedded resource; `None` is empty content. All
else (dataclass, Struct, pydantic model, dict, list, number, bool) is structured, with the same JSON as text for
readers without structured content.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from types import UnionType
from typing import Annotated, Any, TypeGuard, Union, get_args, get_origin

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from millstream._protocol.content import BLOCKS, Content, EmbeddedResource, Image, Message, ResourceContents, Text
from millstream._protocol.errors import LocalError
from millstream._protocol.json_schema import (
    LOOSE,
    NO_NUMBER,
    Schema,
    has_no_number,
    schema_of,
    with_numbers,
    without_formats,
)
from millstream._protocol.schema_details import Find, decimal_check
from millstream._server.functions.pydantic_types import (
    NotJson,
    adapted,
    check_model,
    dec_hook,
    enc_hook,
    is_model,
    knows,
    schema_hook,
    strict_hook,
)
from millstream._server.functions.schema_check import SchemaCheck

ENCODER = msgspec.json.Encoder(enc_hook=enc_hook)
encode = ENCODER.encode

STRUCTURED = frozenset(("object", "array", "integer", "number", "boolean", "null"))
PICTURES = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))
CONTENT: tuple[type, ...] = (*BLOCKS, bytes)
"""Classes of values that are content by themselves."""
BYTES_URI = "resource://result"
"""The URI of bytes that a tool returns: content needs one, and these have no address."""
NO_DECIMAL = "got a Decimal that is NaN or an infinity, and the schema has no text for these"


class ToolResult(Struct, frozen=True):
    """A result spelled out: ``ToolResult(content=["done", image], structured={"n": 1})``.

    `content` without a value repeats `structured` as text. `meta` is not part of what `encode_result` gives: the
    handler merges it with its own.
    """

    content: str | Content | list[str | Content] = []
    structured: Any | UnsetType = UNSET
    is_error: bool = False
    meta: dict[str, Any] | None = None


class Output(Struct, frozen=True):
    """What a tool promises to return, and how the promise is checked.

    The JSON that was written is read back: as the type of the annotation, or to be checked against a schema written
    by hand.
    """

    schema: Schema
    decoder: msgspec.json.Decoder[Any] | None = None
    trusted: type | None = None
    """Values of exactly this class are not read back: the class checks itself, or reading has effects."""
    model: bool = False
    """The values are of a pydantic model. Those can be made or changed without a check."""
    by_hand: SchemaCheck | None = None
    write: Callable[[Any], Any] | None = None
    """Makes builtins of values that are written otherwise than they're read: a model's serializers, computed fields and
    aliases."""
    rows: "BuiltinsOutput | None" = None
    """What is sent of builtins instead of a model, such as rows of a database."""

    def written(self, value: Any) -> Any:
        """What is encoded instead of a value.

        Raises:
            LocalError: it isn't what was promised.
        """
        if self.write is None:
            return value
        try:
            return self.write(value)
        except (msgspec.ValidationError, ValueError) as error:
            raise _broken(error, value) from None

    def check(self, value: Any, data: bytes) -> bytes:
        """Compare a value and its JSON with the promise; gives the JSON to send.

        Raises:
            LocalError: naming the field.
        """
        if self.decoder is not None:
            try:
                if self.rows is not None and type(value) is not self.trusted and self.rows.has(value):
                    return self._of_rows(value, data, self.rows)
                if type(value) is not self.trusted:
                    self.decoder.decode(data)
                elif self.model:
                    dumped = check_model(self.trusted, value)
                    if b"null" in data:
                        with_numbers(dumped)
            except (msgspec.ValidationError, ValueError) as error:
                raise _broken(error, value) from None
        elif self.by_hand is not None and not self.by_hand.fits(written := msgspec.json.decode(data)):
            reasons = self.by_hand.reasons(written, len(data))
            raise LocalError(f"the result does not fit the output schema: {reasons}")
        return data

    def _of_rows(self, value: Any, data: bytes, rows: "BuiltinsOutput") -> bytes:
        try:
            rows.decoder.decode(data)
        except (msgspec.ValidationError, ValueError):
            return encode(rows.write(value))
        return data


class BuiltinsOutput(Struct, frozen=True):
    """What is sent of builtins instead of a model: as they are, or as the model where only pydantic reads them so."""

    has: Callable[[Any], bool]
    """Whether a value has some."""
    decoder: msgspec.json.Decoder[Any]
    """Reads what the schema has, and not all that pydantic does: ``"1"`` as a number, names beside aliases."""
    write: Callable[[Any], Any]
    """As that of `Output`."""


def _broken(error: Exception, value: Any) -> LocalError:
    why = str(error)
    if "got `null`" in why and has_no_number(msgspec.to_builtins(value, enc_hook=enc_hook)):
        why = why.replace("got `null`", NO_NUMBER)
    return LocalError(f"the result does not fit the output schema: {why}")


class DecimalOutput(Output, frozen=True):
    """The same, of values with decimal numbers."""

    decimals: Find | None = None

    def check(self, value: Any, data: bytes) -> bytes:
        """See `Output`."""
        data = Output.check(self, value, data)
        if self.decimals is None or (b"NaN" not in data and b"Infinity" not in data):
            return data
        if (place := self.decimals(msgspec.json.decode(data))) is not None:
            where = f" - at `${place}`" if place else ""
            raise LocalError(f"the result does not fit the output schema: {NO_DECIMAL}{where}")
        return data


def output_of(annotation: Any, readable: Any = None) -> Output | None:
    """The promise that a return annotation makes; `readable` is the same in msgspec's terms.

    `None` for text, bytes, content, `Any` and lists of anything (which may hold content).

    Raises:
        TypeError: for a type that nobody can describe.
    """
    if _is_content(annotation) or _may_hold_content(annotation):
        return None
    annotation = annotation if readable is None else readable
    models: list[Any] = []

    def written(part: Any) -> Schema:
        models.append(part)
        return schema_hook(part, "serialization")

    try:
        differs = schema_of(annotation, hook=written) != schema_of(annotation, hook=schema_hook)
        write = _written_models().writer(annotation, models) if differs else None
        rows = _rows(annotation, models) if models and not differs else None
        schema = schema_of(annotation, hook=lambda part: without_formats(written(part), LOOSE), written=True)
    except TypeError:
        if not knows(annotation):
            raise
        annotation = adapted(annotation)
        schema, write, rows = without_formats(annotation.schema, LOOSE), None, None
    if not _is_structured(schema):
        return None
    model = is_model(annotation)
    trusted = annotation if model or hasattr(annotation, "__post_init__") else None
    decoder: msgspec.json.Decoder[Any] | None = None
    if write is None:
        decoder = msgspec.json.Decoder(annotation, dec_hook=dec_hook)
    if (decimals := decimal_check(schema)) is not None:
        return DecimalOutput(schema, decoder, trusted, model=model, write=write, rows=rows, decimals=decimals)
    return Output(schema, decoder, trusted, model=model, write=write, rows=rows)


def _rows(annotation: Any, models: list[Any]) -> BuiltinsOutput | None:
    module = _written_models()
    has = module.finds_builtins(annotation)
    if has is None:
        return None
    decoder = msgspec.json.Decoder(annotation, dec_hook=strict_hook)
    return BuiltinsOutput(has, decoder, module.writer(annotation, models))


def _written_models() -> Any:
    return import_module("millstream._server.functions.written_models")


def output_from_schema(schema: Schema) -> Output:
    """The promise of an output schema written by hand.

    Raises:
        ValueError: for a schema that cannot be served.
        ImportError: the extra that checks it is not installed.
    """
    return Output(schema, by_hand=SchemaCheck(schema, whole="the result", object_root=False))


def _is_content(annotation: Any) -> bool:
    if annotation in (bytes, ToolResult, *BLOCKS):
        return True
    return get_origin(annotation) is not dict and any(_is_content(part) for part in get_args(annotation))


def _may_hold_content(annotation: Any) -> bool:
    """A list or tuple that says nothing about its items, alone or as an alternative."""
    if annotation in (list, tuple):
        return True
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (list, tuple):
        return any(part in (Any, object) for part in parts)
    return origin in (Union, UnionType, Annotated) and any(_may_hold_content(part) for part in parts)


def _is_structured(schema: Schema) -> bool:
    """Every alternative is something other than text, and not all are null."""
    kinds = set(_kinds(schema))
    return kinds <= STRUCTURED and kinds != {"null"}


def _kinds(schema: Schema) -> Iterator[str | None]:
    for part in schema.get("anyOf", ()):
        yield from _kinds(part)
    if "anyOf" not in schema:
        yield schema.get("type", "object" if "$ref" in schema else None)


def encode_result(value: Any, output: Output | None = None) -> bytes:
    """The members of a tool result.

    Raises:
        LocalError: when the value is not what `output` promises.
        TypeError: for a value that cannot be written as JSON.
    """
    if output is None:
        if type(value) is str:
            return b'"content":[{"type":"text","text":%b}]' % encode(value)
        blocks = _blocks(value)
        if blocks is not None:
            return b'"content":%b' % encode(blocks)
    if isinstance(value, ToolResult):
        return _explicit(value, output)
    return _structured(value, output)


def _structured(value: Any, output: Output | None) -> bytes:
    try:
        value = value if output is None else output.written(value)
        data = encode(value)
    except RecursionError:
        raise NotJson("the result contains itself, or is too deep for JSON") from None
    if output is not None:
        data = output.check(value, data)
    return b'"content":[{"type":"text","text":%b}],"structuredContent":%b' % (encode(data.decode()), data)


def _explicit(result: ToolResult, output: Output | None) -> bytes:
    if output is not None and not result.is_error:
        if result.structured is UNSET:
            raise LocalError("the result does not fit the output schema: it has no structured value")
        if output.write is not None:
            result = msgspec.structs.replace(result, structured=output.written(result.structured))
        data = output.check(result.structured, encode(result.structured))
        if output.rows is not None:
            result = msgspec.structs.replace(result, structured=Raw(data))
    items = result.content if isinstance(result.content, list) else [result.content]
    if result.structured is UNSET:
        members = b'"content":%b' % encode([_block(item) for item in items])
    elif items:
        blocks = [_block(item) for item in items]
        members = b'"content":%b,"structuredContent":%b' % (encode(blocks), encode(result.structured))
    else:
        members = _structured(result.structured, None)
    return members + b',"isError":true' if result.is_error else members


def _blocks(value: Any) -> list[Content] | None:
    """The content that a value is, or `None` when it is structured."""
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
    if isinstance(item, bytes):
        for start, mime_type in PICTURES:
            if item.startswith(start):
                return Image(item, mime_type)
        if item[:4] == b"RIFF" and item[8:12] == b"WEBP":
            return Image(item, "image/webp")
        return EmbeddedResource(BYTES_URI, blob=item, mime_type="application/octet-stream")
    return Text(as_text(item))


def as_text(value: Any) -> str:
    """A value as text: itself, the text of a `Text`, or JSON. Streaming tools report what they yield with it."""
    if isinstance(value, str):
        return value
    return value.text if isinstance(value, Text) else encode(value).decode()


def encode_messages(value: Any) -> bytes:
    """The members of a prompt: a string, content block or `Message`, or a list of these.

    Strings and blocks are said by the user.
    """
    items = value if _is_several(value) else [value]
    several = [item if isinstance(item, Message) else Message("user", _block(item)) for item in items]
    messages = [each for message in several for each in message.one_by_one()]
    for message in messages:
        if not isinstance(message.content, BLOCKS):
            raise LocalError(f"a prompt holds {type(message.content).__name__}, which only sampling messages may")
    return b'"messages":%b' % encode(messages)


def encode_contents(value: Any, uri: str, mime_type: str | None = None, meta: Mapping[str, Any] | None = None) -> bytes:
    """The members of a resource: text, bytes, or any other value as JSON.

    `EmbeddedResource` (or a list of them) spells out several contents with their own URIs. Each content has `meta`,
    and what an `EmbeddedResource` says itself comes first.

    Raises:
        LocalError: for `None`, which isn't content.
    """
    items = value if _is_several(value) else [value]
    if items and all(isinstance(item, EmbeddedResource) for item in items):
        return b'"contents":%b' % encode([_contents(item, uri, meta) for item in items])
    if value is None:
        raise LocalError(f"the resource {uri} returned nothing")
    about = dict(meta) if meta else None
    if isinstance(value, str):
        contents = ResourceContents(uri, mime_type or "text/plain", text=value, meta=about)
    elif isinstance(value, bytes):
        contents = ResourceContents(uri, mime_type or "application/octet-stream", blob=value, meta=about)
    else:
        contents = ResourceContents(uri, mime_type or "application/json", text=encode(value).decode(), meta=about)
    return b'"contents":[%b]' % encode(contents)


def _contents(item: EmbeddedResource, uri: str, meta: Mapping[str, Any] | None) -> ResourceContents:
    contents = item.resource
    assert contents is not None  # noqa: S101  `EmbeddedResource` makes one of its other fields
    if not contents.uri:
        contents = msgspec.structs.replace(contents, uri=uri)
    about = {**(meta or {}), **(item.meta or {}), **(contents.meta or {})}
    return msgspec.structs.replace(contents, meta=about) if about else contents
