import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth_world import ALICE, BOB, ROOT, STREAM, GuardedServer, make_server, run_guarded
from cases import for_each
from fleet import until
from millstream import Server, Settings, auth
from millstream._http.message import HttpRequest, peer_network
from millstream._limits import Limiter, Rate, SharedLimiter, period, rate_lines
from millstream._stores.rates import ChargeResult
from millstream.testing import ServerError, connect
from patience import Clock
from wire import request, run_wire


def test_bursts_are_followed_by_the_steady_rate() -> None:
    clock = Clock()
    limiter = Limiter("x", Rate.of("10/minute"), clock=clock)
    assert [limiter.take("a") for _ in range(10)] == [0.0] * 10
    assert limiter.take("a") == pytest.approx(6.0)
    assert limiter.take("b") == 0.0
    clock.now += 5.9
    assert limiter.take("a") == pytest.approx(0.1)
    clock.now += 0.1001
    assert limiter.take("a") == 0.0
    assert limiter.take("a") > 5.9
    assert limiter.count_remaining("a") == 0
    clock.now += 60
    assert limiter.count_remaining("a") == 10


@for_each("seconds", [1, 60, 86400])
def test_bursts_with_fractional_shares_allow_the_full_amount(seconds: int) -> None:
    for count in range(1, 400):
        limiter = Limiter("x", Rate(count, seconds), clock=Clock())
        assert sum(limiter.wait("a") == 0.0 and limiter.take("a") == 0.0 for _ in range(count + 1)) == count


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 4)), max_size=60), st.integers(1, 20), st.integers(1, 60))
def test_any_interval_allows_at_most_burst_plus_refill(
    steps: list[tuple[float, int]], count: int, seconds: int
) -> None:
    clock = Clock()
    limiter = Limiter("x", Rate(count, seconds), clock=clock)
    taken: list[tuple[float, int]] = []
    for pause, cost in steps:
        clock.now += pause
        wait = limiter.take("k", cost)
        if not wait:
            taken.append((clock.now, cost))
        elif cost <= count:
            at, clock.now = clock.now, clock.now + wait + 1e-6
            assert limiter.wait("k", cost) == 0.0
            clock.now = at
    most = max(4, count)
    for first, (start, _) in enumerate(taken):
        total = 0
        for end, cost in taken[first:]:
            total += cost
            assert total <= most + count + (end - start) * count / seconds + 1e-6


def test_prefetched_tokens_are_used_and_renewed() -> None:
    clock = Clock()
    limiter = SharedLimiter("x", Rate(600, 60), clock=clock)
    first = limiter.pace("a", 1.0)
    assert (first.cost, first.most) == (1.0, 1.0)
    limiter.learn("a", first, ChargeResult(0.0, 500.0, 1.0))
    for _ in range(3):
        assert not limiter.spend("a", 1.0)
        asked, beside = limiter.pace("a", 1.0), limiter.pace("a", 1.0)
        assert (asked.most, beside.most) == (7.0, 1.0)
        limiter.learn("a", asked, ChargeResult(0.0, 490.0, 7.0))
        assert [limiter.spend("a", 1.0) for _ in range(5)] == [True] * 5
        clock.now += 0.7


def test_rate_table_is_bounded() -> None:
    clock = Clock()
    limiter = Limiter("x", Rate.of("2/second"), clock=clock, max_keys=100)
    for number in range(1000):
        limiter.take(f"a{number}")
    assert len(limiter) <= 100
    clock.now += 10
    limiter.take("new")
    assert len(limiter) <= 100


@for_each("text", ["", "10", "10/fortnight", "0/minute", "-1/minute", "1.5/minute", "10 per minute", "/s"])
def test_invalid_rates_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="100/minute"):
        Rate.of(text)


