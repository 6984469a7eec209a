"""pydantic models as parameters and results, and `pydantic.Field` as constraints: the only module that knows pydantic.

A program that uses a model has imported pydantic, so a look into `sys.modules` is enough, and programs without it pay
nothing. It is imported here only for a type that nobody else can read (`available`). The two hooks are given to every
msgspec decoder and encoder of `server/`.
"""

import collections.abc
import functools
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePath
from types import UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from msgspec import NODEFAULT, Meta
from msgspec.json import schema_components

from millstream._protocol.json_schema import Schema, is_object, shown
from millstream._server.functions.callables import Refused
from millstream._server.functions.choices import PATH, is_path, path_of
from millstream._server.functions.fields import CONSTRAINTS
from millstream._server.functions.stand_ins import StandIn, has_fields, stand_in, unaliased

_HOMES = ("pydantic", "pydantic_core", "pydantic_extra_types")
_MARKS = ("get_pydantic_core_schema", "pydantic_validator", "pydantic_config")
_BEING_READ: set[Any] = set()
ANYTHING: Schema = {"description": "Any JSON value."}
"""Instead of an empty schema, which msgspec takes for none."""
MAX_PROBLEMS = 1_000
MAX_LISTED = 20
MAX_SHOWN = 80
COLLECTIONS: tuple[Any, ...] = (
    *(list, set, frozenset, tuple, dict),
    *(getattr(collections.abc, name) for name in ("Sequence", "MutableSequence", "Collection", "Set", "MutableSet")),
    *(collections.abc.Mapping, collections.abc.MutableMapping),
)
"""Types whose arguments `rewritten` gives to msgspec in its own terms; in those of other types it sees its `Meta`."""


class NotJson(TypeError):
    """A value that nobody can write as JSON; the text says which, and says all there is to say."""


def available() -> bool:
    """Whether pydantic can be asked about a type. Loads it, where it is installed."""
    try:
        for name in ("pydantic.errors", "pydantic.fields", "pydantic.json_schema", "pydantic.type_adapter"):
            importlib.import_module(name)
    except ImportError:
        return False
    return True


def knows(annotation: Any) -> bool:
    """Whether pydantic, where the program has loaded it, can describe a type."""
    try:
        return "pydantic" in sys.modules and bool(adapted(annotation).schema)
    except TypeError:
        return False


