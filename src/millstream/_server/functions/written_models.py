"""Results that pydantic writes: models with serializers, computed fields and aliases, and builtins instead of a model.

The models themselves are written by pydantic, and msgspec writes what is around them, as in every other result. Only
programs whose tools return models load this module.
"""

from collections import deque
from collections.abc import Callable, Collection, Mapping
from types import UnionType
from typing import Annotated, Any, Union, cast, get_args, get_origin

import msgspec

from millstream._protocol.json_schema import with_numbers
from millstream._server.functions.pydantic_types import check_model, dec_hook, enc_hook, is_model


def writer(annotation: Any, declared: Collection[Any]) -> Callable[[Any], Any]:
    """What makes builtins of a value; where a model is promised, builtins are written as the model.

    It raises ValueError and msgspec's ValidationError for a value that isn't of the type.

    Args:
        annotation: of what a function returns.
        declared: the models in it. An object of a class below one is written as the model.
    """

    def write(value: Any) -> Any:
        whole = _with_models(value, annotation)
        dumped: deque[Any] = deque()

        def dump(part: Any) -> Any:
            if not is_model(type(part)):
                return enc_hook(part)
            dumped.append(part)
            own: Any = part.__class__
            kind = next((kind for kind in own.__mro__ if kind in declared), own)
            return with_numbers(check_model(kind, part))

        def read(kind: Any, written: Any) -> Any:
            if not is_model(kind):
                return dec_hook(kind, written)
            while dumped:  # in the order that they stand in, and some where the type says nothing
                model = dumped.popleft()
                if isinstance(model, kind):
                    return model
            model = dec_hook(kind, written)
            if check_model(kind, model) != written:
                raise ValueError(f"got builtins that aren't what {kind.__name__} is written as: return the model")
            return model

        made = msgspec.to_builtins(whole, enc_hook=dump)
        checks_itself = is_model(annotation) or hasattr(annotation, "__post_init__")
        if not (checks_itself and isinstance(whole, annotation)):
            msgspec.json.decode(msgspec.json.encode(made), type=annotation, dec_hook=read)
        return made

    return write


def _with_models(value: Any, annotation: Any) -> Any:
    """The value with models for builtins. One that msgspec can't read stays as it is: its JSON may still fit."""
    try:
        return msgspec.convert(value, annotation, dec_hook=dec_hook)
    except msgspec.ValidationError:
        return value


def finds_builtins(annotation: Any) -> Callable[[Any], bool] | None:
    """What tells whether a value has builtins where a type promises a model; None where none is in plain sight.

    Fields of dataclasses and TypedDicts aren't looked into.
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if is_model(annotation):
        return lambda value: not is_model(type(value))
    if origin is Annotated:
        return finds_builtins(parts[0])
    if origin in (Union, UnionType):
        several = [found for part in parts if (found := finds_builtins(part)) is not None]
        return (lambda value: value is not None and all(found(value) for found in several)) if several else None
    if not isinstance(origin, type) or not parts or (origin is tuple and parts[-1] is not ...):
        return None
    inside = finds_builtins(parts[0] if parts[-1] is ... else parts[-1])
    if inside is None:
        return None
    if issubclass(origin, Mapping):
        return lambda value: isinstance(value, dict) and any(map(inside, cast("Any", value).values()))
    return lambda value: isinstance(value, list | tuple | set | frozenset) and any(map(inside, cast("Any", value)))
