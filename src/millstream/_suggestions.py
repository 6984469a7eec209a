"""Errors about unknown names, which suggest the closest existing one or what to write instead.

Before 3.13, Python only reports that an argument is unexpected.
"""

import difflib
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from importlib.util import find_spec
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, TypeVar, cast

from msgspec import StructMeta

F = TypeVar("F", bound=Callable[..., Any])
_WORD = re.compile(r"[^\W\d_]{3,}")
Alternatives = Mapping[str, str]
"""Name that users try -> a sentence with the alternative, or the name that means the same."""
_PART = re.compile(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+|\d+")
"""A part of a name: ``read``, ``Only``, or ``hint`` in ``read_onlyHint``."""
FEW = 32
"""Maximum number of names that an error lists."""


def _parts(name: str) -> list[str]:
    return [part.lower() for part in _PART.findall(name)]


def _has_parts(name: str, parts: Sequence[str]) -> bool:
    """Return whether a name has these parts in a row, the last one perhaps shortened."""
    own, wanted = _parts(name), "".join(parts)
    return len(wanted) > 2 and any("".join(own[at:]).startswith(wanted) for at in range(len(own)))


def closest_names(name: str, names: Collection[str]) -> list[str]:
    """Return the names that a misspelled one can stand for, the closest first.

    They are names with a similar spelling, and those that have the parts of the given name: ``readonly`` finds
    ``read_only_hint``. Each word must be similar, so that ``shop_place_order`` doesn't find ``shop_delete_order``.

    Args:
        name: The name that was given.
        names: The names that exist.
    """
    by_case, given = {each.lower(): each for each in names}, name.lower()
    words, parts = _WORD.findall(given), _parts(name)
    near = [
        by_case[each]
        for each in difflib.get_close_matches(given, by_case)
        if len(words) < 2 or all(difflib.get_close_matches(word, _WORD.findall(each), 1, 0.7) for word in words)
    ]
    near += sorted((each for each in names if _has_parts(each, parts)), key=lambda each: (len(each), each))
    return list(dict.fromkeys(near))


def closest_name(name: str, names: Collection[str]) -> str | None:
    """Return the first of `closest_names`, or None: ``closest_name("serch", ["search", "order"])``."""
    return next(iter(closest_names(name, names)), None)


def suggest(name: str, names: Collection[str], near: str | None = None) -> str:
    """Return the suggestion to end an error about an unknown name with: the closest name and all names, or the three
    closest ones of many.

    Args:
        name: The unknown name.
        names: The known names. A list or tuple keeps its order.
        near: The name to suggest, if it isn't the closest one.

    Example:
        ``raise LookupError(f"There is no tool {name!r}; {suggest(name, tools)}")``
    """
    closest = [near] if near else closest_names(name, names)[:3]
    if len(names) > FEW:
        return f"did you mean {' or '.join(map(repr, closest))}?" if closest else f"there are {len(names)} others."
    all_names = names if isinstance(names, list | tuple) else sorted(names)
    return f"{f'did you mean {closest[0]!r}? Use' if closest else 'use'} one of {', '.join(all_names)}."


def unknown_name_message(where: str, name: str, names: Collection[str], elsewhere: Alternatives) -> str:
    """Return the error text for an unknown name (see `refuse_unknown`)."""
    hint = suggest_option(name, names, elsewhere)
    return f"{where} has no option {name!r}{hint}{f' help({where}) lists them.' if hint.endswith('others.') else ''}"


def suggest_option(name: str, names: Collection[str], elsewhere: Alternatives) -> str:
    """Return the end of an error about an unknown option: what to write instead, or the closest ones.

    Unlike an item, an option may have a shorter name: ``timeout_seconds`` suggests ``timeout``.
    """
    known = {*names, *elsewhere}
    shorter = (each for each in sorted(known) if len(each) > 3 and _has_parts(name, _parts(each)))
    near = name if name in elsewhere else closest_name(name, known) or max(shorter, key=len, default="")
    other = elsewhere.get(near, "" if closest_name(name, names) else near)
    return f". {other}" if other and other not in names else f"; {suggest(name, names, other)}"


def no_attribute(owner: object, name: str, elsewhere: Alternatives) -> AttributeError:
    """Return the AttributeError for `__getattr__`.

    Args:
        owner: The object without the attribute.
        name: The attribute.
        elsewhere: Sentences that name the alternative, by the name that users try.
    """
    text = f"{type(owner).__name__!r} object has no attribute {name!r}"
    if name in elsewhere:
        text = f"{text}. {elsewhere[name]}"
    else:
        public = [each for each in dir(type(owner)) if not each.startswith("_")]
        if not name.startswith("_") and (near := closest_name(name, public)):
            text = f"{text}. Did you mean {near!r}?"
    return AttributeError(text, name=name)  # without `obj`, Python adds no suggestion of its own


def missing_name(module: str, name: str, names: Collection[str], elsewhere: Alternatives) -> Exception:
    """Return the error for `__getattr__` of a module. An AttributeError would lose its text in ``from … import``.

    Args:
        module: The module without the name.
        names: The module's public names.
        elsewhere: Sentences that name the alternative, by the name that users try.
    """
    hint = elsewhere.get(name, "")
    if name[0] != "_" and not hint and (near := closest_name(name, names)):
        hint = f"Did you mean {near}?"
    # Python looks for attributes before it imports a submodule, which only a package has.
    if not hint or (hasattr(sys.modules[module], "__path__") and find_spec(f"{module}.{name}")):
        return AttributeError(f"module {module!r} has no attribute {name!r}")
    return ImportError(f"{module} has no {name}. {hint}")


def refuse_unknown(where: str, given: Collection[str], names: Collection[str], elsewhere: Alternatives) -> None:
    """Check that all given names are known.

    Args:
        where: The function or class that takes the names, for the error.
        given: The given names.
        names: The known names.
        elsewhere: Sentences that name the alternative, by the name that users try.

    Raises:
        TypeError: A name is unknown. The text suggests the closest one.
    """
    for name in given:
        if name not in names:
            raise TypeError(unknown_name_message(where, name, names, elsewhere))


def suggest_keywords(function: F, elsewhere: Alternatives | None = None) -> F:
    """Return a wrapper of a function or class whose errors about unknown keywords suggest the closest one.

    The wrapper adds a call, so use it only for functions that are rarely called. A class can have `_ELSEWHERE` instead
    of the argument.

    Args:
        function: The function or class: ``@suggest_keywords``.
        elsewhere: Sentences that name the alternative, by the keyword that users try.
    """
    if isinstance(function, type):
        elsewhere = getattr(function, "_ELSEWHERE", None)
        setattr(function, "__init__", suggest_keywords(vars(function)["__init__"], elsewhere))  # noqa: B010  no checker lets one assign it
        return cast("F", function)
    kinds = {name: each.kind for name, each in signature(function).parameters.items()}
    bound = kinds.pop("self", None) is not None
    names = [name for name, kind in kinds.items() if kind in (Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
    only = [f"{name}=…" for name, kind in kinds.items() if kind is Parameter.KEYWORD_ONLY]
    if Parameter.VAR_POSITIONAL in kinds.values():
        only = []
    most = len(names) - len(only)
    where = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]
    _, house, *private = function.__module__.split(".")
    if where.islower() and house[0] != "_" and (not private or private[0][0] == "_"):
        where = f"{house}.{where}"  # the name that users write: auth.jwt

    @wraps(function)
    def check_keywords(*positional: Any, **given: Any) -> Any:
        refuse_unknown(where, given, names, elsewhere or {})
        if only and len(positional) - bound > most:
            which = f"arguments after the first {most}" if most else "all arguments"
            raise TypeError(f"{where}: pass {which} by keyword, such as {', '.join(only[:3])}.")
        return function(*positional, **given)

    return check_keywords  # type: ignore[return-value]  # it takes and gives what the function does


if TYPE_CHECKING:
    SuggestionMeta = StructMeta
else:

    class SuggestionMeta(StructMeta):
        """The metaclass of structs for user configuration. An unknown field raises an error with the closest one.

        A class with `_USAGE` repeats that in its errors instead.

        Example:
            ``class Options(Struct, frozen=True, metaclass=SuggestionMeta): ...``
        """

        def __call__(cls, *positional: object, **given: object) -> object:  # noqa: N805  it's a metaclass
            usage = getattr(cls, "_USAGE", "")
            if not usage:
                refuse_unknown(cls.__name__, given, cls.__struct_fields__, getattr(cls, "_ELSEWHERE", {}))
            try:
                return super().__call__(*positional, **given)
            except TypeError as exc:
                raise TypeError(f"{exc}. {usage}" if usage else str(exc)) from None
