"""Whether Python's matcher, which backtracks, takes linear time for a regular expression.

It does if the next character always determines how to continue, after each repeat and between alternatives. If a small
scanner can't prove that, the expression is considered slow. pydantic's matcher takes linear time for every expression
that it supports.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from math import inf
from typing import Any

from msgspec import Struct

from millstream._protocol.json_schema import DECIMAL, walk
from millstream._server.functions.parameters import PatternError

_MAX_SEARCHED = 4_096
_MAX_WAYS = 64
"""Maximum number of ways in which bounded repeats and alternatives may read a text."""
_MAX_STEPS = 256
"""Maximum number of these ways times the characters of each, if a match may begin anywhere. Larger repeats are treated
as unbounded."""
_LATIN = "".join(map(chr, range(0x250)))
"""Characters that distinguish all ASCII sets in an expression, and the characters after them."""
_OTHERS = "\u0663\u20ac\u2028\u212a"
_ESCAPE = r"\\(?:[^\w]|[dwsDWSnrt])"
_TOKENS = re.compile(
    rf"(?P<atom>{_ESCAPE}|\[\^?\]?(?:{_ESCAPE}|[^\]\\])*+\]|[^\\()\[\]{{}}|?*+^$])"
    r"|(?P<edge>[\^$]|\\[AZbB])|(?P<group>\((?:\?:|\?P<\w+>|(?!\?)))|(?P<end>[)|])"
)
_COUNT = re.compile(r"(?:([*+?])|\{(?!})(\d*)(?:(,)(\d*))?\})([?+]?)")


class _Unknown(Exception):
    """The expression isn't proven to take linear time. The message gives the reason."""


class _Node(Struct):
    """A part of an expression: a character, a sequence (`parts`), or alternatives, repeated or not."""

    first: frozenset[str] = frozenset()
    """Characters that it can begin with."""
    empty: bool = False
    parts: list["_Node"] = []
    alternatives: bool = False
    low: float = 1
    high: float = 1
    possessive: bool = False


def _sequence(parts: list[_Node]) -> _Node:
    first = frozenset[str]()
    for part in parts:
        first |= part.first
        if not part.empty:
            return _Node(first, parts=parts)
    return _Node(first, empty=True, parts=parts)


class _Scanner:
    def __init__(self, pattern: str, flags: int) -> None:
        self._pattern, self._at = pattern, 0
        self._flags = flags & ~re.DEBUG
        self._alphabet = _LATIN + _OTHERS if pattern.isascii() else "".join(map(chr, range(0x10000)))

    def alternatives(self) -> _Node:
        found: list[_Node] = []
        parts: list[_Node] = []
        while self._at < len(self._pattern):
            token = _TOKENS.match(self._pattern, self._at)
            if token is None:
                raise _Unknown(f"its part {self._pattern[self._at : self._at + 10]!r} can't be analyzed")
            self._at = token.end()
            if token["end"] == ")":
                break
            if token["end"]:
                found.append(_sequence(parts))
                parts = []
            elif token["edge"]:
                parts.append(_Node(empty=True))
            elif token["group"]:
                parts.append(self._repeat(self.alternatives()))
            else:
                parts.append(self._repeat(_Node(frozenset(re.findall(token[0], self._alphabet, self._flags)))))
        found.append(_sequence(parts))
        if len(found) == 1:
            return found[0]
        first, empty = frozenset[str]().union(*(each.first for each in found)), any(each.empty for each in found)
        return _Node(first, empty=empty, parts=found, alternatives=True)

    def _repeat(self, node: _Node) -> _Node:
        count = _COUNT.match(self._pattern, self._at)
        if count is None:
            return node
        self._at = count.end()
        sign, low, comma, high, mode = count.groups()
        if node.empty:
            raise _Unknown("it repeats an expression that can match the empty string")
        least = int(sign == "+") if sign else int(low or 0)
        most = (1 if sign == "?" else inf) if sign else float(high or inf) if comma else least
        most = inf if most > _MAX_STEPS else most
        return _Node(node.first, least == 0, [node], low=least, high=most, possessive=mode == "+")