def is_model(annotation: Any) -> bool:
    """Whether this is a class derived from ``pydantic.BaseModel``."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)


def uses_pydantic(annotation: Any) -> bool:
    """Whether pydantic reads values of a type, or parts of them."""
    asked: list[Any] = []

    def hook(part: Any) -> Schema:
        asked.append(part)
        return {"type": "object"}

    schema_components((annotation,), schema_hook=hook)
    return bool(asked)


def dec_hook(annotation: Any, value: Any) -> Any:
    """Build what msgspec does not know from JSON values.

    Raises:
        ValueError: for a value the model refuses; msgspec adds where it stands.
        TypeError: for a class that isn't a model.
    """
    if isinstance(annotation, StandIn):
        return annotation.read(value)
    if is_path(annotation):
        return path_of(annotation, value)
    if not is_model(annotation):
        raise TypeError(f"{annotation.__name__} cannot be read from JSON")
    return _validated(annotation.model_validate, value)


def strict_hook(annotation: Any, value: Any) -> Any:
    """As `dec_hook`, and a model reads no more than its schema has. It refuses texts of dates and the like, too."""
    if not is_model(annotation):
        return dec_hook(annotation, value)
    return annotation.__pydantic_validator__.validate_python(value, strict=True, by_alias=True, by_name=False)


def _validated(validate: Callable[[Any], Any], value: Any) -> Any:
    try:
        return validate(value)
    except sys.modules["pydantic"].ValidationError as error:
        raise ValueError(_problems(error)) from error


def _problems(error: Any) -> str:
    count: int = error.error_count()
    if count > MAX_PROBLEMS:
        return f"there are {count:,} problems with it"  # naming one means building all
    shown = [_problem(item) for item in error.errors(include_url=False)[:MAX_LISTED]]
    return "; ".join(shown if count <= MAX_LISTED else [*shown, f"and {count - MAX_LISTED} more"])


def _problem(item: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in item["loc"])
    text = f"{where}: {item['msg']}" if where else str(item["msg"])
    value = item["input"]
    if not isinstance(value, str | int | float):
        return text  # an object shows too much; a `SecretStr` is none of these
    got = json.dumps(value[: MAX_SHOWN + 1] if isinstance(value, str) else value)
    return f"{text}, got {got if len(got) <= MAX_SHOWN else got[:MAX_SHOWN] + '…'}"


def enc_hook(value: Any) -> Any:
    """Turn what msgspec does not know into JSON values.

    Raises:
        NotJson: for a value that nobody can write.
    """
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()  # else Python warns a second time, later and elsewhere
        raise NotJson(
            f"the function returned {getattr(value, '__qualname__', type(value).__name__)!r} without waiting for it: "
            "write `await` before the call, and `async def` for the function"
        )
    if isinstance(value, PurePath):
        return str(value)
    if is_model(type(value)):
        return value.model_dump(mode="json", by_alias=True)
    pydantic_core = sys.modules.get("pydantic_core")
    try:
        if pydantic_core is not None:
            return pydantic_core.to_jsonable_python(value)
    except ValueError:
        pass
    kind = cast("type[object]", type(value))
    instead = "use builtins, a dataclass, TypedDict, Struct or pydantic model"
    if issubclass(kind, Iterator):
        instead = "make a list of what it gives, with list(…)"
    raise NotJson(f"a value of type {kind.__name__} cannot be written as JSON: {instead}")


def check_model(model: Any, value: Any) -> Any:
    """Make sure that a model's fields are of their types: `model_construct` and assignments look at nothing.

    Returns what is written, in builtins; of a class below the model, only what the model has.

    The value is not validated again, since validators need not accept what they made.

    Raises:
        ValueError: naming a field.
    """
    fields: dict[str, Any] = model.model_fields
    missing = [name for name in fields if name not in value.__dict__]
    if missing:
        raise ValueError(f"{missing[0]}: Field required")
    if type(value) is not model:
        return model.__pydantic_serializer__.to_python(value, mode="json", by_alias=True, warnings="error")
    return value.model_dump(mode="json", by_alias=True, warnings="error")


def schema_hook(annotation: Any, mode: Literal["validation", "serialization"] = "validation") -> Schema:
    """The JSON Schema of a model, without the titles that pydantic derives from names.

    Args:
        annotation: the model.
        mode: what is read, or what is written: aliases, computed and excluded fields can differ.

    Raises:
        TypeError: for a class that isn't a model, or one that can't be served.
    """
    if isinstance(annotation, StandIn):
        return annotation.schema
    if is_path(annotation):
        return dict(PATH)
    if not is_model(annotation):
        raise TypeError(f"{getattr(annotation, '__name__', annotation)!r} is not supported")
    _bounds().check_bounds(annotation)
    try:
        schema: Schema = annotation.model_json_schema(by_alias=True, schema_generator=_untitled(), mode=mode)
    except sys.modules["pydantic"].errors.PydanticInvalidForJsonSchema as error:
        raise TypeError(f"{shown(annotation)} has a field that JSON Schema can't describe") from error
    definitions: dict[str, Schema] = schema.get("$defs", {})
    for name, part in [(annotation.__name__, schema), *definitions.items()]:
        if part.get("title") == name:
            del part["title"]
    return schema or dict(ANYTHING)


def adapted(annotation: Any) -> Any:
    """A class that stands for a type as pydantic understands it, with every validator.

    Raises:
        TypeError: pydantic does not know the type either.
    """
    available()
    pydantic = sys.modules["pydantic"]
    try:
        if get_origin(annotation) is type:
            raise TypeError("a class is nothing that clients could send")
        _bounds().check_bounds(annotation)
        adapter = pydantic.TypeAdapter(_for_pydantic(annotation))
        schema = adapter.json_schema(by_alias=True, schema_generator=_untitled())
    except (pydantic.errors.PydanticUserError, pydantic.errors.PydanticSchemaGenerationError, ImportError) as error:
        struct = _bounds().struct_in(annotation)
        if struct is None:
            raise TypeError(f"{shown(annotation)} is not supported") from error
        raise Refused(
            f"pydantic can't read the Struct {struct.__name__}, and {shown(annotation)} has something that only "
            f"pydantic checks: make {struct.__name__} a dataclass or a pydantic model"
        ) from error
    return stand_in(shown(annotation), functools.partial(_validated, adapter.validate_python), schema or ANYTHING)


def _bounds() -> Any:
    return importlib.import_module("millstream._server.functions.pydantic_bounds")


def _for_pydantic(annotation: Any) -> Any:
    """An annotation with what msgspec's `Meta` says in pydantic's words, so that no bound is lost."""
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        bounds = [_field(item) for item in parts[1:] if isinstance(item, Meta)]
        others = [item for item in parts[1:] if not isinstance(item, Meta)]
        return Annotated[_for_pydantic(parts[0]), *bounds, *others]  # behind a validator, pydantic lists no bounds
    if not any(isinstance(part, type) or get_origin(part) for part in parts) or get_origin(annotation) is Literal:
        return annotation
    made = [_for_pydantic(part) for part in parts]
    if get_origin(annotation) in (Union, UnionType):
        return Union[*made]
    return get_origin(annotation)[*made]


def _field(meta: Meta) -> Any:
    said = {name: getattr(meta, name) for name in (*CONSTRAINTS, "title", "description", "examples")}
    said = {name: value for name, value in said.items() if value is not None}
    return sys.modules["pydantic"].Field(**said, json_schema_extra=meta.extra_json_schema)


def needs_pydantic(annotation: Any, *, inside: bool = False) -> bool:
    """Whether a type says something that only pydantic can honor: validators, aliases, types of its own.

    Args:
        annotation: of a parameter.
        inside: it is of a field, where msgspec sees nothing but its own `Meta`.
    """
    annotation = unaliased(annotation)
    if "pydantic" not in sys.modules or get_origin(annotation) is Literal:
        return False
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return needs_pydantic(parts[0], inside=inside) or not all(_is_plain(item, inside) for item in parts[1:])
    kind = get_origin(annotation) or annotation
    if isinstance(kind, type) and not is_model(kind) and (_is_pydantics(kind) or _fields_need(kind)):
        return True
    inside = inside or kind not in (*COLLECTIONS, Union, UnionType)
    return any(needs_pydantic(part, inside=inside) for part in parts)


def _is_pydantics(item: Any) -> bool:
    home = (item if isinstance(item, type) else type(item)).__module__.partition(".")[0]
    return home in _HOMES or any(hasattr(item, f"__{name}__") for name in _MARKS)


def _fields_need(holder: Any) -> bool:
    """Whether a field of a dataclass, TypedDict, NamedTuple or Struct needs pydantic."""
    if holder in _BEING_READ or not has_fields(holder):
        return False
    _BEING_READ.add(holder)
    try:
        hints = get_type_hints(holder, include_extras=True)
    except NameError:
        return False  # msgspec says so in its own words
    else:
        kinds: tuple[type, ...] = holder.__mro__
        said = (value for kind in kinds for value in vars(kind).values())  # defaults, and `field_validator`
        return any(map(_is_pydantics, said)) or any(needs_pydantic(hint, inside=True) for hint in hints.values())
    finally:
        _BEING_READ.discard(holder)


def _is_plain(item: Any, inside: bool) -> bool:
    """Whether `as_meta` says all that an element of ``Annotated`` says."""
    fields = sys.modules.get("pydantic.fields")  # loaded with the first `Field`
    if fields is not None and isinstance(item, fields.FieldInfo):
        texts_only = not item.metadata and item.alias is None and item.validation_alias is None
        return item.discriminator is None and (texts_only or not inside) and all(map(_is_bound, item.metadata))
    if type(item).__module__ == "annotated_types":
        return not inside and _is_bound(item)
    return not _is_pydantics(item)


def _is_bound(item: Any) -> bool:
    said = {
        name: value for name in dir(item) if not name.startswith("_") and (value := getattr(item, name)) is not None
    }
    if "pattern" in said:
        return said.keys() == {"pattern"} and isinstance(said["pattern"], str)
    return (
        bool(said) and said.keys() <= set(CONSTRAINTS) and all(type(value) in (int, float) for value in said.values())
    )


def wire_name(items: Iterable[Any]) -> str | None:
    """The alias that ``pydantic.Field`` gives a parameter.

    Raises:
        TypeError: for aliases that aren't names.
    """
    fields = sys.modules.get("pydantic.fields")
    for item in items:
        if fields is not None and isinstance(item, fields.FieldInfo):
            alias = item.validation_alias if item.validation_alias is not None else item.alias
            if alias is not None and not isinstance(alias, str):
                raise TypeError("an alias must be one name, not a path or choices")
            if alias is not None:
                return alias
    return None


def factory_of(items: Iterable[Any]) -> Callable[[], Any] | None:
    """What makes the default of a parameter for each call, where ``pydantic.Field`` names it."""
    fields = sys.modules.get("pydantic.fields")
    made = (item.default_factory for item in items if fields is not None and isinstance(item, fields.FieldInfo))
    return next((factory for factory in made if factory is not None), None)


@functools.cache
def _untitled() -> Any:
    """pydantic's generator, told not to derive a title from each field's name.

    Nor the type of what a function writes from what it reads, where its return has no annotation.
    """
    generator = importlib.import_module("pydantic.json_schema").GenerateJsonSchema

    def never(_self: Any, _schema: Any) -> bool:
        return False

    def ser_schema(self: Any, schema: Any) -> Any:
        said = generator.ser_schema(self, schema)
        own = schema["type"] == "function-plain" or schema.get("is_field_serializer")
        return {} if said is None and own and schema.get("return_schema") is None else said

    return type("Untitled", (generator,), {"field_title_should_be_set": never, "ser_schema": ser_schema})


def as_meta(item: Any) -> tuple[list[Meta], Any]:
    """What one element of ``Annotated`` (or a default value) says: constraints, and a default or `NODEFAULT`.

    Understands ``pydantic.Field(...)`` and the constraints of ``annotated_types``; anything else says nothing.
    """
    pydantic = sys.modules.get("pydantic.fields")
    if pydantic is not None and isinstance(item, pydantic.FieldInfo):
        return _of_field(item)
    if type(item).__module__ == "annotated_types":
        return _of_constraint(item), NODEFAULT
    return [], NODEFAULT


def _of_constraint(item: Any) -> list[Meta]:
    values = {name: value for name in CONSTRAINTS if (value := getattr(item, name, None)) is not None}
    if values and "pydantic" in sys.modules and not _is_bound(item):
        return []  # such as a date or a compiled pattern: `needs_pydantic` says so
    return [Meta(**{name: value}) for name, value in values.items()]


def _of_field(item: Any) -> tuple[list[Meta], Any]:
    extra = item.json_schema_extra if is_object(item.json_schema_extra) else None
    texts = Meta(title=item.title, description=item.description, examples=item.examples, extra_json_schema=extra)
    metas = [meta for part in item.metadata for meta in _of_constraint(part)]
    default: Any = NODEFAULT
    if item.default_factory is not None:
        default = item.default_factory()
    elif not item.is_required():
        default = item.default
    return [texts, *metas], default
