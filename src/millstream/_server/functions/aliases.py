"""Names that stand for types: `typing.NewType`, and the aliases of PEP 695 (``type Age = int``)."""

from typing import Any, NewType, get_args, get_origin


def unaliased(annotation: Any) -> Any:
    """What an annotation stands for, as far as names stand outermost."""
    while True:
        alias = get_origin(annotation) or annotation
        if isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        elif type(alias).__name__ == "TypeAliasType":
            parts = get_args(annotation)
            annotation = alias.__value__[parts] if parts else alias.__value__
        else:
            return annotation
