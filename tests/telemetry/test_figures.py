import json
from typing import Any

import msgspec

from millstream._server.observability import Figures, dashboard_values
from millstream._server.observability.observer import Observer
from telemetry_parts import make_call


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def figures_of(
    calls: dict[str, list[float]], *, sessions: tuple[str, ...] = (), began: float = 1.0, errors: int = 0, **given: Any
) -> Figures:
    """Return the figures of a worker that ran for 10 seconds, as another worker receives them."""
    clock = Clock()
    observer = Observer({"add", "slow"}, clock=clock, wall=lambda: began, connections=given.pop("connections", {}))
    for name in sessions:
        observer._sessions.note(name, clock.now, "http", "2025-11-25")
    clock.now += 9
    for tool, times in calls.items():
        for seconds in times:
            observer(make_call(method="tools/call", name=tool), seconds, b"")
    for _ in range(errors):
        observer(make_call(method="tools/call", name="add", outcome="tool_error"), 0.001, b"")
        observer(make_call(method="tools/call", name="add", outcome="server_error"), 0.001, b"")
    clock.now += 1
    figures = observer.figures("a", hub=given.pop("hub", None))
    sent = msgspec.msgpack.encode(msgspec.structs.replace(figures, **given))
    return msgspec.msgpack.decode(sent, type=Figures)


def test_call_metrics_from_two_workers_are_merged() -> None:
    fast, slow = figures_of({"add": [0.001] * 90}, errors=1), figures_of({"add": [1.0] * 10, "slow": [2.0]})
    page = dashboard_values({"a": fast, "b": slow}, "a")
    add, slow_row = page["tools"]
    assert (page["calls"], add["calls"], slow_row["calls"]) == (103, 102, 1)
    assert (add["errors"], add["server_errors"]) == (2, 1)
    assert sum(row["calls_per_second"] for row in page["workers"]) == 103
    json.dumps(page)


def test_sessions_on_two_workers_are_summed() -> None:
    one, other = figures_of({}, sessions=("a", "b", "c")), figures_of({}, sessions=("b", "c", "d"))
    page = dashboard_values({"a": one, "b": other}, "a")
    assert page["sessions"] == [{"transport": "http", "revision": "2025-11-25", "count": 6}]


def test_worker_metrics_are_summed_with_the_longest_block() -> None:
    hub = {"subscribers": 2, "channels": {"news": 2}, "cut": {"slow": 1}}
    more = {"subscribers": 3, "channels": {"news": 1, "chat": 2}, "cut": {}}
    kind = ("http", "")
    one = figures_of({}, hub=hub, blocked=300.0,
                   process={"resident_bytes": 10, "max_descriptors": None}, connections={kind: 2})  # fmt: skip
    other = figures_of({}, hub=more, blocked=200.0, process={"resident_bytes": 32, "max_descriptors": 5},
                     connections={kind: 1})  # fmt: skip
    page = dashboard_values({"a": one, "b": other}, "a", store={"up": True})
    assert page["hub"] == {"subscribers": 5, "channels": {"news": 3, "chat": 2}, "cut": {"slow": 1}}
    assert page["event_loop_lag_ms"] == {"blocked": 300.0}
    assert page["process"] == {"resident_bytes": 42, "max_descriptors": 5}
    assert page["connections"] == [{"transport": "http", "revision": "", "count": 3}]
    assert page["store"] == {"up": True}


def test_oldest_worker_rows_come_first() -> None:
    young = figures_of({"add": [0.001] * 3}, began=50.0, pid=7, host="east", lag=1.5, connections={("ws", ""): 4})
    old = figures_of({}, began=20.0, pid=8, host="west")
    for here in ("a", "b"):
        first, second = dashboard_values({"a": young, "b": old}, here)["workers"]
        assert (first["name"], first["pid"], first["host"], first["since"]) == ("b", 8, "west", 20.0)
        assert second == {
            "name": "a",
            "pid": 7,
            "host": "east",
            "calls_per_second": 3,
            "streams": 4,
            "memory_bytes": young.process["resident_bytes"],
            "lag_ms": 1.5,
            "since": 50.0,
        }
