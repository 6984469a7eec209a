"""pydantic models as parameters and results, and `pydantic.Field` as constraints: the only module that knows pydantic.

It is never imported here: a program that uses a model has imported it, so a look into `sys.modules` is enough, and
programs without it pay nothing. The two hooks are given to every msgspec decoder and encoder of `server/`.
"""

import functools
import inspect
import sys
from typing import Any

from msgspec import NODEFAULT, Meta
from msgspec.json import schema_components

from millstream.protocol.json_schema import Schema, is_object

MAX_PROBLEMS = 1_000
MAX_LISTED = 20
CONSTRAINTS = ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length", "pattern")


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
        TypeError: for a class that is no model.
    """
    if not is_model(annotation):
        raise TypeError(f"{annotation.__name__} cannot be read from JSON")
    try:
        return annotation.model_validate(value)
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
    return f"{where}: {item['msg']}" if where else str(item["msg"])


def enc_hook(value: Any) -> Any:
    """Turn what msgspec does not know into JSON values.

    Raises:
        TypeError: for a value of a class that is no model.
    """
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()  # else Python warns a second time, later and elsewhere
        raise TypeError(
            f"the function returned {getattr(value, '__qualname__', type(value).__name__)!r} without waiting for it: "
            "write `await` before the call, and `async def` for the function"
        )
    if not is_model(type(value)):
        raise TypeError(f"a value of type {type(value).__name__} cannot be written as JSON")
    return value.model_dump(mode="json", by_alias=True)


def check_model(model: Any, value: Any) -> None:
    """Make sure that a model's fields are of their types: `model_construct` and assignments look at nothing.

    The value is not validated again, since validators need not accept what they made.

    Raises:
        ValueError: naming a field.
    """
    fields: dict[str, Any] = model.model_fields
    missing = [name for name in fields if name not in value.__dict__]
    if missing:
        raise ValueError(f"{missing[0]}: Field required")
    value.model_dump(mode="json", by_alias=True, warnings="error")


def schema_hook(annotation: Any) -> Schema:
    """The JSON Schema of a model, without the titles that pydantic derives from names.

    Raises:
        TypeError: for a class that is no model.
    """
    if not is_model(annotation):
        raise TypeError(f"{getattr(annotation, '__name__', annotation)!r} is not supported")
    schema: Schema = annotation.model_json_schema(by_alias=True, schema_generator=_untitled())
    definitions: dict[str, Schema] = schema.get("$defs", {})
    for name, part in [(annotation.__name__, schema), *definitions.items()]:
        if part.get("title") == name:
            del part["title"]
    return schema


@functools.cache
def _untitled() -> Any:
    """pydantic's generator, told not to derive a title from each field's name."""
    generator = sys.modules["pydantic.json_schema"].GenerateJsonSchema

    def never(_self: Any, _schema: Any) -> bool:
        return False

    return type("Untitled", (generator,), {"field_title_should_be_set": never})


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
    values = {name: getattr(item, name, None) for name in CONSTRAINTS}
    return [Meta(**{name: value}) for name, value in values.items() if value is not None]


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
