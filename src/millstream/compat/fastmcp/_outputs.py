"""What a tool's return annotation promises: an output schema, and how values become structured content."""

import inspect
from collections.abc import Callable, Sequence
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    Literal,
    NoReturn,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from msgspec import Struct

from millstream.compat._pydantic_parts import (
    BaseModel,
    ConfigDict,
    GenerateJsonSchema,
    JsonSchemaWarningKind,
    PydanticUserError,
    RootModel,
    SchemaError,
    TypeAdapter,
    ValidationError,
    create_model,
    to_jsonable_python,
)
from millstream.compat.fastmcp._conversion import BLOCK_NAMES
from millstream.compat.fastmcp._exceptions import InvalidSignature
from millstream.compat.fastmcp._injection import is_union
from millstream.compat.fastmcp._media import Audio, File, Image
from millstream.compat.fastmcp._signatures import inlined, untitled
from millstream.compat.fastmcp._ways import Ways

_PLAIN = (str, int, float, bool, bytes, type(None))
_REFUSED = (PydanticUserError, TypeError, ValueError, SchemaError, ValidationError)
"""What pydantic raises for a type that has no schema."""


class Promise(Struct, frozen=True):
    """An output schema, and what makes a value fit it."""

    schema: dict[str, Any]
    structure: Callable[[Any], dict[str, Any]]
    """Structured content of a value. Raises pydantic.ValidationError."""
    check: Callable[[Any], object] | None = None
    """Of structured content that a function made itself."""
    wrapped: bool = False


class _Strict(GenerateJsonSchema):
    """Refuses what it can only describe with a warning."""

    def emit_warning(self, kind: JsonSchemaWarningKind, detail: str) -> NoReturn:
        raise ValueError(f"JSON schema warning: {kind} - {detail}")


def promise_of(returns: Any, name: str, ways: Ways, *, structured: bool | None = None) -> Promise | None:
    """What a return annotation promises; None for nothing.

    Args:
        returns: the annotation; `inspect.Signature.empty` for none.
        name: of the function.
        ways: of the library.
        structured: whether there has to be a promise, or must not; None leaves it to the annotation.

    Raises:
        InvalidSignature: there has to be one, and the annotation makes none.
    """
    if structured is False:
        return None
    if returns is inspect.Signature.empty:
        if structured:
            raise InvalidSignature(f"Function {name}: return annotation required for structured output")
        return None
    made = _as_sdk(returns, name) if ways.titles else _standalone(returns, ways)
    if made is None and structured:
        raise InvalidSignature(f"Function {name}: return type {returns} is not serializable for structured output")
    return made


class _ByConfig(_Strict):
    """Names fields as they are written: by their aliases only where a model says so."""

    def model_schema(self, schema: Any) -> dict[str, Any]:
        before, self.by_alias = self.by_alias, bool(schema["cls"].model_config.get("serialize_by_alias"))
        try:
            return super().model_schema(schema)
        finally:
            self.by_alias = before


# As the official SDK does.


def _as_sdk(returns: Any, name: str) -> Promise | None:
    annotation = get_args(returns)[0] if get_origin(returns) is Annotated else returns
    if annotation is Final or get_origin(annotation) in (Final, ClassVar):
        raise InvalidSignature(f"Function {name}: return annotation contains an invalid type qualifier")
    if is_union(annotation) and any(_is_result(part) for part in get_args(annotation)):
        raise InvalidSignature(
            f"Function {name}: CallToolResult cannot be used in Union or Optional types. "
            "To return empty results, use: CallToolResult(content=[])"
        )
    if _is_result(annotation):
        if annotation is returns:
            return None
        first, *others = get_args(returns)[1:]
        annotation = first
        returns = Annotated[(first, *others)] if others else first
    model, wrapped = _model(annotation, returns, name)
    if model is None:
        return None
    try:
        schema = model.model_json_schema(schema_generator=_Strict)
    except _REFUSED:
        return None
    held: type[BaseModel] = model

    def structure(value: Any) -> dict[str, Any]:
        found = held.model_validate({"result": value} if wrapped else value)
        return found.model_dump(mode="json", by_alias=True)

    return Promise(_rooted(schema), structure, held.model_validate, wrapped)


def _is_result(annotation: Any) -> bool:
    return isinstance(annotation, type) and annotation.__name__ == "CallToolResult"


