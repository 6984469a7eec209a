import asyncio
import io
import json
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from backend_stores import MemoryStore
from millstream import Principal, Server, ToolError
from millstream._app.parts.web import DashboardQueries
from millstream._protocol.principal import Share
from millstream._protocol.revisions import FIRST, NEWEST, NEWEST_HANDSHAKE
from millstream._server.calls.services import SESSION_OVER
from millstream._server.calls.sessions import Session
from millstream._server.observability import dashboard_values
from millstream._server.observability.observer import Observer
from millstream._server.observability.recent_calls import RecentCalls
from millstream._server.peers import Peers
from millstream._server.worker_queries import WorkerQueries
from millstream._telemetry import process
from millstream._telemetry.messages import AccessRecord, MessageLog, session_hash
from millstream._telemetry.metrics import OTHER, Metrics, render
from millstream._telemetry.process import IDLE_SECONDS
from millstream._transports.connection import MemoryPipe
from millstream._transports.open_streams import OpenStreams
from millstream.hub import Hub, HubLimits
from patience import WAIT
from telemetry_parts import make_call, make_tracer


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def counts(registry: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """Return label values -> count of one histogram, without empty labels."""
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(render(registry).decode()):
        for sample in family.samples:
            if sample.name == f"{name}_count":
                found[tuple(sample.labels[label] for label in LABELS if label in sample.labels)] = sample.value
    return found


DURATION = "mcp_server_operation_duration_seconds"
LABELS = ("mcp_method_name", "gen_ai_tool_name", "error_type", "mcp_protocol_version")


def test_calls_are_counted_by_method_tool_outcome_and_revision() -> None:
    observer = Observer({"add"})
    observer(make_call(method="tools/call", name="add"), 0.001, b"{}")
    observer(make_call(method="tools/call", name="add"), 0.001, b"{}")
    observer(make_call(method="tools/call", name="add", outcome="tool_error"), 0.2, b"{}")
    observer(make_call(method="resources/read", name="book://1", revision=FIRST, outcome="-32002"), 0.2, b"{}")
    assert counts(observer.registry, DURATION) == {
        ("tools/call", "add", NEWEST.date): 2,
        ("tools/call", "add", "tool_error", NEWEST.date): 1,
        ("resources/read", "-32002", FIRST.date): 1,
    }
    text = render(observer.registry).decode()
    labels = f'{{gen_ai_tool_name="add",le="0.01",mcp_method_name="tools/call",mcp_protocol_version="{NEWEST.date}"}}'
    assert f"{DURATION}_bucket{labels} 2.0\n" in text


def test_canceled_calls_have_an_outcome() -> None:
    observer = Observer(())
    observer(make_call(cancelled=True), 0.1, b"")
    assert list(counts(observer.registry, DURATION)) == [("ping", "cancelled", NEWEST.date)]


def test_clients_cannot_create_labels() -> None:
    tools: set[str] = set()
    observer = Observer(tools)
    for number in range(5000):
        observer(make_call(method="tools/call", name=f"tool-{number}", outcome="-32602"), 0.1, b"")
        observer(make_call(method=f"x/{number}", revision=FIRST, outcome="-32601"), 0.1, b"")
        observer.message(AccessRecord(0.0, "initialize", status="-32602", revision=f"{number}"))
    assert counts(observer.registry, DURATION) == {
        ("tools/call", OTHER, "-32602", NEWEST.date): 5000,
        (OTHER, "-32601", FIRST.date): 5000,
    }
    refused = f'{{error_type="-32602",mcp_method_name="initialize",mcp_protocol_version="{OTHER}"}} 5000.0\n'
    assert f"mcp_server_messages_total{refused}" in render(observer.registry).decode()
    tools.add("tool-1")
    observer(make_call(method="tools/call", name="tool-1"), 0.1, b"")
    assert counts(observer.registry, DURATION)["tools/call", "tool-1", NEWEST.date] == 1


async def test_each_call_is_one_log_line() -> None:
    stream = io.StringIO()
    log = MessageLog(stream, worker="w")
    observer = Observer({"add"}, log=log, wall=lambda: 0.5)
    client = make_call().client
    call = make_call(
        method="tools/call", name="add", revision=NEWEST_HANDSHAKE, session=Session("s", NEWEST_HANDSHAKE, client),
        principal=Principal("alice"), outcome="tool_error",
    )  # fmt: skip
    observer(call, 0.25, b"12345")
    observer.message(AccessRecord(0.0, "notifications/initialized", transport="http", session="s"))
    assert stream.getvalue() == ""
    observer.close()
    line, other = map(json.loads, stream.getvalue().splitlines())
    assert line == {
        "ts": "1970-01-01T00:00:00.500Z",
        "level": "warning",
        "logger": "millstream.access",
        "method": "tools/call",
        "target": "add",
        "status": "tool_error",
        "duration_ms": 250.0,
        "revision": NEWEST_HANDSHAKE.date,
        "client": "inspector/1.2",
        "session": session_hash("s"),
        "principal": "alice",
        "bytes": 5,
        "transport": "http",
        "worker": "w",
    }
    assert other["method"] == "notifications/initialized"
    assert b"millstream_log_lines_lost_total 0.0\n" in render(observer.registry)


async def test_lines_have_the_right_time_after_the_dashboard_was_read() -> None:
    stream = io.StringIO()
    clock = Clock()
    observer = Observer({"add"}, log=MessageLog(stream), clock=clock, wall=lambda: clock.now + 1e9)
    for _ in range(2):
        observer.figures("me")
        observer(make_call(), 0.25, b"")
        clock.now += 3600
    observer.close()
    first, second = (json.loads(line)["ts"] for line in stream.getvalue().splitlines())
    assert (first, second) == ("2001-09-09T01:48:20.000Z", "2001-09-09T02:48:20.000Z")


async def test_log_and_span_share_trace_ids() -> None:
    stream = io.StringIO()
    tracing, exporter = make_tracer()
    observer = Observer((), log=MessageLog(stream), tracing=tracing)
    call = make_call(outcome="-32603")
    assert observer.begin is not None
    observer.begin(call)
    observer(call, 0.1, b"")
    observer.close()
    (span,) = exporter.get_finished_spans()
    line = json.loads(stream.getvalue())
    assert (int(line["trace_id"], 16), int(line["span_id"], 16)) == (span.context.trace_id, span.context.span_id)
    assert (span.attributes or {})["error.type"] == "-32603"


def test_disabled_observers_are_not_called() -> None:
    observer = Observer(())
    assert observer.begin is None
    observer.close()
    assert b"millstream_log_lines_lost_total" not in render(observer.registry)


def test_spans_end_without_a_log() -> None:
    tracing, exporter = make_tracer()
    observer = Observer((), tracing=tracing)
    call = make_call()
    tracing.begin(call)
    observer(call, 0.1, b"")
    assert len(exporter.get_finished_spans()) == 1


def test_sessions_are_counted_by_activity() -> None:
    clock = Clock()
    observer = Observer((), clock=clock)
    client = make_call().client
    for name in ("one", "two"):
        observer(make_call(revision=FIRST, session=Session(name, FIRST, client), transport="sse"), 0.1, b"")
    observer.message(AccessRecord(0.0, "initialize", revision=FIRST.date, session="three", transport="sse"))
    labels = f'{{mcp_protocol_version="{FIRST.date}",transport="sse"}}'
    text = render(observer.registry).decode()
    assert f"mcp_server_sessions_active{labels} 3.0\n" in text
    assert '"one"' not in text
    clock.now += 7
    observer(make_call(revision=FIRST, session=Session("two", FIRST, client), transport="sse"), 0.1, b"")
    observer.note(SESSION_OVER, "sse", Session("one", FIRST, client))
    clock.now += IDLE_SECONDS + 1
    assert "mcp_server_sessions_active" not in render(observer.registry).decode()
    text = render(observer.registry).decode()
    assert f"mcp_server_session_duration_seconds_count{labels} 3.0\n" in text
    assert f"mcp_server_session_duration_seconds_sum{labels} 7.0\n" in text


def page(observer: Observer, *, hub: dict[str, Any] | None = None, store: Any = None) -> dict[str, Any]:
    """Return the dashboard values of a single worker."""
    return dashboard_values({"me": observer.figures("me", hub=hub)}, "me", store=store)


def rows(snapshot: dict[str, Any], part: str) -> dict[str, dict[str, Any]]:
    return {row["name"] or row["method"]: row for row in snapshot[part]}


def test_notifications_are_counted_without_duration() -> None:
    observer = Observer(())
    date = NEWEST_HANDSHAKE.date
    observer.message(AccessRecord(0.0, "initialize", revision=date, transport="http"))
    observer.message(AccessRecord(0.0, "response", transport="http"))
    for name in ("one", "two"):
        observer.message(AccessRecord(0.0, name, status="-32700", revision="never", transport="http"))
    text = render(observer.registry).decode()
    assert counts(observer.registry, DURATION) == {}
    total = "mcp_server_messages_total"
    assert f'{total}{{mcp_method_name="initialize",mcp_protocol_version="{date}"}} 1.0\n' in text
    assert f'{total}{{mcp_method_name="response"}} 1.0\n' in text
    assert f'{total}{{error_type="-32700",mcp_method_name="{OTHER}",mcp_protocol_version="{OTHER}"}} 2.0\n' in text
    assert page(observer)["methods"] == []


def test_snapshots_match_the_metrics() -> None:
    clock = Clock()
    connections = {("sse", FIRST.date): 1, ("ws", NEWEST.date): 0}
    observer = Observer({"add", "slow"}, connections=connections, clock=clock)
    for _ in range(10):
        observer(make_call(method="tools/call", name="add"), 0.0004, b"")
        clock.now += 0.5
    observer(make_call(method="tools/call", name="add", outcome="tool_error", revision=FIRST), 0.0004, b"")
    observer(make_call(method="tools/call", name="slow"), 12.0, b"")
    observer(make_call(method="tools/list"), 0.02, b"")
    shown = page(observer, hub={"streams": 3}, store={"ok": True})
    assert (shown["calls"], shown["uptime_seconds"]) == (13, 5.0)
    assert sum(counts(observer.registry, DURATION).values()) == shown["calls"]
    assert shown["workers"][0]["calls_per_second"] == 2
    tools = rows(shown, "tools")
    assert (tools["add"]["calls"], tools["add"]["errors"]) == (11, 1)
    assert list(rows(shown, "methods")) == ["tools/list"]
    assert shown["connections"] == [{"transport": "sse", "revision": FIRST.date, "count": 1}]
    assert (shown["hub"], shown["store"]) == ({"streams": 3}, {"ok": True})
    assert set(shown["event_loop_lag_ms"]) == {"blocked"}
    assert shown["process"]["resident_bytes"] is not None
    json.dumps(shown)


async def test_subscriptions_are_not_counted_as_calls() -> None:
    observer = Observer({"add"}, clock=(clock := Clock()))
    for cancelled, outcome in ((True, ""), (False, ""), (False, "-32603")):
        observer(make_call(method="subscriptions/listen", cancelled=cancelled, outcome=outcome), 3600.0, b"")
    observer(make_call(method="tools/call", name="add"), 0.001, b"")
    clock.now += 1
    shown = page(observer)
    assert (shown["calls"], shown["workers"][0]["calls_per_second"]) == (1, 1)
    assert shown["methods"] == []
    store, streams = MemoryStore(), OpenStreams(Share(1))
    peers, hub = Peers(store, []), Hub(store, HubLimits())
    looking = DashboardQueries(WorkerQueries(peers, set), observer, RecentCalls(), streams=streams, hub=hub, me="one")
    looking.remember(1)
    past = await looking.history(60)
    assert (past["total"]["calls"], [row["method"] for row in past["operations"]]) == (1, ["tools/call"])
    assert past["total"]["p99_ms"] <= 1
    assert counts(observer.registry, DURATION)["subscriptions/listen", NEWEST.date] == 2, "/metrics tells them apart"


async def test_observer_samples_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "INTERVAL", 0.0)
    observer = Observer(())
    assert page(observer)["event_loop_lag_ms"] == {"blocked": 0.0}
    task = asyncio.create_task(observer.lag.run())
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
    assert b"millstream_event_loop_lag_seconds_count 0.0\n" not in render(observer.registry)


