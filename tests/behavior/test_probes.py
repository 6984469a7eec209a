import asyncio
import json
import re
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from app_peer import ask
from client.misbehaving_servers import ReceivedRequest, misbehaving
from fleet import until
from millstream import Context, Server, Settings, auth
from millstream._app.definition import Bind
from millstream._app.runtime import Runtime
from millstream._app.server_process.over_http import HttpServer
from millstream._app.server_process.worker_process import WorkerState
from millstream._http.server.guard import ServerState
from millstream._protocol.errors import LocalError
from millstream._protocol.revisions import ALL
from millstream._troubles import LogOnce
from patience import WAIT

ROOT, ADA = "key-of-root-0123456789", "key-of-ada-0123456789"
ROUTES = Path(__file__).resolve().parents[2] / "docs" / "reference" / "routes.md"


async def facts(server: Server) -> dict[str, Any]:
    """Return the body of `/health`."""
    reply = await ask(server, "GET", "/health")
    assert reply.headers[b"cache-control"] == b"no-store"
    told: dict[str, Any] = json.loads(reply.body)
    return told


class Refusing:
    """Values that can't be read."""

    async def get(self, key: str) -> bytes | None:
        """See `Map.get`."""
        raise LocalError("no route to the host 10.1.2.3")


def fail(runtime: Runtime) -> None:
    """Make the store fail, and let the next check notice."""
    store: Any = SimpleNamespace(kv=Refusing())
    runtime.store_health.store = store
    runtime.store_health.clock = lambda: monotonic() + 10


async def test_health_shows_counts_and_their_limits() -> None:
    settings = Settings(max_calls=5, max_streams=6, max_pending_inputs=7, max_connections=8)
    server = Server("shop", version="2", serve="all", settings=settings)
    async with server.running() as runtime:
        runtime.sweep.lag = 0.0125
        told = await facts(server)
        assert told.pop("uptime_seconds") >= 0
        assert told.pop("memory_bytes") > 1_000_000
        assert told == {
            "status": "ok",
            "name": "shop",
            "version": "2",
            "revisions": [revision.date for revision in ALL],
            "features": ["mcp", "hub", "metrics", "rest", "web"],
            "troubles": [],
            "streams": 0,
            "streams_by_transport": {},
            "calls": 0,
            "pending_inputs": 0,
            "subscribers": 0,
            "sessions": 0,
            "session_records": 0,
            "limits": {"connections": 8, "streams": 6, "calls": 5, "pending_inputs": 7, "subscribers": 8},
            "store": {"kind": "memory", "up": True},
            "event_loop_lag_ms": 12.5,
        }


async def test_health_counts_open_streams_by_transport() -> None:
    server = Server("shop", serve="hub")
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    inbox.put_nowait({"type": "http.request"})
    outbox: asyncio.Queue[Any] = asyncio.Queue()
    scope = {"type": "http", "method": "GET", "path": "/events", "headers": [(b"host", b"127.0.0.1")]}
    async with server.running():
        listening = asyncio.create_task(server(scope, inbox.get, outbox.put))
        await asyncio.wait_for(outbox.get(), WAIT)
        told = await facts(server)
        assert (told["streams"], told["streams_by_transport"], told["subscribers"]) == (1, {"events": 1}, 1)
        inbox.put_nowait({"type": "http.disconnect"})
        await asyncio.wait_for(listening, WAIT)
        assert (await facts(server))["streams_by_transport"] == {"events": 0}


async def test_health_and_metrics_count_connections_to_this_server() -> None:
    foreign, server = Server("shop"), Server("shop", serve="metrics")
    async with foreign.running():
        assert "connections" not in await facts(foreign)
    HttpServer(server, "127.0.0.1")
    state = server.runtimes.bind.state
    assert state is not None
    state.connections.add(object())  # one of them
    async with server.running():
        assert (await facts(server))["connections"] == 1
        state.cut += 1
        assert b"millstream_connections_cut_total 1.0\n" in (await ask(server, "GET", "/metrics")).body


async def test_unreachable_store_degrades_health_only() -> None:
    server = Server("shop", serve="metrics")
    server.runtimes.bind = Bind(loopback=True)
    async with server.running() as runtime:
        assert (await ask(server, "GET", "/readyz")).status == 200
        assert b'millstream_backend_up{kind="memory"} 1.0\n' in (await ask(server, "GET", "/metrics")).body
        fail(runtime)
        ready, health, live = [await ask(server, "GET", path) for path in ("/readyz", "/health", "/livez")]
        assert (ready.status, health.status, live.status) == (200, 200, 200)
        told = json.loads(health.body)
        assert (told["status"], told["store"]) == ("degraded", {"kind": "memory", "up": False})
        assert [(each["what"], each["reason"]) for each in told["troubles"]] == [
            ("The store doesn't respond", "no route to the host 10.1.2.3")
        ]
        assert b"10.1.2.3" not in ready.body
        for path in ("/readyz", "/health"):
            told = (await ask(server, "GET", path, x_forwarded_for="192.0.2.1")).body
            assert b"degraded" in told
            assert b"10.1.2.3" not in told
        assert b"millstream_troubles 1.0\n" in (await ask(server, "GET", "/metrics")).body
        assert b'millstream_backend_up{kind="memory"} 0.0\n' in (await ask(server, "GET", "/metrics")).body