def _model(annotation: Any, returns: Any, name: str) -> tuple[type[BaseModel] | None, bool]:
    """The model of a return annotation, and whether its values stand under `result`."""
    if get_origin(annotation) is dict and get_args(annotation)[:1] == (str,):
        return type(f"{name}DictOutput", (RootModel[annotation],), {"__module__": __name__}), False
    if get_origin(annotation) is None and isinstance(annotation, type) and annotation not in _PLAIN:
        return _class_model(annotation), False
    try:
        return create_model(f"{name}Output", result=(returns, ...)), True
    except _REFUSED:
        return None, False


def _class_model(annotation: type[Any]) -> type[BaseModel] | None:
    if issubclass(annotation, BaseModel):
        return annotation
    hints = get_type_hints(annotation, include_extras=True) if annotation is not object else {}
    hints = {field: hint for field, hint in hints.items() if not field.startswith("_")}
    if not hints:
        return None
    fields: dict[str, Any]
    if is_typeddict(annotation):
        required: frozenset[str] = getattr(annotation, "__required_keys__", frozenset())
        fields = {field: hint if field in required else (hint, None) for field, hint in hints.items()}
        return _created(annotation.__name__, fields, ConfigDict())
    fields = {
        field: (hint, getattr(annotation, field)) if hasattr(annotation, field) else hint
        for field, hint in hints.items()
    }
    return _created(annotation.__name__, fields, ConfigDict(from_attributes=True))


def _created(name: str, fields: dict[str, Any], config: ConfigDict) -> type[BaseModel] | None:
    try:
        return create_model(name, __config__=config, **fields)
    except _REFUSED:
        return None


def _rooted(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema whose root is an object: a type that contains itself is only a reference there."""
    reference = schema.get("$ref", "")
    if not reference.startswith("#/$defs/") or "type" in schema:
        return schema
    return {**schema["$defs"][reference.removeprefix("#/$defs/")], "$defs": schema["$defs"]}


# As fastmcp does.


def _standalone(returns: Any, ways: Ways) -> Promise | None:
    if returns in (None, type(None), Any, ...) or _promises_content(returns) or _says_nothing(returns):
        return None
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(returns)
        schema = adapter.json_schema(mode="serialization", schema_generator=_ByConfig)
    except _REFUSED:
        return None
    schema = inlined(_rooted(untitled(schema)))
    wrapped = not (schema.get("type") == "object" or "properties" in schema)
    if wrapped:
        definitions = schema.pop("$defs", None)
        inner = schema
        schema = {"type": "object", "properties": {"result": inner}, "required": ["result"], ways.wrap_mark: True}
        if definitions is not None:
            schema["$defs"] = definitions

    def structure(value: Any) -> dict[str, Any]:
        try:
            found = adapter.dump_python(value, mode="json", warnings=False)
        except ValueError:
            found = to_jsonable_python(value, fallback=str)
        return {"result": found} if wrapped else cast("dict[str, Any]", found)

    return Promise(schema, structure, None, wrapped)


def promise_by_hand(schema: dict[str, Any], ways: Ways) -> Promise:
    """The promise of a schema that the program wrote.

    Raises:
        ValueError: it does not describe an object.
    """
    if schema.get("type", "object") != "object" and "properties" not in schema:
        raise ValueError(
            f"Output schemas must represent object types due to MCP spec limitations. Received: {schema!r}"
        )
    wrapped = bool(ways.wrap_mark and schema.get(ways.wrap_mark))

    def structure(value: Any) -> dict[str, Any]:
        found = to_jsonable_python(value, fallback=str)
        return {"result": found} if wrapped else cast("dict[str, Any]", found)

    return Promise(schema, structure, None, wrapped)


def _says_nothing(annotation: Any) -> bool:
    """Whether it is a list of anything: a schema of that would say nothing, and images in it would be sent twice."""
    kind, parts = get_origin(annotation) or annotation, get_args(annotation)
    if kind is Annotated:
        return _says_nothing(parts[0])
    return kind in (list, tuple, Sequence) and all(each in (Any, ...) for each in parts)


def _promises_content(annotation: Any) -> bool:
    """Whether values are content, bytes or whole results, alone or in a list."""
    if annotation in (bytes, list, tuple) or get_origin(annotation) is Literal:
        return annotation is bytes
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return issubclass(annotation, Image | Audio | File) or annotation.__name__ in BLOCK_NAMES | {
            "CallToolResult",
            "ToolResult",
        }
    if get_origin(annotation) is dict:
        return False
    return any(_promises_content(part) for part in get_args(annotation))
