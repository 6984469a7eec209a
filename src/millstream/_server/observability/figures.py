"""Measurements for the dashboard: one `Figures` per worker, merged into one page.

Figures hold counts by bucket instead of percentiles, so those of several workers can be added up. `dashboard_values`
computes percentiles and rates from the sum.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

from msgspec import Struct

from millstream._telemetry.metrics import Labels, percentiles

Key = TypeVar("Key")
Value = TypeVar("Value")


class OperationFigures(Struct, frozen=True, array_like=True, gc=False):
    """The calls of one method or tool."""

    calls: int
    errors: int
    grown: list[int]
    """Recent calls by bucket, or empty without any."""
    per_second: float
    """Recent calls per second."""
    rate: float | None
    """Calls per second since the previous read, or None if that was long ago."""


class Figures(Struct, frozen=True, array_like=True):
    """The measurements of one worker."""

    pid: int
    host: str
    since: float
    """Seconds since 1970."""
    uptime: float
    window: float
    """Length of the recent period in seconds."""
    bounds: tuple[float, ...]
    """The bounds of the buckets."""
    operations: dict[tuple[str, str], OperationFigures]
    """Operations by method and tool name."""
    per_second: list[int]
    """Calls in each of the last whole seconds, oldest first."""
    sessions: dict[Labels, int]
    connections: dict[Labels, int]
    lag: tuple[float, float]
    """Lag of the event loop in milliseconds: the newest, and the worst of the last minute."""
    process: dict[str, float | None]
    hub: dict[str, Any] | None = None
    blocked: float = 0.0
    """Milliseconds of the last minute in which the event loop was blocked. The last field, because older versions don't
    have it.
    """


def dashboard_values(workers: Mapping[str, Figures], here: str, *, store: Any = None) -> dict[str, Any]:
    """Return all values of the dashboard as JSON values: sums over the workers, and a row for each.

    Rates and percentiles cover the last 10 to 15 seconds if an earlier read allows it, otherwise a longer period:
    ``window_seconds`` is its length. ``at_seconds`` only grows while the same worker answers.

    Args:
        workers: The figures of the workers, by name.
        here: The name of the worker that answers.
        store: The health of the store, passed through.
    """
    own, every = workers[here], list(workers.values())
    operations = _merge_all((_comparable(each, own.bounds) for each in every), _merge)
    rows = [_row(key, operations[key], own.bounds) for key in sorted(operations)]
    return {
        "at_seconds": round(own.uptime, 3),
        "uptime_seconds": round(max(each.uptime for each in every), 3),
        "window_seconds": round(max(each.window for each in every), 3),
        "calls": sum(row["calls"] for row in rows),
        "errors": sum(row["errors"] for row in rows),
        "per_second": _history([each.per_second for each in every]),
        "tools": [row for row in rows if row["method"] == "tools/call"],
        "methods": [row for row in rows if row["method"] != "tools/call"],
        "sessions": _rows(_merge_all((each.sessions for each in every), _sum)),
        "connections": _rows(_merge_all((each.connections for each in every), _sum)),
        "loop_lag_ms": {
            "last": max(each.lag[0] for each in every),
            "worst": max(each.lag[1] for each in every),
            "blocked": max(each.blocked for each in every),
        },
        "process": _merge_all((each.process for each in every), _sum),
        "hub": _sum_of_all([each.hub for each in every]),
        "store": store,
        "workers": [_worker(name, each) for name, each in sorted(workers.items(), key=_age)],
    }


def _age(named: tuple[str, Figures]) -> tuple[float, str]:
    return named[1].since, named[0]


def _worker(name: str, figures: Figures) -> dict[str, Any]:
    return {
        "name": name,
        "pid": figures.pid,
        "host": figures.host,
        "calls_per_second": figures.per_second[-1] if figures.per_second else 0,
        "streams": sum(figures.connections.values()),
        "memory_bytes": figures.process.get("resident_bytes"),
        "lag_ms": figures.lag[0],
        "since": figures.since,
    }


# Calls


def _comparable(figures: Figures, bounds: tuple[float, ...]) -> Mapping[tuple[str, str], OperationFigures]:
    """Return the operations of a worker. One with other buckets, such as another version, contributes only call
    counts.
    """
    if figures.bounds == bounds:
        return figures.operations
    return {
        key: OperationFigures(each.calls, each.errors, [], each.per_second, each.rate)
        for key, each in figures.operations.items()
    }


def _merge(one: OperationFigures, other: OperationFigures) -> OperationFigures:
    return OperationFigures(
        one.calls + other.calls,
        one.errors + other.errors,
        _longer(one.grown, other.grown),
        one.per_second + other.per_second,
        _sum(one.rate, other.rate),
    )


def _longer(one: list[int], other: list[int]) -> list[int]:
    """Return sums by bucket. An empty list counts as zeros."""
    return [a + b for a, b in zip(one, other, strict=True)] if one and other else one or other


def _row(key: tuple[str, str], operation: OperationFigures, bounds: Sequence[float]) -> dict[str, Any]:
    return {
        "method": key[0],
        "name": key[1],
        "calls": operation.calls,
        "errors": operation.errors,
        "per_second": round(operation.per_second, 2),
        "rate": None if operation.rate is None else round(operation.rate, 2),
        **percentiles(bounds, operation.grown),
    }


def _history(several: Sequence[Sequence[int]]) -> list[int]:
    """Return the calls of all workers per second. All lists end with the same second, and the longest determines the
    length.
    """
    length = max(map(len, several))
    return [sum(each[place - length] for each in several if len(each) >= length - place) for place in range(length)]


# Other sums


def _merge_all(several: Iterable[Mapping[Key, Value]], both: Callable[[Value, Value], Value]) -> dict[Key, Value]:
    found: dict[Key, Value] = {}
    for each in several:
        for key, value in each.items():
            found[key] = both(found[key], value) if key in found else value
    return found


def _sum(one: Any, other: Any) -> Any:
    """Return the sum of numbers or of dicts of numbers. None adds nothing."""
    if one is None or other is None:
        return other if one is None else one
    if isinstance(one, dict):
        return _merge_all(cast("list[dict[str, Any]]", [one, other]), _sum)
    return one + other


def _sum_of_all(several: Sequence[Any]) -> Any:
    total: Any = None
    for each in several:
        total = _sum(total, each)
    return total


def _rows(values: Mapping[Labels, int]) -> list[dict[str, Any]]:
    return [
        {"transport": transport, "revision": revision, "count": value}
        for (transport, revision), value in sorted(values.items())
        if value
    ]
