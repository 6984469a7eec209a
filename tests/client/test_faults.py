import asyncio
import itertools
import json
import math
from typing import Any

import pytest

from cases import for_each
from client.misbehaving_servers import (
    DONE,
    ReceivedRequest,
    assert_readable,
    check_failure,
    connected,
    misbehaving,
    with_discovery,
    with_handshake,
)
from millstream import Client, Server
from millstream.client import (
    ConnectionLost,
    InvalidResponse,
    NotMcp,
    Options,
    RequestTimeout,
    ServerError,
    TooLarge,
    TooManyMessages,
)
from millstream.gateway import UpstreamPolicy
from patience import WAIT, advance_clock

NEVER = 0.05
"""A timeout that is meant to run out."""


@for_each("streamed", [False, True])
async def test_server_that_hangs_before_or_in_its_response_times_out(*, streamed: bool) -> None:
    stuck = asyncio.Event()

    async def behave(asked: ReceivedRequest) -> None:
        stuck.set()
        if streamed:
            await asked.stream()
        await asyncio.get_running_loop().create_future()

    async with connected(with_discovery(behave)) as (_, client):
        with pytest.raises(RequestTimeout) as caught:
            await client.call("x", timeout=NEVER)
        assert_readable(caught.value, "tools/call", "0.05 seconds")
        assert isinstance(caught.value, TimeoutError)
        assert stuck.is_set()


async def test_timed_out_handshake_call_is_canceled_at_the_server() -> None:
    """https://modelcontextprotocol.io/specification/2025-11-25/basic/utilities/cancellation"""
    told: asyncio.Future[dict[str, object]] = asyncio.get_running_loop().create_future()
    usual = with_handshake(lambda asked: asyncio.sleep(3600))

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "notifications/cancelled":
            told.set_result({**asked.message["params"], "call": calls[0]})
        if asked.method == "tools/call":
            calls.append(asked.message["id"])
        await usual(asked)

    calls: list[int] = []
    async with connected(behave) as (_, client):
        with pytest.raises(RequestTimeout):
            await client.call("x", timeout=NEVER)
        async with asyncio.timeout(WAIT):
            params = await told
        assert params["requestId"] == params["call"]


@for_each("streamed", [False, True])
async def test_server_that_dies_during_a_call_is_explained(*, streamed: bool) -> None:
    calls = 0

    async def behave(asked: ReceivedRequest) -> None:
        nonlocal calls
        calls += 1
        if streamed:
            await asked.stream()
        raise ConnectionError

    await check_failure(with_discovery(behave), ConnectionLost)
    assert calls == 1


async def test_response_to_another_request_fails_only_its_reply() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.reply(json.dumps({"jsonrpc": "2.0", "id": 999, "result": DONE}).encode())

    await check_failure(with_discovery(behave), InvalidResponse, "999")


async def test_events_that_are_not_messages_are_skipped(caplog: pytest.LogCaptureFixture) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.stream()
        for event in (b"{not json", b"[INFO] started", b'{"level":"info"}', b'{"jsonrpc":"2.0","id":999,"result":{}}'):
            await asked.event(event)
        await asked.event(asked.answer(DONE))
        await asked.end()

    async with connected(with_discovery(behave)) as (_, client):
        for _ in range(2):
            assert (await client.call("x")).text == "done"
    assert len([each for each in caplog.records if "Skipped a message" in each.message]) == 1


async def test_invalid_response_on_a_stream_is_explained() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.stream()
        await asked.event(json.dumps({"jsonrpc": "2.0", "id": asked.message["id"]}).encode())
        await asyncio.get_running_loop().create_future()

    await check_failure(with_discovery(behave), InvalidResponse, "invalid response")


