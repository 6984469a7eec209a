"""Whether a regular expression can take more than linear time in a matcher that backtracks, such as Python's.

A pattern becomes an automaton with a position for each character (Glushkov). Matching takes more than linear time if a
string can be read on a growing number of paths: because a repeat can read it in two ways (exponential), or because two
repeats after one another can share it in many ways (polynomial). Search tries each start, like a repeat in front.
Whatever can't be analyzed counts as slow.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, cast

op: Any = import_module("re._constants")
_parser: Any = import_module("re._parser")
_MAX_POSITIONS = 400
_MAX_UNROLLED = 6
"""Maximum repetitions of a group to unroll. A repeat of more counts as unbounded, which is at least as slow."""
_MAX_STATES = 60_000
_SAMPLES = "aZ_0 \n\t-.\u00e9\u0663\u20ac\u00a0"
"""A character of each category, and others."""
_CATEGORIES = {
    op.CATEGORY_DIGIT: r"\d",
    op.CATEGORY_NOT_DIGIT: r"\D",
    op.CATEGORY_SPACE: r"\s",
    op.CATEGORY_NOT_SPACE: r"\S",
    op.CATEGORY_WORD: r"\w",
    op.CATEGORY_NOT_WORD: r"\W",
}
_REPEATS = (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT)
_SINGLE = [[op.LITERAL], [op.NOT_LITERAL], [op.IN], [op.ANY]]
_STARTS = (op.AT_BEGINNING, op.AT_BEGINNING_STRING)
Characters = frozenset[str]


class _Unknown(Exception):
    """A part that can't be analyzed, with the reason."""


class _Part:
    """A part of the automaton: the positions that it can begin and end with, and whether it can be empty."""

    def __init__(self, first: Sequence[int] = (), last: Sequence[int] = (), *, empty: bool = True) -> None:
        self.first, self.last, self.empty = first, last, empty