@for_each(("address", "counted"), [
    ("192.0.2.7", "192.0.2.7"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"), ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
    ("::ffff:192.0.2.7", "192.0.2.7"), ("", ""), ("unix", "unix"),
])  # fmt: skip
def test_ipv6_addresses_are_counted_by_network(address: str, counted: str) -> None:
    assert peer_network(address) == counted
    assert HttpRequest("GET", "/", (), {}, peer=address).owner == counted, "its share of the server's capacity"


JSON = {"content_type": "application/json", "accept": "application/json"}


def limited(**options: Any) -> Server:
    """Return a server with several callers, and tools with limits of their own."""
    server = make_server(**options)

    @server.tool(limit="2/minute")
    async def rare() -> str:
        """Seldom."""
        return "rare"

    @server.tool(cost=3)
    async def dear() -> str:
        """Costs three."""
        return "dear"

    return server


def check(reply: Any, policy: str, count: int) -> None:
    """Check a refusal's status, headers, and body."""
    assert reply.status == 429
    error = reply.message["error"]
    assert error["code"] == -31429
    assert error["data"]["code"] == "rate_limited"
    assert error["data"]["policy"] == policy
    assert 0 < error["data"]["retryAfterMs"] <= 60_000
    assert int(reply.headers[b"retry-after"]) * 1000 >= error["data"]["retryAfterMs"]
    assert reply.headers[b"ratelimit-policy"] == f'"{policy}";q={count};w=60'.encode()
    assert reply.headers[b"ratelimit"].startswith(f'"{policy}";r=0;t='.encode())


async def test_tool_limits_apply_per_caller() -> None:
    async with run_guarded(limited()) as world:
        for key in (ALICE, BOB):
            assert (await world.call(key, "rare")).status == 200
            assert (await world.post(key, request("tools/call", {"name": "rare"}))).status == 200
            check(await world.call(key, "rare"), "tool:rare", 2)
            session = await world.initialize(key)
            reply = await world.post(key, request("tools/call", {"name": "rare"}, 7), mcp_session_id=session)
            check(reply, "tool:rare", 2)
            assert reply.message["id"] == 7
            assert (await world.call(key, "who")).status == 200


async def test_limits_apply_to_rest_and_sockets() -> None:
    async with run_guarded(limited()) as world:
        for _ in range(2):
            assert (await world.call(BOB, "rare")).status == 200
        reply = await world.ask(BOB, "POST", "/tools/rare", b"{}", content_type="application/json")
        assert (reply.status, b"retry-after" in reply.headers) == (429, True)
        reply = await world.ask(
            BOB, "POST", "/mcp/tools/call", b'{"params":{"name":"rare"}}', content_type="application/json"
        )
        check(reply, "tool:rare", 2)
        async with world.socket(BOB) as socket:
            await socket.recv()
            await socket.send('{"type":"mcp_call","tool":"rare"}')
            error = json.loads(await socket.recv())["error"]
            assert (error["code"], error["data"]["retryAfterMs"] > 0) == (-31429, True)


async def test_tool_costs_are_charged_and_rejected_calls_are_free() -> None:
    async with run_guarded(limited(limit_calls="5/minute")) as world:
        assert (await world.call(ALICE, "dear")).status == 200
        check_left = await world.call(ALICE, "dear")
        assert check_left.status == 429
        assert (await world.call(ALICE, "who")).status == 200
        assert (await world.call(ALICE, "who")).status == 200
        check(await world.call(ALICE, "who"), "calls", 5)
        assert (await world.call(BOB, "who")).status == 200
        assert (await world.modern(ALICE, "tools/list")).status == 200


async def ask_pings(world: GuardedServer, key: str, number: int) -> list[int]:
    """Return the statuses of several pings."""
    return [(await world.post(key, request("ping"))).status for _ in range(number)]


async def test_requests_can_be_limited_per_caller_and_address() -> None:
    async with run_guarded(limited(limit_requests="3/minute")) as world:
        assert await ask_pings(world, ALICE, 4) == [200, 200, 200, 429]
        assert await ask_pings(world, BOB, 1) == [200]
    async with run_guarded(limited(limit_address="3/minute")) as world:
        assert await ask_pings(world, ALICE, 2) == [200, 200]
        assert await ask_pings(world, BOB, 2) == [200, 429]


@for_each("way", ["lane", "asgi"])
async def test_anonymous_callers_are_limited_by_address(way: str) -> None:
    async with run_wire(Server("s", settings=Settings(limit_requests="2/minute")), way) as wire:
        statuses = []
        for number in range(4):
            fields = {"host": "127.0.0.1", "content-type": "application/json", "x-real-ip": f"192.0.2.{number}",
                      "forwarded": f"for=192.0.2.{number}", "client-ip": "192.0.2.1"}  # fmt: skip
            statuses.append((await wire.post(request("ping"), fields)).status)
        assert statuses == [200, 200, 429, 429]


async def test_websocket_messages_count_toward_their_address() -> None:
    """Regression: JSON-RPC messages on a WebSocket had no address, so address limits didn't apply."""
    async with run_guarded(limited(limit_address="2/minute")) as world, world.socket(BOB) as socket:
        await socket.recv()
        said = []
        for number in range(3):
            await socket.send(json.dumps(request("tools/list", id=number)))
            said.append("error" in json.loads(await socket.recv()))
        assert said == [False, False, True]


async def test_handshakes_and_their_streams_count_as_requests() -> None:
    opening = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    async with run_guarded(limited(limit_requests="2/minute")) as world:
        session = await world.initialize(ALICE)
        await world.initialize(ALICE)
        for extra in ({}, {"_meta": {"io.example/x": 1}}):
            check(await world.post(ALICE, request("initialize", opening | extra)), "requests", 2)
        reply = await world.ask(ALICE, "GET", "/mcp", **STREAM, mcp_session_id=session)
        assert (reply.status, b"retry-after" in reply.headers) == (429, True)
        assert (await world.ask(ALICE, "DELETE", "/mcp", mcp_session_id=session)).status == 204
        await world.initialize(BOB)


async def test_unreadable_messages_and_unknown_paths_are_limited() -> None:
    wrong = [b'{"jsonrpc', b'{"jsonrpc":"1.0","id":1,"method":"ping"}', b"[]", b'"ping"']
    async with run_guarded(limited(limit_address="3/minute")) as world:
        for body in wrong[:3]:
            assert (await world.ask(ALICE, "POST", "/mcp", body, **JSON)).status == 400
        for body in wrong:
            check(await world.ask(BOB, "POST", "/mcp", body, **JSON), "address", 3)
        for method, path in (("GET", "/nothing"), ("POST", "/"), ("PUT", "/nothing"), ("POST", "/docs")):
            reply = await world.ask(None, method, path)
            assert (reply.status, b"retry-after" in reply.headers) == (429, True), (method, path)
        assert (await world.ask(None, "GET", "/health")).status == 200


async def test_callers_over_their_limit_can_cancel_and_end_sessions() -> None:
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 9}}
    async with run_guarded(limited(limit_requests="2/minute")) as world:
        session = await world.initialize(ALICE)
        assert (await world.post(ALICE, cancel, mcp_session_id=session)).status == 202
        check(await world.post(ALICE, request("ping"), mcp_session_id=session), "requests", 2)
        assert (await world.post(ALICE, cancel, mcp_session_id=session)).status == 202
        assert (await world.ask(ALICE, "DELETE", "/mcp", mcp_session_id=session)).status == 204


