import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from unittest.mock import patch

import pytest

from millstream import Client, Context, Server, Settings
from millstream._protocol.jsonrpc import read
from millstream._protocol.revisions import ASSUMED
from millstream._server import sweep as sweeps
from millstream._server.calls.call import ReplyChannel, handshake_call
from millstream._transports.open_streams import NULL_REPLY
from millstream.client._server_messages import PendingRequest
from millstream.protocol import REVISIONS
from patience import WAIT
from processes import free_port, run_command, run_server
from wire import MemoryPipe, request

SERVER = Path(__file__).with_name("slow_peers.py")
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "progressToken": 1,
}


def call(tool: str) -> bytes:
    """Return a call as bytes of HTTP/1.1."""
    params = {"name": tool, "arguments": {}, "_meta": META}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
    head = (
        "POST /mcp HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        "accept: application/json, text/event-stream\r\nmcp-protocol-version: 2026-07-28\r\n"
        f"mcp-method: tools/call\r\nmcp-name: {tool}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@pytest.mark.server
async def test_stalled_peer_does_not_delay_heartbeats_to_others(tmp_path: Path) -> None:
    port = free_port()
    settings = {"MILLSTREAM_HEARTBEAT": "1", "MILLSTREAM_DRAIN_TIMEOUT": "0.1"}
    with patch.dict(os.environ, settings), run_server(run_command(SERVER, port), port, tmp_path / "log"):
        _, stalled = await asyncio.open_connection("127.0.0.1", port, limit=1)
        stalled.write(call("floods"))
        await asyncio.sleep(0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(call("silent"))
        async with asyncio.timeout(WAIT):
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"text/event-stream" in head
            assert b":\n\n" in await reader.readuntil(b":\n\n")
        for each in (writer, stalled):
            each.transport.abort()
            with suppress(OSError):
                await each.wait_closed()


async def test_automatic_progress_is_sent_only_after_a_silent_interval() -> None:
    mcp, told, go_on = Server("lively"), asyncio.Event(), asyncio.Event()

    @mcp.tool
    async def works(ctx: Context) -> str:
        await ctx.progress(1)
        told.set()
        await go_on.wait()
        await ctx.progress(2)
        return "done"

    async with mcp.running() as runtime, asyncio.timeout(WAIT):
        pipe = MemoryPipe(runtime.dispatcher)
        params = {"name": "works", "arguments": {}, "_meta": META}
        pipe.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode())
        await told.wait()
        runtime.sweep.report_progress()
        await asyncio.sleep(0)
        go_on.set()
        steps = [json.loads(await pipe.receive())["params"]["progress"] for _ in range(2)]
        assert steps == [1, 2]
        await pipe.close()


async def test_keep_alives_start_at_zero_and_repeat_the_last_message() -> None:
    mcp, begun, go_on = Server("silent"), asyncio.Semaphore(0), asyncio.Semaphore(0)

    @mcp.tool
    async def silent() -> str:
        begun.release()
        await go_on.acquire()
        return "done"

    @mcp.tool
    async def speaks(ctx: Context) -> str:
        await ctx.progress(0.5, 1, "Reading")
        begun.release()
        await go_on.acquire()
        return "done"

    @mcp.tool
    async def yields() -> AsyncIterator[str]:
        yield "Reading"
        begun.release()
        await go_on.acquire()
        yield "done"

    async with mcp.running() as runtime, asyncio.timeout(WAIT):
        for tool, own, message in (
            ("silent", [], "Still running"),
            ("speaks", [0.5], "Reading"),
            ("yields", [1], "Reading"),
        ):
            pipe = MemoryPipe(runtime.dispatcher)
            params = {"name": tool, "arguments": {}, "_meta": META}
            pipe.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode())
            received = [json.loads(await pipe.receive())["params"] for _ in own]
            await begun.acquire()
            (call,) = runtime.dispatcher.calls
            call.open_reply_channel()  # as for a call that is silent for five seconds
            runtime.sweep.report_progress()  # sees the tool's own report
            for _ in range(3):
                runtime.sweep.report_progress()
                received.append(json.loads(await pipe.receive())["params"])
            values = [each["progress"] for each in received]
            assert values == sorted(set(values))
            assert values[: len(own) or 1] == (own or [0])
            assert {each["message"] for each in received} == {message}
            assert not any("e" in repr(each) for each in values)
            go_on.release()
            while "result" not in json.loads(await pipe.receive()):
                pass
            await pipe.close()


async def test_automatic_progress_only_increases() -> None:
    mcp, told, go_on = Server("silent"), asyncio.Event(), asyncio.Event()

    @mcp.tool
    async def works(ctx: Context) -> str:
        await ctx.progress(1, 3)
        told.set()
        await go_on.wait()
        await ctx.progress(2, 3)
        return "done"

    async with mcp.running() as runtime, asyncio.timeout(WAIT):
        pipe = MemoryPipe(runtime.dispatcher)
        params = {"name": "works", "arguments": {}, "_meta": META}
        pipe.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode())
        await told.wait()
        first = json.loads(await pipe.receive())["params"]["progress"]
        steps = [first]
        for _ in range(3):
            runtime.sweep.report_progress()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        steps += [json.loads(await pipe.receive())["params"]["progress"] for _ in range(2)]
        go_on.set()
        steps.append(json.loads(await pipe.receive())["params"]["progress"])
        assert steps == sorted(set(steps))
        assert (steps[0], steps[-1]) == (1, 2)
        await pipe.close()


