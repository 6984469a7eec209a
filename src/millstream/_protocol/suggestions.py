"""Suggestions for misspelled names: an error names the closest existing name.

Python only says that an argument is unexpected, and versions before 3.13 suggest nothing.
"""

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

from msgspec import StructMeta

F = TypeVar("F", bound=Callable[..., Any])
FEW = 16
"""Maximum number of names that an error lists."""


def closest_name(name: str, names: Collection[str]) -> str | None:
    """Return the closest name, or None if none is similar."""
    by_case = {each.lower(): each for each in names}
    near = difflib.get_close_matches(name.lower(), by_case, n=1)
    return by_case[near[0]] if near else None


def suggest(name: str, names: Collection[str]) -> str:
    """Return the end of an error about an unknown name: the closest name, and all names if there are few.

    Args:
        name: The unknown name.
        names: The known names. A list or tuple keeps its order.
    """
    near = closest_name(name, names)
    if len(names) > FEW:
        return f"did you mean {near!r}?" if near else f"there are {len(names)} others"
    all_names = names if isinstance(names, list | tuple) else sorted(names)
    return f"{f'did you mean {near!r}? Use' if near else 'use'} one of {', '.join(all_names)}"


def unknown_name_message(where: str, name: str, names: Collection[str], elsewhere: Mapping[str, str]) -> str:
    """Return the error text for an unknown name, see `refuse_unknown`."""
    near = closest_name(name, {*names, *elsewhere})
    if near is not None and near in elsewhere:
        return f"{where} has no option {name!r}. {elsewhere[near]}"
    return f"{where} has no option {name!r}; {suggest(name, names)}"


def no_attribute(owner: object, name: str, elsewhere: Mapping[str, str]) -> AttributeError:
    """Return the AttributeError for `__getattr__`.

    Args:
        owner: The object without the attribute.
        name: The attribute.
        elsewhere: Name that users try here -> a sentence with the alternative.
    """
    text = f"{type(owner).__name__!r} object has no attribute {name!r}"
    if name in elsewhere:
        text = f"{text}. {elsewhere[name]}"
    else:
        public = [each for each in dir(type(owner)) if not each.startswith("_")]
        if not name.startswith("_") and (near := closest_name(name, public)):
            text = f"{text}. Did you mean {near!r}?"
    return AttributeError(text)


def refuse_unknown(where: str, given: Collection[str], names: Collection[str], elsewhere: Mapping[str, str]) -> None:
    """Check that all given names are known.

    Args:
        where: The function or class that takes the names, for the error.
        given: The given names.
        names: The known names.
        elsewhere: Name that users try here -> a sentence with the alternative.

    Raises:
        TypeError: A name is unknown. The text suggests the closest one.
    """
    for name in given:
        if name not in names:
            raise TypeError(unknown_name_message(where, name, names, elsewhere))


def suggest_keywords(function: F, elsewhere: Mapping[str, str] | None = None) -> F:
    """Return a wrapper of a function or class whose errors about unknown keywords suggest the closest one.

    The wrapper adds a call, so use it only for functions that are rarely called. A class can have `_ELSEWHERE`: keyword
    that users try -> a sentence with the alternative.
    """
    if isinstance(function, type):
        elsewhere = getattr(function, "_ELSEWHERE", None)
        setattr(function, "__init__", suggest_keywords(vars(function)["__init__"], elsewhere))  # noqa: B010  no checker lets one assign it
        return cast("F", function)
    parameters = inspect.signature(function).parameters.values()
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = tuple(each.name for each in parameters if each.kind in named and each.name != "self")
    where = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]
    _, house, *private = function.__module__.split(".")
    if where.islower() and house[0] != "_" and all(each[0] == "_" for each in private):
        where = f"{house}.{where}"  # as users write it: auth.jwt

    @wraps(function)
    def check_keywords(*positional: Any, **given: Any) -> Any:
        refuse_unknown(where, given, names, elsewhere or {})
        return function(*positional, **given)

    return check_keywords  # type: ignore[return-value]  # it takes and gives what the function does


if TYPE_CHECKING:
    SuggestionMeta = StructMeta
else:

    class SuggestionMeta(StructMeta):
        """The metaclass of structs for user configuration. An unknown field raises an error with the closest one."""

        def __call__(cls, *positional: object, **given: object) -> object:  # noqa: N805  it's a metaclass
            refuse_unknown(cls.__name__, given, cls.__struct_fields__, getattr(cls, "_ELSEWHERE", {}))
            return super().__call__(*positional, **given)