class _Automaton:
    """The positions of a pattern. Two edges between the same positions are two ways to read the same text."""

    def __init__(self, pattern: str, flags: int, *, search: bool) -> None:
        tree = _parser.parse(pattern, flags)
        self._flags: int = tree.state.flags
        self._alphabet = frozenset(_SAMPLES).union(_characters(tree))
        self.labels: list[Characters] = []
        self.edges: list[dict[int, tuple[int, Characters]]] = []
        """Position -> the next ones, with the number of ways and the characters."""
        self._assertions = False
        nodes = list(tree)
        anchored = bool(nodes) and nodes[0][0] is op.AT and nodes[0][1] in _STARTS and not self._flags & re.MULTILINE
        if anchored:
            nodes = nodes[1:]
        start: _Part = _Part()
        if search and not anchored:
            start = self._position(self._alphabet)
            self._connect(start, start, self._alphabet)
            start.empty = True
        whole = self._sequence(nodes, before=start, bounded=not (search and not anchored))
        self.accepting = frozenset[int]() if self._assertions else frozenset(whole.last)
        """Positions where the pattern matches whatever follows, so that nothing is tried again."""

    def _position(self, label: Characters) -> _Part:
        if len(self.labels) >= _MAX_POSITIONS:
            raise _Unknown("it is too large")
        self.labels.append(label)
        self.edges.append({})
        here = (len(self.labels) - 1,)
        return _Part(here, here, empty=False)

    def _connect(self, before: _Part, after: _Part, allowed: Characters) -> None:
        for source in before.last:
            for target in after.first:
                ways, known = self.edges[source].get(target, (0, frozenset[str]()))
                self.edges[source][target] = ways + 1, known | (self.labels[target] & allowed)

    def _join(self, before: _Part, after: _Part, allowed: Characters) -> _Part:
        self._connect(before, after, allowed)
        first = [*before.first, *after.first] if before.empty else before.first
        last = [*before.last, *after.last] if after.empty else after.last
        return _Part(first, last, empty=before.empty and after.empty)

    def _sequence(self, nodes: Iterable[Any], *, before: _Part, bounded: bool) -> _Part:
        """Append nodes to a part.

        Args:
            nodes: Parsed nodes.
            before: What precedes them.
            bounded: Whether nothing before can be read at many places.
        """
        allowed = self._alphabet
        for node in nodes:
            part = self._part(node, bounded=bounded)
            if part is None:
                continue
            before = self._join(before, part, allowed)
            kind, value = node
            if kind is op.POSSESSIVE_REPEAT and value[1] is op.MAXREPEAT and [each for each, _ in value[2]] in _SINGLE:
                allowed = self._alphabet - self.labels[part.first[0]]  # it has taken all of these
            elif not part.empty:
                allowed = self._alphabet
            bounded = bounded and not (kind in _REPEATS and value[1] > _MAX_UNROLLED)
        return before

    def _part(self, node: Any, *, bounded: bool) -> _Part | None:  # noqa: C901  a case for each kind
        kind, value = node
        if [kind] in _SINGLE:
            return self._position(_label(node, self._alphabet, self._flags))
        if kind is op.SUBPATTERN:
            return self._sequence(value[3], before=_Part(), bounded=bounded)
        if kind is op.ATOMIC_GROUP:
            return self._sequence(value, before=_Part(), bounded=bounded)
        if kind is op.BRANCH:
            parts = [self._sequence(each, before=_Part(), bounded=bounded) for each in value[1]]
            if sum(each.empty for each in parts) > 1:
                raise _Unknown("two of its alternatives can be empty")
            first, last = [n for each in parts for n in each.first], [n for each in parts for n in each.last]
            return _Part(first, last, empty=any(each.empty for each in parts))
        if kind in _REPEATS:
            return self._repeat(*value, bounded=bounded)
        if kind is op.AT:
            self._assertions = True
            return None
        if kind in (op.ASSERT, op.ASSERT_NOT):
            self._assertions = True
            if value[0] > 0:
                inner = _Part()
                size = len(self.labels)
                self._sequence(value[1], before=inner, bounded=False)
                if not bounded and any(size <= p for p in _find_loops(self)):
                    raise _Unknown("it looks ahead as far as it can at many places")
            return None
        raise _Unknown("it has a backreference" if kind in (op.GROUPREF, op.GROUPREF_EXISTS) else f"it has {kind}")

    def _repeat(self, low: int, high: int, body: Any, *, bounded: bool) -> _Part:
        probe = len(self.labels)
        part = self._sequence(body, before=_Part(), bounded=False)
        if part.empty:
            raise _Unknown("it repeats an expression that can match the empty string")
        exact = len(self.labels) == probe + 1 and low == high and high <= _MAX_POSITIONS // 4
        if high <= _MAX_UNROLLED or exact:
            whole = _Part(part.first, part.last, empty=low == 0)
            for number in range(1, high):
                part = self._sequence(body, before=_Part(), bounded=False)
                whole = self._join(whole, _Part(part.first, part.last, empty=number >= low), self._alphabet)
            return whole if high else _Part()
        self._connect(part, part, self._alphabet)
        return _Part(part.first, part.last, empty=low == 0)


def _characters(node: Any) -> Iterator[str]:
    """Yield the characters that a pattern tells apart: its literals, the ends of its ranges, and their neighbors."""
    kind: Any = None
    value: Any = None
    if isinstance(node, tuple) and len(pair := cast("Sequence[Any]", node)) == 2:
        kind, value = pair
    if kind in (op.LITERAL, op.NOT_LITERAL):
        yield from (chr(value), chr(value).swapcase()[:1])
    elif kind is op.RANGE:
        for each in (*value, max(value[0] - 1, 0), min(value[1] + 1, sys.maxunicode)):
            yield from (chr(each), chr(each).swapcase()[:1])
    elif isinstance(node, tuple | list | _parser.SubPattern):
        for each in cast("Iterable[Any]", node):
            yield from _characters(each)


