"""Errors, classified by who caused them, and helpers for their messages, which quote a peer's text safely and suggest
names.

The codes are those of JSON-RPC and MCP (https://modelcontextprotocol.io/specification), and a few of our own. An error
about a misspelled name suggests the closest existing one. Before 3.13, Python only reports that an argument is
unexpected.
"""

import difflib
import json
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from importlib.util import find_spec
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, TypeVar, cast

from msgspec import StructMeta

from millstream._copies import CopyableError
from millstream._override import override

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
RESOURCE_NOT_FOUND = -32002
"""For handshake revisions. The per-request era uses INVALID_PARAMS."""
URL_ELICITATION_REQUIRED = -32042
"""For 2025-11-25 only."""
HEADER_MISMATCH = -32020
MISSING_CLIENT_CAPABILITY = -32021
REQUIRES_CAPABILITIES = "This tool requires a client that declares:"
"""Beginning of the tool error that replaces `MISSING_CLIENT_CAPABILITY` in older revisions."""
UNSUPPORTED_VERSION = -32022
RATE_LIMITED = -31429
INSUFFICIENT_SCOPE = -31403
OVERLOADED = -31503
"""Our own code, outside the range reserved by JSON-RPC, for the per-request era. Handshake revisions use `-32000`."""
SERVER_ERROR = -32000
"""The handshake-era code for errors without a code of their own."""


_STATUSES = {METHOD_NOT_FOUND: 404} | dict.fromkeys(
    (HEADER_MISMATCH, MISSING_CLIENT_CAPABILITY, UNSUPPORTED_VERSION), 400
)
"""Error code -> HTTP status in the per-request era, wherever the error is detected.

https://modelcontextprotocol.io/specification/2026-07-28/basic/transports/streamable-http
"""

MAX_SHOWN = 200
"""Maximum number of characters of a peer's text that an error repeats, so long input doesn't make long errors."""


def shorten(text: str, most: int = MAX_SHOWN) -> str:
    """Return the beginning of a peer's text for an error message: ``f"There is no book {shorten(isbn)!r}."``.

    Args:
        text: Text of any length.
        most: Maximum number of characters to keep. A longer text ends with an ellipsis.
    """
    return text if len(text) <= most else f"{text[:most]}…"


class ProtocolError(CopyableError):
    """An error caused by the peer, sent as a JSON-RPC error: ``raise ProtocolError(-32602, "Unknown book")``.

    Args:
        code: The code (JSON-RPC 2.0 §5.1): -32602 for invalid parameters, or one of your own outside of -32768 to
            -32000.
        message: One sentence for the developer of the client.
        data: Any JSON-serializable value with details.
        status: The HTTP status. By default, the one that the code requires, or 200.
        head: Encoded header lines. An error with a `head` keeps its status in every revision, because clients handle
            the two together (401, 403, 429).
    """

    request_id: int | str | None = None
    """Id of a request that can't be read completely."""

    def __init__(self, code: int, message: str, data: Any = None, *, status: int = 0, head: bytes = b"") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data
        self.status: int = status or _STATUSES.get(code, 200)
        self.head = head


class LocalError(CopyableError):
    """An error in this server or its program, never sent to the peer: ``raise LocalError("The disk is full.")``"""


class MissingExtra(ImportError):
    """An optional dependency isn't installed: ``MissingExtra("Redacting results", "redact")``."""

    def __init__(self, what: str, extra: str) -> None:
        self.what: str = f"{what} needs an extra package."
        """A sentence with the feature that needs the package."""
        self.remedy: str = f"pip install 'millstream[{extra}]'"
        """The command that installs it."""
        self._arguments = (what, extra)
        super().__init__(f"{self.what} Install it with: {self.remedy}")

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments


class ToolError(CopyableError):
    """An error message for the model: ``raise ToolError("There is no such book.")`` ends the call with ``isError:
    true``.
    """


class ToolUnavailable(ToolError):
    """A tool error caused by the server, or by a server behind it: ``raise ToolUnavailable("The database is down")``.

    The model reads it like a `ToolError`. The dashboard and metrics count it as the server's error, not the caller's.
    """


class CustomResult(CopyableError):
    """Ends a call with a complete result of another type: ``raise CustomResult({"resultType": "task", "taskId":
    "7"})``.

    Clients reject result types that they don't know. Check the client's capabilities first.

    Args:
        result: All members of the result, including `resultType`.
    """

    def __init__(self, result: Mapping[str, Any]) -> None:
        super().__init__("The call ended with a custom result")
        self.result: Mapping[str, Any] = result


class Declined(CopyableError):
    """The user or client declined to answer a question: ``except Declined: return "Not ordered."``."""


class Cancelled(CopyableError):
    """The user dismissed a question without answering it: ``except Cancelled: return "Not now."``."""


_HIDDEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_JOINED = f"[^\x00-\u02ff\u200c\u200d{_HIDDEN}]"
"""Characters that joiners shape: letters of many scripts, and emoji. Between others, joiners are invisible."""
INVISIBLE = re.compile(rf"[{_HIDDEN}]|(?<!{_JOINED})[\u200c\u200d]|[\u200c\u200d](?!{_JOINED})")
r"""Control and format characters except ``\n`` and ``\t``: bidirectional and line marks, zero-width characters, and
tags."""


def escape(text: str) -> str:
    """Return the text with these characters as JSON escapes."""
    if text.isascii() and text.isprintable():
        return text
    return INVISIBLE.sub(lambda found: json.dumps(found[0])[1:-1], text)


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


def pluralize(number: float, noun: str) -> str:
    """Return a number with its noun: ``pluralize(1, "second")``."""
    return f"{f'{number:,.3f}'.rstrip('0').rstrip('.')} {noun}{'' if number == 1 else 's'}"


def add_article(noun: str) -> str:
    """Return a noun with its indefinite article, by its first letter: ``add_article("int")``."""
    return f"an {noun}" if noun[:1].lower() in tuple("aeio") else f"a {noun}"


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


_NARROWEST = 20
"""Minimum width of a text beside its label, in columns."""


def fit(label: str, text: str, columns: int | None) -> str:
    """Return a labeled text, wrapped between words and indented like its first line.

    Args:
        label: What the first line begins with: ``"  Fix:   "``.
        columns: Width of the terminal, or None for a pipe, where lines don't break.
    """
    if columns is None:
        return label + text
    indent, width = " " * len(label), max(columns, len(label) + _NARROWEST)
    lines = [
        textwrap.fill(
            line, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        for line in text.splitlines()
    ]
    return label + "\n".join(lines)[len(label) :]


def fit_command(command: str, columns: int) -> str:
    """Return a shell command on lines that end with a backslash where they're broken, between words.

    Args:
        columns: Width of the terminal.
    """
    first, *words = re.findall(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""", command)
    lines = [first]
    for word in words:
        if len(lines[-1]) + len(word) > columns - 3:
            lines.append(f"    {word}")
        else:
            lines[-1] += f" {word}"
    return " \\\n".join(lines)


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


class Confidential:
    """Shows no values in its `repr`, because some are credentials: ``class Account(Confidential, Struct): …``.

    A Struct or dataclass that contains it shows none either. For dataclasses, pass ``repr=False``.
    """

    __slots__ = ()

    @override
    def __repr__(self) -> str:
        return object.__repr__(self)


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