async def test_streams_and_publications_count_as_requests() -> None:
    async with run_guarded(limited(limit_requests="2/minute")) as world, world.socket(ROOT) as socket:
        await socket.recv()
        json_body = {"content_type": "application/json"}
        assert (await world.ask(ROOT, "POST", "/publish", b'{"data":1}', **json_body)).status == 200
        await socket.send('{"type":"publish","data":1}')
        assert json.loads(await socket.recv())["type"] == "published"
        reply = await world.ask(ROOT, "GET", "/sse", **STREAM)
        assert (reply.status, b"retry-after" in reply.headers) == (429, True)
        for path in ("/events", "/mcp/sse/me"):
            reply = await world.ask(ROOT, "GET", path, **STREAM)
            event = reply.body.partition(b"\n\n")[2]
            assert (reply.status, event.partition(b"\n")[0]) == (200, b"event: unavailable"), path
            assert json.loads(event.partition(b"data: ")[2])["status"] == 429, path
        assert (await world.ask(ROOT, "POST", "/publish", b'{"data":1}', **json_body)).status == 429
        for message in ('{"type":"publish","data":1}', '{"type":"subscribe"}'):
            await socket.send(message)
            assert json.loads(await socket.recv())["error"]["code"] == -31429
        assert (await world.post(ROOT, request("ping"))).status == 429


async def test_only_tool_limits_apply_over_stdio() -> None:
    server = limited(limit_requests="1/minute", limit_calls="1/minute")
    async with connect(server) as client:
        for _ in range(2):
            assert (await client.call("rare")).text == "rare"
        assert (await client.call("who")).text == "nobody"
        with pytest.raises(ServerError) as failed:
            await client.call("rare")
        assert failed.value.code == -31429


async def test_requests_are_checked_only_if_limits_are_set() -> None:
    server = Server("s", settings=Settings())
    async with run_guarded(server) as world:
        assert world.runtime.dispatcher.gate is None
        server.tool(name="late", limit="1/minute")(lambda: "late")
        assert [(await world.call(None, "late")).status for _ in range(2)] == [200, 429]


@for_each(
    "options",
    [
        {"limit": "often"},
        {"limit": "0/minute"},
        {"cost": -1},
        {"cost": True},
        {"cost": 1e9},
        {"concurrency": 0},
        {"concurrency": True},
        {"concurrency": "2"},
    ],
)
def test_invalid_limits_are_rejected_at_registration(options: Any) -> None:
    server = Server("s", settings=Settings())
    with pytest.raises(TypeError, match=r"limit|cost|concurrency"):
        server.tool(**options)(lambda: "x")
    with pytest.raises(ValueError, match="600/minute"):
        Settings(limit_calls="often")
    for wrong in ("10/minute", "often", "0/day"):
        with pytest.raises(ValueError, match="10000/day"):
            Settings(limit_quota=wrong)
    with pytest.raises(ValueError, match="0 or more"):
        Settings(limit_concurrency=-1)


