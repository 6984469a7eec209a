import asyncio
from collections.abc import AsyncIterator

import pytest

from cases import for_each
from http_messages import HttpRequest, Response
from http_peer import STREAM_HEAD, WAIT, request
from parity_peer import Start, parity


@pytest.fixture(params=["own", "asgi"])
async def start(request: pytest.FixtureRequest) -> AsyncIterator[Start]:
    """Start servers by one of the two ways; they end with the test."""
    async with parity(request.param) as start:
        yield start


async def test_streams_are_chunked_and_end_properly(start: Start) -> None:
    """RFC 9112 §7.1."""
    peer = await (await start()).connect()
    await peer.send(request(path="/stream") + request(body=b"next"))
    status, headers, body = await peer.reply()
    assert (status, body, headers[b"content-type"]) == (200, b"onetwo", b"text/event-stream")
    assert (await peer.reply())[2] == b"next"


@pytest.mark.parametrize("path", ["/fail", "/nothing"])
async def test_failing_handlers_reveal_only_an_incident(
    start: Start, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    peer = await (await start()).connect()
    await peer.send(request(path=path))
    status, _, body = await peer.reply()
    identifier = body.decode().split()[-1].rstrip(".")
    assert status == 500
    assert b"secret" not in body
    assert len(identifier) == 16
    assert identifier in caplog.text


async def test_handler_failure_cuts_its_stream(start: Start) -> None:
    peer = await (await start()).connect()
    await peer.send(request(path="/fail-late"))
    status, _ = await peer.head()
    rest = await peer.rest()
    assert status == 200
    assert not rest.endswith(b"0\r\n\r\n")


async def test_a_second_stream_for_one_request_is_an_error(start: Start) -> None:
    raised = asyncio.Event()

    async def twice(request: HttpRequest) -> None:
        request.open(200, STREAM_HEAD)
        with pytest.raises(RuntimeError):
            request.open(200, STREAM_HEAD)
        raised.set()

    peer = await (await start({("POST", "/twice"): twice})).connect()
    await peer.send(request(path="/twice"))
    assert (await peer.reply())[2] == b""
    assert raised.is_set()


async def test_disconnect_ends_the_stream(start: Start) -> None:
    closed: asyncio.Queue[str] = asyncio.Queue()

    async def endless(request: HttpRequest) -> None:
        sink = request.open(200, STREAM_HEAD)
        sink.on_close(lambda: closed.put_nowait("first"))
        sink.write(b"hello")
        await sink.wait_closed()
        sink.write(b"nobody reads this")
        await sink.drain()
        sink.on_close(lambda: closed.put_nowait("late"))
        assert sink.closed

    peer = await (await start({("POST", "/endless"): endless})).connect()
    await peer.send(request(path="/endless"))
    await peer.head()
    assert await peer.chunk() == b"hello"
    peer.close()
    assert [await asyncio.wait_for(closed.get(), WAIT) for _ in range(2)] == ["first", "late"]
    assert closed.empty()


@for_each("streams", [False, True])
async def test_disconnect_cancels_handlers_that_request_cancellation(start: Start, streams: bool) -> None:
    """MCP 2026-07-28: a disconnect cancels the call."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def work(request: HttpRequest) -> None:
        request.cancel_on_disconnect = True
        if streams:
            request.open(200, STREAM_HEAD).write(b"hello")
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set()
            raise

    server = await start({("POST", "/work"): work})
    peer = await server.connect()
    await peer.send(request(path="/work"))
    await asyncio.wait_for(began.wait(), WAIT)
    peer.close()
    await asyncio.wait_for(ended.wait(), WAIT)
    other = await server.connect()
    await other.send(request(body=b"alive"))
    assert (await other.reply())[2] == b"alive"
    assert server.state.tasks == set()


async def test_disconnect_does_not_cancel_independent_handlers(start: Start) -> None:
    began, go, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work(request: HttpRequest) -> Response:
        began.set()
        await go.wait()
        ended.set()
        return Response()

    server = await start({("POST", "/work"): work})
    peer = await server.connect()
    await peer.send(request(path="/work"))
    await asyncio.wait_for(began.wait(), WAIT)
    peer.close()
    other = await server.connect()
    await other.send(request(path="/slow"))
    await other.reply()
    go.set()
    await asyncio.wait_for(ended.wait(), WAIT)


async def test_streams_opened_after_a_disconnect_are_closed(start: Start) -> None:
    began, go = asyncio.Event(), asyncio.Event()
    states: asyncio.Queue[bool] = asyncio.Queue()

    async def work(request: HttpRequest) -> None:
        began.set()
        await go.wait()
        sink = request.open(200, STREAM_HEAD)
        sink.write(b"nobody reads this")
        states.put_nowait(sink.closed)

    server = await start({("POST", "/work"): work})
    peer = await server.connect()
    await peer.send(request(path="/work"))
    await asyncio.wait_for(began.wait(), WAIT)
    peer.close()
    other = await server.connect()
    await other.send(request(path="/slow"))
    await other.reply()
    go.set()
    assert await asyncio.wait_for(states.get(), WAIT)


async def test_slow_readers_hold_back_draining_writers(start: Start) -> None:
    piece = b"x" * 65536

    async def pour(request: HttpRequest) -> None:
        sink = request.open(200, STREAM_HEAD)
        for _ in range(64):
            sink.write(piece)
            await sink.drain()

    peer = await (await start({("POST", "/pour"): pour})).connect(small_buffer=True)
    await peer.send(request(path="/pour"))
    assert (await peer.reply())[2] == piece * 64


async def test_readers_too_far_behind_are_disconnected(start: Start) -> None:
    cut = asyncio.Event()

    async def flood(request: HttpRequest) -> None:
        sink = request.open(200, STREAM_HEAD)
        sink.on_close(cut.set)
        while not sink.closed:
            sink.write(b"x" * 65536)
            await asyncio.sleep(0)

    peer = await (await start({("POST", "/flood"): flood}, stream_buffer=100_000)).connect(small_buffer=True)
    await peer.send(request(path="/flood"))
    await asyncio.wait_for(cut.wait(), WAIT)