@for_each(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"{}",
        b'{"jsonrpc":"2.0"}',
        b'{"jsonrpc":"1.0","id":2,"result":{}}',
        b"\xff{}",
    ],
)
async def test_json_that_is_not_a_response_is_explained(body: bytes) -> None:
    async with connected(with_discovery(lambda asked: asked.reply(body))) as (_, client):
        with pytest.raises((InvalidResponse, NotMcp)) as caught:
            await client.call("x")
        assert_readable(caught.value)


@for_each("result", [{"content": 1}, {"content": {}}, {"content": [{"type": "hologram"}]}, {"content": [{}]}])
async def test_malformed_results_are_explained(result: dict[str, object]) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.result(result)

    await check_failure(with_discovery(behave), InvalidResponse, "tools/call", "is malformed")


async def test_announced_oversized_body_is_rejected() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1073741824\r\n\r\n{")
        await asyncio.get_running_loop().create_future()

    await check_failure(with_discovery(behave), TooLarge, "67,108,864 bytes", "Options.max_bytes")


@for_each("kind", ["body", "event", "line", "head"])
async def test_unannounced_oversized_body_is_rejected(kind: str) -> None:
    sent = 0
    piece = b"x" * 65536

    async def behave(asked: ReceivedRequest) -> None:
        nonlocal sent
        if kind == "head":
            await asked.write(b"HTTP/1.1 200 OK\r\nX: ")
        else:
            media = "application/json" if kind == "body" else "text/event-stream"
            await asked.write(f"HTTP/1.1 200 OK\r\nContent-Type: {media}\r\n\r\n".encode())
        if kind == "line":
            await asked.write(b"data: ")
        while True:
            await asked.write(b"data: " + piece + b"\n" if kind == "event" else piece)
            sent += len(piece)

    await check_failure(with_discovery(behave), TooLarge, options=Options(max_bytes=1_000_000))
    assert sent < 64 * 1024 * 1024


async def flood(asked: ReceivedRequest) -> None:
    await asked.stream()
    while True:
        await asked.say("notifications/message", {"level": "info", "data": "boom"})


async def test_notification_flood_ends_with_its_call() -> None:
    async with connected(with_discovery(flood)) as (_, client):
        with pytest.raises(RequestTimeout):
            await client.call("x", timeout=NEVER)


async def test_server_that_floods_a_slow_handler_is_disconnected() -> None:
    async def slow(message: object) -> None:
        await asyncio.get_running_loop().create_future()

    options = Options(max_queued_messages=50)
    async with misbehaving(with_discovery(flood)) as server:
        with pytest.raises(TooManyMessages) as caught:
            async with Client(server.url, on_log=slow, options=options) as client:
                await client.call("x")
        assert_readable(caught.value, "Options.max_queued_messages")


async def test_progress_extends_the_timeout_up_to_a_limit() -> None:
    """https://modelcontextprotocol.io/specification/2025-11-25/basic/lifecycle#timeouts"""

    async def behave(asked: ReceivedRequest) -> None:
        await asked.stream()
        step = 0
        while True:
            step += 1
            params = {"progressToken": asked.message["params"]["_meta"]["progressToken"], "progress": step}
            await asked.say("notifications/progress", params)
            await asyncio.sleep(0.01)

    steps: list[float] = []

    def note(value: float, total: float | None, text: str | None) -> None:
        steps.append(value)
        advance_clock(WAIT / 4)

    options = Options(max_call_seconds=WAIT)
    async with connected(with_discovery(behave), options=options) as (_, client):
        with pytest.raises(RequestTimeout):
            await client.call("x", timeout=WAIT / 2, progress=note)
    assert len(steps) > 2


async def test_progress_extends_the_timeout_if_the_call_has_no_limit() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.stream()
        params = {"progressToken": asked.message["params"]["_meta"]["progressToken"], "progress": 1}
        for _ in range(4):
            await asked.say("notifications/progress", params)
            await noted.acquire()
        await asked.event(asked.answer(DONE))

    noted = asyncio.Semaphore(0)

    def note(value: float, total: float | None, text: str | None) -> None:
        advance_clock(WAIT / 4)
        noted.release()

    options = Options(max_call_seconds=math.inf)
    async with connected(with_discovery(behave), options=options) as (_, client):
        assert (await client.call("x", timeout=WAIT / 2, progress=note)).text == "done"


async def test_server_errors_raise_with_code_and_data() -> None:
    """JSON-RPC 2.0 §5.1"""

    async def behave(asked: ReceivedRequest) -> None:
        await asked.error(-32602, "Unknown tool: x", {"near": ["y"]})

    async with connected(with_discovery(behave)) as (_, client):
        with pytest.raises(ServerError, match="Unknown tool: x") as caught:
            await client.call("x")
        assert (caught.value.code, caught.value.data) == (-32602, {"near": ["y"]})


async def test_endless_lists_are_cut_off() -> None:
    numbers = itertools.count()

    async def behave(asked: ReceivedRequest) -> None:
        await asked.result({"tools": [], "nextCursor": str(next(numbers)), "ttlMs": 0, "cacheScope": "private"})

    options = Options(max_pages=5)
    async with connected(with_discovery(behave), options=options) as (_, client):
        with pytest.raises(InvalidResponse, match="more than 5 pages"):
            await client.tools()


@for_each("pages", [[("a", "1"), ("a", "1")], [("a", "1"), ("b", "2"), ("c", "1")]], ids=["ignored", "in a circle"])
async def test_lists_end_at_a_cursor_that_was_used_before(pages: list[tuple[str, str]]) -> None:
    left = iter(pages)

    async def behave(asked: ReceivedRequest) -> None:
        name, cursor = next(left)
        tools = [{"name": name, "inputSchema": {"type": "object"}}]
        await asked.result({"tools": tools, "nextCursor": cursor, "ttlMs": 0, "cacheScope": "private"})

    async with connected(with_discovery(behave)) as (_, client):
        assert [tool.name for tool in await client.tools()] == sorted({name for name, _ in pages})


@for_each("opening", [with_discovery, with_handshake], ids=["2026-07-28", "handshake"])
@for_each("behind", [False, True], ids=["client", "gateway"])
@for_each("ends", [True, False], ids=["last page", "first page again"])
async def test_empty_cursor_is_followed_once(opening: Any, *, ends: bool, behind: bool) -> None:
    """MCP 2026-07-28, server/utilities/pagination. Older servers send one with the last page, and ignore it."""
    left = iter(range(20))  # otherwise a client that follows it forever would hang

    async def behave(asked: ReceivedRequest) -> None:
        is_endless = next(left, None) is None
        is_last = is_endless or (ends and "cursor" in asked.message["params"])
        tools = [{"name": "endless" if is_endless else "b" if is_last else "a", "inputSchema": {"type": "object"}}]
        page = {"tools": tools, "ttlMs": 0, "cacheScope": "private"}
        await asked.result(page if is_last else {**page, "nextCursor": ""})

    async with misbehaving(opening(behave)) as server:
        gateway = Server("front")
        gateway.upstream("odd", server.url, prefix="", policy=UpstreamPolicy(tags=("all",)))  # not relayed
        async with Client(gateway if behind else server.url, timeout=WAIT) as client:
            assert [tool.name for tool in await client.tools()] == (["a", "b"] if ends else ["a"])


async def test_total_size_of_a_list_is_bounded() -> None:
    count = 0

    async def behave(asked: ReceivedRequest) -> None:
        nonlocal count
        count += 1
        tool = {"name": f"t{count}", "description": "x" * 40_000, "inputSchema": {"type": "object"}}
        await asked.result({"tools": [tool], "nextCursor": str(count), "ttlMs": 0, "cacheScope": "private"})

    options = Options(max_bytes=100_000)
    async with connected(with_discovery(behave), options=options) as (_, client):
        with pytest.raises(InvalidResponse, match="larger than 100,000 bytes"):
            await client.tools()
    assert count == 3
