"""A checker for histories of one key: is there an order of the operations, true to when each began and ended, in which
every one of them returned what a single register would return?

The search is that of Wing and Gong ("Testing and verifying concurrent objects", 1993), with a memory of the states
that were tried. An operation whose outcome is unknown may have happened at any time after it began, or never.
"""

from typing import Any

from msgspec import Struct

Value = bytes | None


class Operation(Struct, frozen=True):
    """One of a history. Times are places in one order of all beginnings and ends."""

    kind: str
    """get, put, cas or delete."""
    arguments: tuple[Value, ...]
    result: Any
    began: int
    ended: int | None
    """None where the outcome is unknown."""


def is_linearizable(history: list[Operation], initial: Value = None) -> bool:
    """Whether there is such an order."""
    tried: set[tuple[frozenset[int], Value]] = set()

    def search(left: frozenset[int], value: Value) -> bool:
        if (left, value) in tried:
            return False
        tried.add((left, value))
        if all(history[number].ended is None for number in left):
            return True
        first_end = min(end for number in left if (end := history[number].ended) is not None)
        for number in left:
            operation = history[number]
            if operation.began > first_end:
                continue  # another one had ended before this began
            possible, after = _apply(operation, value)
            if possible and search(left - {number}, after):
                return True
        return False

    return search(frozenset(range(len(history))), initial)


def _apply(operation: Operation, value: Value) -> tuple[bool, Value]:
    """Whether a register with this value may return what the operation returned, and its value afterwards."""
    unknown = operation.ended is None
    if operation.kind == "get":
        return unknown or operation.result == value, value
    if operation.kind == "put":
        return True, operation.arguments[0]
    if operation.kind == "delete":
        return unknown or operation.result == (value is not None), None
    expected, new = operation.arguments
    holds = value == expected
    return unknown or operation.result == holds, new if holds else value