@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize("way", ["direct", "relay", "prefix"])
async def test_keep_alives_extend_timeouts_without_being_shown(
    revision: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mcp, begun, go_on = Server("quiet"), asyncio.Event(), asyncio.Event()
    extended: asyncio.Queue[PendingRequest] = asyncio.Queue()
    extend = PendingRequest.extend

    def count(pending: PendingRequest, now: float) -> None:
        if pending.progress is show:
            extended.put_nowait(pending)
        extend(pending, now)

    monkeypatch.setattr(PendingRequest, "extend", count)

    @mcp.tool
    async def works(ctx: Context) -> str:
        await ctx.progress(1, 3)
        begun.set()
        await go_on.wait()
        await ctx.progress(2, 3)
        return "done"

    steps: list[tuple[float, float | None]] = []

    def show(value: float, total: float | None, message: str | None) -> None:
        steps.append((value, total))

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(WAIT))
        runtimes = [await stack.enter_async_context(mcp.running())]
        front, tool = mcp, "works"
        if way != "direct":
            front, tool = Server("front"), "a_works" if way == "prefix" else "works"
            front.upstream("quiet", mcp, prefix="a" if way == "prefix" else "")
            runtimes.append(await stack.enter_async_context(front.running()))
        client = await stack.enter_async_context(Client(front, revision=revision))
        working = asyncio.create_task(client.call(tool, progress=show))
        await begun.wait()
        await extended.get()  # the tool's own report
        for _ in range(2):
            for runtime in runtimes:
                runtime.sweep.report_progress()
        await extended.get()
        go_on.set()
        assert (await working).text == "done"
    assert steps == [(1, 3), (2, 3)]


async def test_sweep_survives_errors(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(sweeps, "TICK", 0)
    monkeypatch.setattr(sweeps, "SILENCE", 0)
    mcp, ticks, beats, go_on = Server("broken", settings=Settings(heartbeat=0)), [0], [0], asyncio.Event()

    @mcp.tool
    async def waits() -> str:
        await go_on.wait()
        return "done"

    def broken_line(call: object) -> ReplyChannel:
        raise RuntimeError("no line for you")

    def beat() -> None:
        beats[0] += 1
        raise ValueError("no beat either")

    async with mcp.running() as runtime, asyncio.timeout(WAIT):
        dispatcher = runtime.dispatcher
        message = request("tools/call", {"name": "waits"})
        calls = [
            handshake_call(read(json.dumps({**message, "id": n}).encode()), None, ASSUMED, open_reply=line)
            for n, line in enumerate((broken_line, lambda call: NULL_REPLY))
        ]
        tasks = [asyncio.create_task(dispatcher.call(call)) for call in calls]

        def tick(now: float) -> None:
            ticks[0] += 1
            raise ValueError("nor a tick")

        sweep = sweeps.Sweep(dispatcher)
        sweep.beats.append(beat)
        sweep.ticks.append(tick)
        sweep.open()
        while ticks[0] < 3 or beats[0] < 3:  # noqa: ASYNC110  counts tell nobody
            await asyncio.sleep(0.002)
        assert (calls[0].reply_channel, calls[1].reply_channel) == (None, NULL_REPLY)
        go_on.set()
        await asyncio.gather(*tasks)
        await sweep.close()
    assert "no line for you" in caplog.text


async def test_start_of_the_server_is_not_reported_as_blocking(caplog: pytest.LogCaptureFixture) -> None:
    times = iter([10.0, 10.1, 13.0, 13.0])  # the start, the first tick, and the beginning of the second one
    ended = asyncio.Event()

    def now() -> float:
        try:
            return next(times)
        except StopIteration:
            ended.set()
            return 20.0

    async with Server("shop", settings=Settings()).running() as runtime:
        sweep = sweeps.Sweep(runtime.dispatcher)
        sweep.clock = now
        with patch.object(sweeps, "TICK", 0.25):
            sweep.open()
            await asyncio.wait_for(ended.wait(), WAIT)
            await sweep.close()
    assert ["blocked for 6.8" in each.getMessage() for each in caplog.records] == [True]


async def test_blocking_functions_are_reported_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    mcp = Server("shop", settings=Settings())
    async with mcp.running() as runtime:
        sweep = runtime.sweep
        sweep.lag = sweeps.STALL / 2
        sweep.report_stall(100.0)
        assert not caplog.records
        sweep.lag = 2.5
        for now in (100.0, 101.0, 100.0 + sweeps.QUIET):
            sweep.report_stall(now)
    text = (
        "The event loop was blocked for 2.5 seconds. If an `async def` function calls blocking code, "
        "such as time.sleep or requests, make it a `def` function, which runs in a thread."
    )
    assert [each.getMessage() for each in caplog.records] == [text, text]