def _label(node: Any, alphabet: Characters, flags: int) -> Characters:
    return frozenset(each for each in alphabet if _reads(node, each, flags))


def _reads(node: Any, character: str, flags: int) -> bool:
    kind, value = node
    forms = {character, character.lower(), character.upper()} if flags & re.IGNORECASE else {character}
    if kind is op.LITERAL:
        return chr(value) in forms
    if kind is op.NOT_LITERAL:
        return chr(value) not in forms
    if kind is op.ANY:
        return character != "\n" or bool(flags & re.DOTALL)
    if kind is op.RANGE:
        return any(len(each) == 1 and value[0] <= ord(each) <= value[1] for each in forms)
    if kind is op.CATEGORY:
        return re.match(_CATEGORIES[value], character, flags & re.ASCII) is not None
    negated = value[0][0] is op.NEGATE
    return any(_reads(each, character, flags) for each in value[negated:]) != negated


def _reachable(graph: _Automaton) -> list[set[int]]:
    found: list[set[int]] = []
    for start in range(len(graph.labels)):
        seen: set[int] = set()
        pending = list(graph.edges[start])
        while pending:
            position = pending.pop()
            if position not in seen:
                seen.add(position)
                pending += graph.edges[position]
        found.append(seen)
    return found


def _find_loops(graph: _Automaton) -> list[int]:
    return [position for position, seen in enumerate(_reachable(graph)) if position in seen]


def _walk(
    graph: _Automaton, start: tuple[int, ...], inside: Sequence[set[int]], room: list[int]
) -> set[tuple[int, ...]]:
    """Return the tuples of positions that reading the same text leads to, within a set for each member."""
    seen = {start}
    pending = [start]
    while pending:
        state = pending.pop()
        room[0] -= 1
        if room[0] < 0:
            raise _Unknown("it is too large")
        steps: list[tuple[tuple[int, ...], Characters | None]] = [((), None)]
        for position, allowed in zip(state, inside, strict=True):
            steps = [
                ((*before, target), common)
                for before, characters in steps
                for target, (_, label) in graph.edges[position].items()
                if target in allowed and (common := label if characters is None else characters & label)
            ]
        for following, _ in steps:
            if following not in seen:
                seen.add(following)
                pending.append(following)
    return seen


def _slowness(graph: _Automaton) -> str:
    reach = _reachable(graph)
    loops = [position for position in range(len(reach)) if position in reach[position]]
    room = [_MAX_STATES]
    around = {each: {other for other in reach[each] if each in reach[other]} for each in loops}
    for each in loops:
        if each in graph.accepting:
            continue
        inside = around[each]
        twice = any(ways > 1 and target in inside for target, (ways, _) in graph.edges[each].items())
        pairs = _walk(graph, (each, each), (inside, inside), room)
        if twice or any(
            one < other and (each, each) in _walk(graph, (one, other), (inside, inside), room) for one, other in pairs
        ):
            return "one of its repeats can match the same text in several ways"
    for each in loops:
        for other in loops:
            if other not in reach[each] or other in around[each] or {each, other} & graph.accepting:
                continue
            between = reach[each] & ({p for p in range(len(reach)) if other in reach[p]} | {other})
            if (each, other, other) in _walk(graph, (each, each, other), (around[each], between, around[other]), room):
                return "two repeats in it, or a repeat and the search for its beginning, can read the same text"
    return ""


@lru_cache(1024)
def find_backtracking(pattern: str, flags: int = 0, *, search: bool = True) -> str:
    """Return why a pattern can take more than linear time, or an empty string.

    Args:
        pattern: A regular expression of Python.
        flags: Its flags.
        search: Whether a match may begin anywhere.
    """
    try:
        return _slowness(_Automaton(pattern, flags, search=search))
    except _Unknown as error:
        return str(error)
    except re.error as error:
        return f"Python can't compile it ({error})"
