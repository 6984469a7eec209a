"""Observation of calls: metrics, the message log, and traces.

This module has the measurements for the dashboard: one `Figures` and one history per worker, merged into one page.
Histories contain counts by bucket instead of percentiles, so several workers' histories can be added up.
`dashboard_values` adds up the figures, and `history_values` computes the charts. All functions are pure.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, TypeAlias, TypeVar, cast

from msgspec import Struct

from millstream._protocol.jsonrpc import Json
from millstream._telemetry.metrics import SHARES, Labels, percentiles
from millstream._telemetry.process import REST, Gauges, HistoryWindow, OperationTally

_LATE = 5
"""Maximum lag of other workers' newest data, in seconds. Newer points wait for it."""


def history_values(pasts: Sequence[HistoryWindow], seconds: int) -> Json:
    """Return columns of points, and a row per operation.

    Each column has a value for each time in ``at`` (seconds since 1970), or null without data. Percentiles cover all
    calls of a point. The worst lag is used. Everything else is a sum over the workers.

    Args:
        pasts: The history of each worker, starting with the one that answers.
        seconds: The requested period.
    """
    first = pasts[0]
    same = [each for each in pasts if (each.bounds, each.step) == (first.bounds, first.step)]
    until = min((each.until for each in same if each.until > first.until - _LATE), default=first.until)
    step, start = first.step, until - seconds
    times = list(range(start // step * step, until, step))
    points: dict[int, tuple[OperationTally, Gauges]] = {}
    chosen: dict[int, OperationTally] = {}
    operations: dict[tuple[str, str], OperationTally] = {}
    for past in same:
        _add_all(operations, past.operations)
        _add_all(chosen, past.chosen)
        for at, (tally, gauges) in past.points.items():
            whole, before = points.get(at, (OperationTally(), None))
            whole.add(tally)
            points[at] = whole, gauges if before is None else _add_gauges(before, gauges)
    total = OperationTally()
    for tally, _ in points.values():
        total.add(tally)
    # The newest point has only some of its seconds, so its values also cover the point before.
    periods: list[Period] = [((at,) if at in points else (), step) for at in times]
    if times and (passed := until - times[-1]) < step and times[-1] in points:
        earlier = [each for each in (times[-1] - step,) if each in points]
        periods[-1] = (*earlier, times[-1]), passed + step * len(earlier)
    operations.pop(REST, None)
    return {
        "seconds": seconds,
        "step": step,
        "until": until,
        "total": _figures(total, first.bounds),
        "at": times,
        "all": _columns(periods, {at: tally for at, (tally, _) in points.items()}, first.bounds),
        "chosen": _columns(periods, chosen, first.bounds),
        "process": _gauges(periods, points),
        "operations": [
            {"method": method, "name": name, **_figures(tally, first.bounds)}
            for (method, name), tally in sorted(operations.items())
        ],
    }


def _add_all(found: dict[Any, OperationTally], more: Mapping[Any, OperationTally]) -> None:
    for key, tally in more.items():
        found.setdefault(key, OperationTally()).add(tally)


def _add_gauges(one: Gauges, other: Gauges) -> Gauges:
    """Return the sum of two workers' gauges at the same time."""
    return Gauges(max(one.lag, other.lag), one.cpu + other.cpu, one.memory + other.memory)


Period: TypeAlias = tuple[tuple[int, ...], int]
"""The times of the intervals that a point covers (none without data), and the point's length in seconds."""


def _columns(
    periods: Iterable[Period], tallies: Mapping[int, OperationTally], bounds: tuple[float, ...]
) -> dict[str, list[Any]]:
    names = ("calls", "rate", "client_error_rate", "server_error_rate", *(name for name, _ in SHARES))
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for slots, seconds in periods:
        tally = OperationTally()
        for at in slots:
            tally.add(tallies.get(at, OperationTally()))
        row = _figures(tally, bounds) if slots else {}
        if slots:
            row["rate"] = row["calls"] / seconds
            row["client_error_rate"] = (tally.errors - tally.server_errors) / seconds
            row["server_error_rate"] = tally.server_errors / seconds
            row["calls"] = sum(tallies[slots[-1]].buckets.values()) if slots[-1] in tallies else 0
        for name, column in columns.items():
            column.append(row.get(name))
    return columns


def _gauges(periods: Sequence[Period], points: Mapping[int, tuple[OperationTally, Gauges]]) -> dict[str, list[Any]]:
    found = [reduce(Gauges.with_, (points[at][1] for at in slots)) if slots else None for slots, _ in periods]
    return {
        "lag_ms": [each and round(each.lag * 1000, 2) for each in found],
        "cpu_percent": [
            each and round(100 * each.cpu / seconds, 1) for each, (_, seconds) in zip(found, periods, strict=True)
        ],
        "memory_bytes": [each and (each.memory or None) for each in found],
    }


def _figures(tally: OperationTally, bounds: tuple[float, ...]) -> Json:
    counts = [tally.buckets.get(place, 0) for place in range(len(bounds) + 1)]
    errors = {"errors": tally.errors, "server_errors": tally.server_errors}
    return {"calls": sum(counts), **errors, **percentiles(bounds, counts)}


Key = TypeVar("Key")
Value = TypeVar("Value")


class Figures(Struct, frozen=True, array_like=True):
    """A worker's measurements."""

    name: str
    pid: int
    host: str
    since: float
    """Seconds since 1970."""
    uptime: float
    operations: dict[tuple[str, str], dict[str, int]]
    """Method and tool name -> numbers of calls, errors, and errors that the server caused."""
    per_second: int
    """Calls in the last whole second."""
    sessions: dict[Labels, int]
    connections: dict[Labels, int]
    lag: float
    """Latest lag of the event loop in milliseconds."""
    process: dict[str, float | None]
    hub: Json | None = None
    blocked: float = 0.0
    """Milliseconds of the last minute in which the event loop was blocked."""


def dashboard_values(workers: Mapping[str, Figures], here: str, *, store: Any = None) -> Json:
    """Return all values of the dashboard as JSON values: sums over the workers, and a row for each.

    ``at_seconds`` only grows while the same worker answers.

    Args:
        workers: The figures of the workers, by name.
        here: The name of the worker that answers.
        store: The health of the store, passed through.
    """
    own, every = workers[here], list(workers.values())
    operations = merge_all((each.operations for each in every), add_up)
    rows: list[Json] = [{"method": method, "name": name, **each} for (method, name), each in sorted(operations.items())]
    return {
        "at_seconds": round(own.uptime, 3),
        "uptime_seconds": round(max(each.uptime for each in every), 3),
        "calls": sum(row["calls"] for row in rows),
        "tools": [row for row in rows if row["method"] == "tools/call"],
        "methods": [row for row in rows if row["method"] != "tools/call"],
        "sessions": _rows(merge_all((each.sessions for each in every), add_up)),
        "connections": _rows(merge_all((each.connections for each in every), add_up)),
        "event_loop_lag_ms": {"blocked": max(each.blocked for each in every)},
        "process": merge_all((each.process for each in every), add_up),
        "hub": reduce(add_up, [each.hub for each in every]),
        "store": store,
        "workers": [
            {
                "name": name,
                "pid": each.pid,
                "host": each.host,
                "calls_per_second": each.per_second,
                "streams": sum(each.connections.values()),
                "memory_bytes": each.process.get("resident_bytes"),
                "lag_ms": each.lag,
                "since": each.since,
            }
            for name, each in sorted(workers.items(), key=lambda item: (item[1].since, item[0]))
        ],
    }


def merge_all(several: Iterable[Mapping[Key, Value]], both: Callable[[Value, Value], Value]) -> dict[Key, Value]:
    """Return the entries of several dicts. `both` merges two values of one key."""
    found: dict[Key, Value] = {}
    for each in several:
        for key, value in each.items():
            found[key] = both(found[key], value) if key in found else value
    return found


def add_up(one: Any, other: Any) -> Any:
    """Return the sum of numbers or of dicts of numbers. None adds nothing."""
    if one is None or other is None:
        return other if one is None else one
    if isinstance(one, dict):
        return merge_all(cast("list[Json]", [one, other]), add_up)
    return one + other


def _rows(values: Mapping[Labels, int]) -> list[Json]:
    return [
        {"transport": transport, "revision": revision, "count": value}
        for (transport, revision), value in sorted(values.items())
        if value
    ]
