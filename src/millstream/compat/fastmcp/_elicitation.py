"""Questions to a person: what they look like, and what comes back."""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import is_dataclass
from enum import Enum
from types import NoneType
from typing import Any, Generic, Literal, TypeVar, cast, get_args, get_origin

from millstream._protocol.errors import Cancelled, Declined
from millstream._protocol.json_schema import without_null
from millstream.compat._pydantic_parts import BaseModel, TypeAdapter, TypeAliasType
from millstream.compat.fastmcp._injection import is_union

T = TypeVar("T")

_SCALARS = (str, int, float, bool)


class AcceptedElicitation(BaseModel, Generic[T]):
    """The person answered; `data` is the answer."""

    action: Literal["accept"] = "accept"
    data: T


class DeclinedElicitation(BaseModel):
    """The person said no."""

    action: Literal["decline"] = "decline"


class CancelledElicitation(BaseModel):
    """The person dismissed the question."""

    action: Literal["cancel"] = "cancel"


class AcceptedUrlElicitation(BaseModel):
    """The person agreed to open the URL."""

    action: Literal["accept"] = "accept"


ElicitationResult = TypeAliasType(
    "ElicitationResult", AcceptedElicitation[T] | DeclinedElicitation | CancelledElicitation, type_params=(T,)
)
"""What `Context.elicit` gives."""
Action = Literal["accept", "decline", "cancel"]
REFUSALS: dict[Action, type[BaseModel]] = {"decline": DeclinedElicitation, "cancel": CancelledElicitation}


async def answered(asking: Awaitable[T]) -> tuple[Action, T | None]:
    """What the person did, and the answer if there is one."""
    try:
        return "accept", await asking
    except Declined:
        return "decline", None
    except Cancelled:
        return "cancel", None


class Form:
    """A question's JSON Schema, and how its answer is read."""

    def __init__(self, answer: Any, *, title: str | None = None, description: str | None = None) -> None:
        """Think about the type of an answer: a model, a dataclass, a scalar, or choices.

        Raises:
            TypeError: no form can ask for that.
        """
        self.adapter: TypeAdapter[Any] | None = None
        self.alone = False
        """The answer is the only field, `value`."""
        if isinstance(answer, type) and issubclass(answer, BaseModel):
            _check_fields(answer)
            self.schema: dict[str, Any] = _shown(answer.model_json_schema())
            self.adapter = TypeAdapter(answer)
        elif isinstance(answer, type) and is_dataclass(answer):
            self.adapter = TypeAdapter(answer)
            self.schema = _shown(self.adapter.json_schema())
        elif answer is None:
            raise TypeError("elicit needs to know what to ask for: pass a type, for example bool for a confirmation")
        else:
            self.alone = True
            about = {"title": title, "description": description}
            field = {**self._field(answer), **{key: text for key, text in about.items() if text is not None}}
            self.schema = {"type": "object", "properties": {"value": field}, "required": ["value"]}

    def _field(self, answer: Any) -> dict[str, Any]:
        if isinstance(answer, list) and answer and isinstance(answer[0], list | Mapping):
            return {"type": "array", "items": self._field(answer[0])}
        if isinstance(answer, Mapping):
            named = cast("Mapping[str, Mapping[str, str]]", answer)
            choices = [{"const": key, "title": about.get("title", key)} for key, about in named.items()]
            return {"type": "string", "oneOf": choices}
        if isinstance(answer, list):
            return {"type": "string", "enum": answer}
        plain = answer in _SCALARS or get_origin(answer) in (Literal, list)
        if not plain and not (isinstance(answer, type) and issubclass(answer, Enum)):
            raise TypeError(f"elicit cannot ask for {answer!r}: use a model, a dataclass, a scalar or choices")
        self.adapter = TypeAdapter(answer)
        schema = self.adapter.json_schema()
        definitions = schema.pop("$defs", {})
        items = schema.get("items", {})
        if "$ref" in items:
            schema["items"] = definitions[items["$ref"].rpartition("/")[2]]
        return schema

    def read(self, content: Mapping[str, Any]) -> Any:
        """The answer.

        Raises:
            ValueError: of pydantic, for one that does not fit.
        """
        value = content.get("value") if self.alone else content
        return value if self.adapter is None else self.adapter.validate_python(value)


def _shown(schema: dict[str, Any]) -> dict[str, Any]:
    """A model's schema as a form: nothing is null, and choices stand where they are chosen."""
    definitions = schema.pop("$defs", {})

    def field(node: dict[str, Any]) -> dict[str, Any]:
        node = without_null(node)
        if "$ref" in node:
            node = {**definitions[node["$ref"].rpartition("/")[2]], **node}
            del node["$ref"]
        return {**node, "items": field(node["items"])} if isinstance(node.get("items"), dict) else node

    properties = {name: field(node) for name, node in schema.get("properties", {}).items()}
    for node in properties.values():
        if node.get("default", 0) is None:
            del node["default"]
    return {**schema, "properties": properties}


def _check_fields(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        if not _is_flat(field.annotation):
            raise TypeError(
                f"Elicitation schema field {name!r} must be a primitive type {_SCALARS}, a sequence of strings "
                "(list[str], etc.), or Optional of these types. Nested models and complex types are not allowed."
            )


def _is_flat(annotation: Any) -> bool:
    if annotation in (None, NoneType) or annotation in _SCALARS:
        return True
    if is_union(annotation):
        return all(_is_flat(part) for part in get_args(annotation))
    if get_origin(annotation) is Literal or (isinstance(annotation, type) and issubclass(annotation, Enum)):
        return True
    origin = get_origin(annotation)
    inner = get_args(annotation)
    return isinstance(origin, type) and issubclass(origin, Sequence) and len(inner) == 1 and _is_flat_item(inner[0])


def _is_flat_item(annotation: Any) -> bool:
    return (
        annotation is str
        or get_origin(annotation) is Literal
        or (isinstance(annotation, type) and issubclass(annotation, Enum))
    )
