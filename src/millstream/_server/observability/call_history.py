"""The merged history of all workers, for charts. All functions are pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from millstream._telemetry.history import REST, Gauges, HistoryWindow, OperationTally
from millstream._telemetry.metrics import SHARES, percentiles

_LATE = 5
"""Maximum seconds by which the newest data of other workers lags. Newer points wait for it."""


def history_values(pasts: Sequence[HistoryWindow], seconds: int) -> dict[str, Any]:
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
            whole, before = points.get(at, (OperationTally(0, {}), None))
            whole.add(tally)
            points[at] = whole, gauges if before is None else _add_gauges(before, gauges)
    total = OperationTally(0, {})
    for tally, _ in points.values():
        total.add(tally)
    rows = [_row(key, tally, first.bounds) for key, tally in sorted(operations.items())]
    return {
        "seconds": seconds,
        "step": step,
        "until": until,
        "total": _figures(total, first.bounds),
        "at": times,
        "all": _columns(times, {at: tally for at, (tally, _) in points.items()}, points, first.bounds),
        "chosen": _columns(times, chosen, points, first.bounds),
        "process": _gauges(times, points, step),
        "operations": [row for row in rows if row["method"]],
        "rest": next((row for row in rows if not row["method"]), None),
    }


def _add_all(found: dict[Any, OperationTally], more: Mapping[Any, OperationTally]) -> None:
    for key, tally in more.items():
        found.setdefault(key, OperationTally(0, {})).add(tally)


def _add_gauges(one: Gauges, other: Gauges) -> Gauges:
    """Return the sum of the gauges of two workers at the same time."""
    return Gauges(
        max(one.lag, other.lag), one.cpu + other.cpu, one.memory + other.memory, one.streams + other.streams
    )  # fmt: skip


def _columns(
    times: Iterable[int], tallies: Mapping[int, OperationTally], known: Mapping[int, object], bounds: tuple[float, ...]
) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in ("calls", "errors", *(name for name, _ in SHARES))}
    nothing = OperationTally(0, {})
    for at in times:
        row = _figures(tallies.get(at, nothing), bounds) if at in known else {}
        for name, column in columns.items():
            column.append(row.get(name))
    return columns


def _gauges(
    times: Iterable[int], points: Mapping[int, tuple[OperationTally, Gauges]], step: int
) -> dict[str, list[Any]]:
    found = [points[at][1] if at in points else None for at in times]
    return {
        "lag_ms": [each and round(each.lag * 1000, 2) for each in found],
        "cpu_percent": [each and round(100 * each.cpu / step, 1) for each in found],
        "memory_bytes": [each and (each.memory or None) for each in found],
        "streams": [each and each.streams for each in found],
    }


def _figures(tally: OperationTally, bounds: tuple[float, ...]) -> dict[str, Any]:
    counts = [tally.buckets.get(place, 0) for place in range(len(bounds) + 1)]
    return {"calls": sum(counts), "errors": tally.errors, **percentiles(bounds, counts)}


def _row(key: tuple[str, str], tally: OperationTally, bounds: tuple[float, ...]) -> dict[str, Any]:
    method, name = key if key != REST else ("", "")
    return {"method": method, "name": name, **_figures(tally, bounds)}
