"""Redaction of text by regular expressions. The expressions are the operator's; the text is untrusted.

RE2's run time is linear in the text, whatever the expression (docs/decisions/0037), but the text can have many
megabytes, so only small messages are redacted on the event loop. It doesn't support look-around and back-references.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from millstream._protocol.errors import MissingExtra, ProtocolError, SuggestionMeta, ToolError
from millstream._protocol.json_schema import is_array, is_object
from millstream._protocol.jsonrpc import encode
from millstream._server.calls.call import Call
from millstream._server.load import LIGHT

T = TypeVar("T")

MAX_PATTERNS = 64
_MAX_PATTERN = 1000
_MAX_PROGRAM = 1 << 20
"""Maximum bytes of a compiled expression."""


class Redaction(Struct, frozen=True, forbid_unknown_fields=True, metaclass=SuggestionMeta):
    """A regular expression in RE2's syntax, and the text that replaces each match.

    Example:
        ``Redaction(r"[\\w.]+@[\\w.]+", replacement="[email]")``
    """

    pattern: str
    replacement: str = "[redacted]"


class Redactor:
    """Applies several redactions in order.

    Raises:
        ValueError: a pattern isn't a regular expression of RE2, or there are more than 64.
        ImportError: the extra `redact` isn't installed.
    """

    def __init__(self, patterns: Sequence[str | Redaction]) -> None:
        try:
            re2: Any = import_module("re2")  # optional, without type hints
        except ImportError:
            raise MissingExtra("Redacting arguments and results", "redact") from None
        if len(patterns) > MAX_PATTERNS:
            raise ValueError(f"There are {len(patterns)} regular expressions. Use at most {MAX_PATTERNS}.")
        options = re2.Options()
        options.max_mem = _MAX_PROGRAM
        options.log_errors = False
        self._steps: list[tuple[Callable[[Callable[[Any], str], str], str], Callable[[Any], str]]] = []
        for each in patterns:
            redaction = Redaction(each) if isinstance(each, str) else each
            if len(redaction.pattern) > _MAX_PATTERN:
                raise ValueError(
                    f"The regular expression {redaction.pattern[:40]!r}… is too long. Split it into several."
                )
            try:
                compiled = re2.compile(redaction.pattern, options)
            except re2.error as exc:
                raise ValueError(
                    f"{redaction.pattern!r} isn't a valid RE2 regular expression: {_reason(exc)}."
                ) from None
            if compiled.search("") is not None:
                raise ValueError(
                    f"{redaction.pattern!r} matches the empty string, so it would redact between all characters."
                )
            text = redaction.replacement
            self._steps.append((compiled.sub, partial(_constant, text)))

    def text(self, text: str) -> str:
        """Return a text with its matches replaced."""
        for substitute, replacement in self._steps:
            text = substitute(replacement, text)
        return text

    def value(self, value: Any, *, names: bool = True) -> Any:
        """Return a JSON value with matches replaced in strings and numbers.

        Args:
            value: the value.
            names: whether to replace matches in member names as well.
        """
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            written = encode(value).decode()
            text = self.text(written)
            return value if text == written else text
        if is_array(value):
            return [self.value(each, names=names) for each in value]
        if is_object(value):
            found: dict[str, Any] = {}
            for name, each in value.items():
                text = self.text(name) if names else name
                found[f"{text} {len(found) + 1}" if text in found else text] = self.value(each, names=names)
            return found
        return value

    def members(self, value: Any) -> Any:
        """Return a JSON value with matches replaced, except in its own member names, which the protocol defines."""
        return {name: self.value(each) for name, each in value.items()} if is_object(value) else self.value(value)

    def json(self, data: bytes) -> bytes:
        """Return an encoded result or params with matches replaced, see `members`."""
        return encode(self.members(msgspec.json.decode(data)))

    async def redact(self, work: Awaitable[bytes], call: Call) -> bytes:
        """Return the result of `work` for a call with matches replaced, also in its errors."""
        try:
            result = await work
        except ToolError as exc:
            raise ToolError(self.text(str(exc))) from None
        except ProtocolError as exc:
            message, data = self.text(exc.message), self.members(exc.data)
            raise ProtocolError(exc.code, message, data, status=exc.status, head=exc.head) from None
        return await run_aside(call, len(result), self.json, result)


async def run_aside(call: Call, size: int, function: Callable[..., T], *args: Any) -> T:
    """Run a function that examines each value of a message, in a thread unless the message is small.

    Args:
        call: the call that needs it.
        size: bytes of the message, see `Call.weight`.
        function: the function.
        args: its arguments.

    Raises:
        ToolError: the caller's share of the threads is in use.
    """
    if size < LIGHT:
        return function(*args)
    result: T = await call.services.threads.run(function, *args, owner=call.owner)
    return result


def _constant(text: str, match: Any) -> str:
    return text


def _reason(exc: Exception) -> str:
    reason: object = exc.args[0] if exc.args else ""
    return reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