def _cost(node: _Node, follow: frozenset[str]) -> tuple[float, float]:
    """Return the number of ways in which a text can match, and the characters of the longest one.

    Args:
        node: A part of an expression.
        follow: Characters that can come after it.
    """
    if node.alternatives:
        costs = [_cost(each, follow) for each in node.parts]
        starts = [each.first | follow if each.empty else each.first for each in node.parts]
        apart = sum(map(len, starts)) == len(frozenset[str]().union(*starts))
        return (max if apart else sum)(each for each, _ in costs), max(length for _, length in costs)
    if node.high != 1 or node.low != 1:
        [body] = node.parts
        inside, length = _cost(body, follow | body.first if node.high > 1 else follow)
        clashes = node.low < node.high and not node.possessive and not body.first.isdisjoint(follow)
        if node.high == inf:
            if clashes or inside > 1:
                raise _Unknown(
                    "one of its repeats can also match the text that follows, or match the same text in several ways"
                )
            return 1, inf
        return inside**node.high * (node.high - node.low + 1 if clashes else 1), length * node.high
    if not node.parts:
        return 1, 1
    ways, total = 1.0, 0.0
    for part in reversed(node.parts):
        inside, length = _cost(part, follow)
        ways, total = ways * inside, total + length
        follow = part.first | follow if part.empty else part.first
    return ways, total


@lru_cache(1024)
def find_backtracking(pattern: str, flags: int = 0) -> str:
    """Return why a pattern isn't known to take linear time, or an empty string.

    Args:
        pattern: A regular expression of Python.
    """
    try:
        re.compile(pattern, flags)
        if flags & re.VERBOSE:
            raise _Unknown("it uses verbose mode")
        whole = _Scanner(pattern, flags).alternatives()
        ways, length = _cost(whole, frozenset())
        anchored = pattern.startswith(("^", r"\A")) and not flags & re.MULTILINE and not whole.alternatives
        if length == inf and whole.parts and not whole.alternatives and (last := whole.parts[-1]).high == inf:
            # It can't fail after enough repetitions.
            needed = [*whole.parts[:-1], *last.parts * int(last.low)]
            length = _cost(_sequence(needed), frozenset())[1]
    except _Unknown as error:
        return str(error)
    except (re.error, ArithmeticError, RecursionError) as error:
        return f"Python can't compile it ({error})"
    if ways > _MAX_WAYS:
        return "it can match the same text in many ways"
    return "" if anchored or ways * length <= _MAX_STEPS else "a match can begin anywhere and be of any length"


ADVICE = (
    "Anchor it with ^, and let the next character decide whether a repeat continues. Or let pydantic match it in "
    "linear time: pip install 'millstream[pydantic]', and use no Struct, lookahead, or backreference for it"
)


def check_pattern(pattern: str, flags: int = 0) -> None:
    """Check a pattern that Python's matcher tries on text from clients.

    Raises:
        PatternError: A text can make it take very long. The error suggests a replacement.
    """
    if why := find_backtracking(pattern, flags):
        raise PatternError(f"the pattern {pattern!r} can take very long to match, because {why}. {ADVICE}")


def check_patterns(schema: Any) -> None:
    """Check the patterns of a schema. Raises the error of `check_pattern`."""
    for node in walk(schema):
        pattern = node.get("pattern")
        if isinstance(pattern, str) and pattern != DECIMAL:
            check_pattern(pattern)


def search(pattern: str, text: str) -> bool:
    """Return whether a checked pattern matches anywhere in a text. Long texts aren't searched."""
    return len(text) > _MAX_SEARCHED or re.search(pattern, text) is not None


@lru_cache(256)
def matcher_of(pattern: str) -> Callable[[str], bool]:
    """Return a function that tries a pattern in linear time: with pydantic, if Python's matcher could take longer.

    Raises:
        PatternError: Neither can match in linear time. The error suggests a replacement.
    """
    if not find_backtracking(pattern):
        return lambda text: re.search(pattern, text) is not None
    try:
        core = import_module("pydantic_core")
        validator = core.SchemaValidator(core.core_schema.str_schema(pattern=pattern))
    except Exception:
        check_pattern(pattern)
        raise
    matches: Callable[[str], bool] = validator.isinstance_python
    return matches