async def test_outage_of_the_store_is_one_trouble_that_names_its_effects() -> None:
    server = Server("shop")
    server.runtimes.bind = Bind(loopback=True)
    async with server.running() as runtime:
        first, second, other = (
            LogOnce(runtime.store.troubles, f"The {name} can't be read; retrying", "It can be read again.")
            for name in ("stock", "prices", "API")
        )
        other.remedy = "Start the API."
        with first:
            raise LocalError("connection refused")
        for each in (second, other):
            with each:
                raise LocalError("it's gone")
        told = json.loads((await ask(server, "GET", "/health")).body)
        assert [(each["what"], each["reason"], each["count"]) for each in told["troubles"]] == [
            ("The stock can't be read; retrying", "connection refused. The prices can't be read.", 2),
            ("The API can't be read; retrying", "it's gone", 1),
        ]


async def test_error_that_is_a_defect_is_no_trouble_of_the_store() -> None:
    server = Server("shop")
    server.runtimes.bind = Bind(loopback=True)
    async with server.running() as runtime:
        trouble = LogOnce(runtime.store.troubles, "It can't be read", "It can be read again.", catches=Exception)
        with trouble:
            raise KeyError("name")
        (told,) = json.loads((await ask(server, "GET", "/health")).body)["troubles"]
        assert told["remedy"] == "Report this error with its traceback in the server's log."


async def test_only_dashboard_users_see_details() -> None:
    server = Server("shop")
    server.runtimes.bind = Bind(workers=[WorkerState(1, 10, "ready", 0), WorkerState(2, 11, "starting", 0)])
    guarded = Server("shop", auth=auth.keys(named_keys={"root": (ROOT, ["millstream:watch"]), "ada": ADA}))
    remote, root, ada = {"x_forwarded_for": "192.0.2.1"}, bearer(ROOT), bearer(ADA)
    for shop, readers, others in ((server, [{}], [remote]), (guarded, [root], [{}, ada, bearer("x" * 32), remote])):
        async with shop.running() as runtime:
            await ask(shop, "GET", "/livez")
            runtime.host.check_ready(lambda: "the till is shut")
            for headers in readers:
                assert (await ask(shop, "GET", "/readyz", **headers)).body == b"degraded: the till is shut\n"
                told = json.loads((await ask(shop, "GET", "/health", **headers)).body)
                assert told["reasons"] == ["the till is shut"]
                assert "memory_bytes" in told
            for headers in others:
                assert (await ask(shop, "GET", "/readyz", **headers)).body == b"degraded\n"
                told = json.loads((await ask(shop, "GET", "/health", **headers)).body)
                assert told.pop("status") == "degraded"
                assert told == ({"workers": {"ready": 1, "all": 2}} if shop is server else {})


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_upstream_that_hangs_while_connecting_is_reported_and_does_not_fail_health() -> None:
    async def hang(asked: ReceivedRequest) -> None:
        await asyncio.Event().wait()

    server = Server("shop")
    async with asyncio.timeout(WAIT), misbehaving(hang) as silent, AsyncExitStack() as stack:
        server.upstream("slow", silent.url, start_timeout=0, connect_timeout=1)
        runtime = await stack.enter_async_context(server.running())
        describe = runtime.host.gateway.describe  # type: ignore[union-attr]
        await until(lambda: describe()[0]["state"] == "degraded")
        told = await facts(server)
        assert (told["status"], told["upstreams"]) == ("degraded", {"slow": "degraded"})
        (report,) = describe()
        assert report["reason"] == "It hasn't responded within 1 second."
        reply = await ask(server, "GET", "/health", x_forwarded_for="192.0.2.1")
        assert (reply.status, json.loads(reply.body)) == (
            200, {"status": "degraded", "upstreams": {"ready": 0, "all": 1}},
        )  # fmt: skip


async def test_health_fails_if_the_server_cannot_serve() -> None:
    server = Server("shop")
    async with server.running() as runtime:
        runtime.host.check_ready(lambda: "there's no till", serves=False)
        health, ready = await ask(server, "GET", "/health"), await ask(server, "GET", "/readyz")
        assert (health.status, json.loads(health.body)["status"], ready.status) == (503, "degraded", 200)


async def test_draining_server_reports_that_it_is_draining() -> None:
    server = Server("shop")
    async with server.running() as runtime:
        await ask(server, "GET", "/livez")
        runtime.draining = True
        health, ready, live = [await ask(server, "GET", path) for path in ("/health", "/readyz", "/livez")]
        assert (health.status, ready.status, live.status) == (503, 503, 200)
        assert json.loads(health.body)["status"] == "draining"


async def test_sweep_measures_event_loop_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._server.sweep.TICK", 0.0)
    async with Server("shop").running() as runtime:
        now = iter(range(0, 1_000_000, 3))
        runtime.sweep.clock = lambda: float(next(now))
        async with asyncio.timeout(WAIT):
            while runtime.sweep.lag != 3.0:  # noqa: ASYNC110  the sweep tells nobody
                await asyncio.sleep(0.002)


async def test_every_health_field_is_listed() -> None:
    table = ROUTES.read_text("utf-8").partition("## `/health`")[2].partition("\n## ")[0]
    listed = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    server = Server("shop", serve="all")

    @server.tool(task="allowed")
    async def order(ctx: Context) -> None:
        await ctx.elicit("Which book?", str)

    server.runtimes.bind = Bind(state=ServerState(), workers=[WorkerState(1, 10, "ready", 0)])
    async with server.running():
        assert set(await facts(server)) == listed