async def test_every_call_on_a_running_server_is_observed() -> None:
    server = Server("shop")

    @server.tool
    async def add(a: int, b: int) -> int:
        if a < 0:
            raise ToolError("no")
        return a + b

    stream = io.StringIO()
    async with server.running() as runtime:
        observer = Observer(runtime.dispatcher.registry.tools, log=MessageLog(stream))
        runtime.dispatcher.observe = observer
        pipe = MemoryPipe(runtime.dispatcher)
        pipe.send(b'{"jsonrpc":"2.0","id":0,"method":"initialize"}')
        await asyncio.wait_for(pipe.receive(), WAIT)
        for number, params in enumerate(
            (
                b'{"name":"add","arguments":{"a":1,"b":2}}',
                b'{"name":"add","arguments":{"a":-1,"b":2}}',
                b'{"name":"x\\n"}',
            ),
            1,
        ):
            pipe.send(b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":%b}' % (number, params))
            await asyncio.wait_for(pipe.receive(), WAIT)
        observer.close()
    assert {labels[:-1]: count for labels, count in counts(observer.registry, DURATION).items()} == {
        ("tools/call", "add"): 1,
        ("tools/call", "add", "tool_error"): 1,
        ("tools/call", OTHER, "-32602"): 1,
    }
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["target"], line["status"]) for line in lines] == [
        ("add", "ok"),
        ("add", "tool_error"),
        (r"x\n", "-32602"),
    ]
    assert all(line["bytes"] > 0 and line["session"] for line in lines)
