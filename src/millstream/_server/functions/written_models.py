"""Results with models that pydantic writes otherwise than it reads them: with serializers, computed fields, aliases.

The models themselves are written by pydantic, and msgspec writes what is around them, as in every other result. Only
programs with such models load this module.
"""

from collections import deque
from collections.abc import Callable, Collection
from typing import Any

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
