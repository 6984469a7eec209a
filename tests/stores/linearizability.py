"""A linearizability checker for histories of one key.

A history is linearizable if its operations have an order, consistent with their start and end times, in which each
returned what a single register would return. The search is by Wing and Gong ("Testing and verifying concurrent
objects", 1993), with memoized states. An operation with an unknown outcome may take effect at any time after its start,
or never.
"""

from typing import Any

from msgspec import Struct

Value = bytes | None


class Operation(Struct, frozen=True):
    """An operation of a history. Times are positions in the order of all starts and ends."""

    kind: str
    """get, put, cas or delete."""
    arguments: tuple[Value, ...]
    result: Any
    began: int
    ended: int | None
    """None if the outcome is unknown."""


def is_linearizable(history: list[Operation], initial: Value = None) -> bool:
    """Return whether a history is linearizable."""
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
                continue  # another operation ended before this one started
            possible, after = _apply(operation, value)
            if possible and search(left - {number}, after):
                return True
        return False

    return search(frozenset(range(len(history))), initial)


def _apply(operation: Operation, value: Value) -> tuple[bool, Value]:
    """Return whether a register with a value could produce the operation's result, and its new value."""
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
