"""What was probably meant: names that nobody knows are refused with the nearest one that exists.

Python says only that an argument is unexpected, and versions before 3.13 don't say which one is near.
"""

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

from msgspec import StructMeta

F = TypeVar("F", bound=Callable[..., Any])
FEW = 16
"""A sentence that lists more names than these isn't read."""


def closest_name(name: str, names: Collection[str]) -> str | None:
    """The name that was probably meant, if one is near."""
    by_case = {each.lower(): each for each in names}
    near = difflib.get_close_matches(name.lower(), by_case, n=1)
    return by_case[near[0]] if near else None


def suggest(name: str, names: Collection[str]) -> str:
    """The rest of a sentence that refuses a name: the one that was probably meant, and all there are, if they're few.

    Args:
        name: the one that nobody knows.
        names: in their order if they're a list or a tuple.
    """
    near = closest_name(name, names)
    if len(names) > FEW:
        return f"did you mean {near!r}?" if near else f"there are {len(names)} others"
    all_names = names if isinstance(names, list | tuple) else sorted(names)
    return f"{f'did you mean {near!r}? There' if near else 'there'} is {', '.join(all_names)}"


def unknown_name_message(where: str, name: str, names: Collection[str], elsewhere: Mapping[str, str]) -> str:
    """The sentence that refuses a name: see `refuse_unknown`."""
    near = closest_name(name, {*names, *elsewhere})
    if near is not None and near in elsewhere:
        return f"{where} has no option {name!r}. {elsewhere[near]}"
    return f"{where} has no option {name!r}; {suggest(name, names)}"


def no_attribute(owner: object, name: str, elsewhere: Mapping[str, str]) -> AttributeError:
    """Return the error for an attribute that doesn't exist: for `__getattr__`.

    Args:
        owner: the object that was asked.
        name: of the attribute.
        elsewhere: name that people look for here -> the sentence that says what to write.
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
    """Make sure that every name is one of those that there are.

    Args:
        where: what the names are given to.
        given: the names.
        names: those that there are.
        elsewhere: name that people look for here -> the sentence that says where it is.

    Raises:
        TypeError: one isn't; the text says which one was probably meant.
    """
    for name in given:
        if name not in names:
            raise TypeError(unknown_name_message(where, name, names, elsewhere))


def suggesting(function: F, elsewhere: Mapping[str, str] | None = None) -> F:
    """A function or class that says which keyword was probably meant. For what is called seldom: it costs a call.

    A class can have `_ELSEWHERE`: keyword that people look for -> the sentence that says where it is.
    """
    if isinstance(function, type):
        elsewhere = getattr(function, "_ELSEWHERE", None)
        setattr(function, "__init__", suggesting(vars(function)["__init__"], elsewhere))  # noqa: B010  no checker lets one assign it
        return cast("F", function)
    parameters = inspect.signature(function).parameters.values()
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = tuple(each.name for each in parameters if each.kind in named and each.name != "self")
    where = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]
    _, house, *private = function.__module__.split(".")
    if where.islower() and house[0] != "_" and all(each[0] == "_" for each in private):
        where = f"{house}.{where}"  # as people write it: auth.jwt

    @wraps(function)
    def checked(*positional: Any, **given: Any) -> Any:
        refuse_unknown(where, given, names, elsewhere or {})
        return function(*positional, **given)

    return checked  # type: ignore[return-value]  # it takes and gives what the function does


if TYPE_CHECKING:
    SuggestionMeta = StructMeta
else:

    class SuggestionMeta(StructMeta):
        """The metaclass of structs that people fill in: an unknown field is refused with the nearest one."""

        def __call__(cls, *positional: object, **given: object) -> object:  # noqa: N805  it's a metaclass
            refuse_unknown(cls.__name__, given, cls.__struct_fields__, getattr(cls, "_ELSEWHERE", {}))
            return super().__call__(*positional, **given)