def test_shortest_time_to_wait_is_a_second() -> None:
    assert rate_lines("calls", Rate(1, 60), 0, 0.2).splitlines()[0] == b"retry-after: 1"


async def test_concurrency_limits_apply_on_every_transport() -> None:
    server = make_server(limit_concurrency=2)
    go = asyncio.Event()

    @server.tool(concurrency=3)
    async def waits(fails: bool = False) -> str:
        """Waits, and may fail."""
        await go.wait()
        if fails:
            raise ValueError("no")
        return "waited"

    async with run_guarded(server) as world:
        running = [asyncio.ensure_future(world.call(ALICE, "waits", {"fails": bool(n)})) for n in range(2)]
        running.append(asyncio.ensure_future(world.call(BOB, "waits")))
        await until(lambda: sum(call.release is not None for call in world.runtime.dispatcher.calls) == 3)
        reply = await world.call(ALICE, "who")
        assert (reply.status, reply.headers[b"retry-after"]) == (429, b"1")
        assert reply.message["error"]["data"] == {
            "code": "rate_limited", "retryAfterMs": 1000, "policy": "concurrency", "limit": "2 at a time",
        }  # fmt: skip
        assert (await world.call(BOB, "waits")).message["error"]["data"]["policy"] == "concurrency:waits"
        async with world.socket(ALICE) as socket:
            await socket.recv()
            await socket.send('{"type":"mcp_call","tool":"who"}')
            assert json.loads(await socket.recv())["error"]["code"] == -31429
        assert (await world.call(BOB, "who")).status == 200
        go.set()
        assert {reply.status for reply in await asyncio.gather(*running)} == {200}
        await until(lambda: not world.runtime.dispatcher.calls)
        replies = await asyncio.gather(*(world.call(ALICE, "waits") for _ in range(2)))
        assert [reply.status for reply in replies] == [200, 200]


async def test_quotas_last_a_day_and_survive_a_restart(tmp_path: Path) -> None:
    for round in range(2):
        server = make_server(limit_quota="2/day")
        server.definition.store = f"sqlite:///{tmp_path}/store.db"
        async with run_guarded(server) as world:
            statuses = [(await world.call(ALICE, "who")).status for _ in range(3)]
            assert statuses == ([200, 200, 429] if not round else [429] * 3)
            reply = await world.call(ALICE, "who")
            assert reply.headers[b"ratelimit-policy"] == b'"quota";q=2;w=86400'
            assert 0 < int(reply.headers[b"retry-after"]) <= 86_401
            assert (await world.modern(ALICE, "tools/list")).status == 200


def test_quota_periods_use_utc() -> None:
    at = datetime(2028, 2, 29, 23, 59, 59, tzinfo=UTC).timestamp()
    day, month = period(at, monthly=False), period(at, monthly=True)
    assert (day.end - at, month.end - at) == (1.0, 1.0)
    assert (day.end - day.start, month.end - month.start) == (86_400.0, 29 * 86_400.0)
    later = period(month.end, monthly=True)
    assert (later.start, later.end - later.start) == (month.end, 31 * 86_400.0)
    december = period(datetime(2028, 12, 31, tzinfo=UTC).timestamp(), monthly=True)
    assert december.end == datetime(2029, 1, 1, tzinfo=UTC).timestamp()


async def test_publishers_do_not_displace_each_others_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._stores.memory.log._MAX_ONCE", 10)
    keys = auth.keys(ROOT, named_keys={"alice": (ALICE, ["millstream:publish", "millstream:subscribe"])})
    async with run_guarded(Server("hub", auth=keys, serve="hub")) as world, world.socket(ALICE) as socket:
        await socket.recv()

        async def is_repeated(token: str, id: str) -> bool:
            before, body = world.runtime.hub.last_event_id(), json.dumps({"data": id, "id": id}).encode()
            reply = await world.ask(token, "POST", "/publish", body, content_type="application/json")
            assert reply.status == 200
            await world.runtime.hub.refresh()
            return world.runtime.hub.last_event_id() == before

        assert not await is_repeated(ROOT, "invoice 1")
        for number in range(30):
            assert not await is_repeated(ALICE, f"flood {number}")
            await socket.send(json.dumps({"type": "publish", "data": 1, "event_id": f"more {number}"}))
            assert json.loads(await socket.recv())["type"] == "published"
        assert await is_repeated(ROOT, "invoice 1")
        assert await is_repeated(ALICE, "flood 29")
        assert not await is_repeated(ALICE, "flood 0")
