"""The metrics of several processes as one: dumped by each, added up by whoever is asked.

What was counted by a process that has ended stays counted, or the sums would fall. What it had (memory, connections)
is gone with it.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from millstream._telemetry.metrics import Dump, Labels, Merge, Metrics
from millstream._telemetry.sketch import union

_LASTING: Final = ("counter", "histogram")
_REMEMBERED: Final = 1_000
"""Names of processes that have ended."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Dump]).decode


class Ended(Struct, array_like=True):
    """The processes that have ended, as one."""

    names: list[str]
    """Those that were added last: nobody is added twice."""
    dumps: list[Dump]


def dump(metrics: Metrics) -> bytes:
    """The metrics of this process now."""
    return _encode(metrics.dump())


def add_ended(ended: Ended, name: str, data: bytes) -> Ended:
    """Add what a process that has ended had counted."""
    if name in ended.names:
        return ended
    lasting = [each for each in _decode(data) if each.kind in _LASTING]
    return Ended([*ended.names, name][-_REMEMBERED:], _merge([ended.dumps, lasting]))


def render(processes: Iterable[bytes], ended: Sequence[Dump] = ()) -> bytes:
    """All as Prometheus text."""
    metrics = Metrics()
    for each in _merge([list(ended), *map(_decode, processes)]):
        metrics.restore(each)
    return metrics.render()


def _merge(several: Iterable[Sequence[Dump]]) -> list[Dump]:
    """Metrics with the same name become one. One that another version measures differently counts as its first."""
    merged: dict[str, Dump] = {}
    for dumps in several:
        for each in dumps:
            first = merged.get(each.name)
            if first is None:
                merged[each.name] = msgspec.structs.replace(each, series=dict(each.series))
            elif (first.kind, first.labels, first.bounds, first.merge) == (
                each.kind, each.labels, each.bounds, each.merge,
            ):  # fmt: skip
                _add(first.series, each)
    return list(merged.values())


def _add(series: dict[Labels, Any], more: Dump) -> None:
    for labels, values in more.series.items():
        held = series.get(labels)
        if held is None:
            series[labels] = values
        elif isinstance(values, bytes):
            series[labels] = union(held, values)
        else:
            series[labels] = [*map(_MERGES[more.merge], held, values)]


_MERGES: Final[dict[Merge, Callable[[int | float, int | float], int | float]]] = {
    "sum": operator.add, "max": max, "min": min,
}  # fmt: skip
