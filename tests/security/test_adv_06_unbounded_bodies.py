"""Unbounded bodies (CVE-2026-109527, CVE-2026-54283): the size of every body is limited, natively and over ASGI."""

import asyncio
import resource
from collections.abc import AsyncIterator

import pytest

from cases import for_each
from four_workers import FOUR, ON_FOUR, connect_to_four
from http_messages import HttpRequest, Response
from http_peer import HEAD, WAIT, Peer, RunningServer, ToyApp, serve
from millstream import Settings

MIB = 1024 * 1024


async def _size(request: HttpRequest) -> Response:
    return Response(body=b"%d" % len(request.body))


@pytest.fixture(params=["lane", "asgi", ON_FOUR])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[RunningServer]:
    """Yield a server with the default limit, 4 MiB."""
    if request.param == FOUR:
        running = connect_to_four()
        yield running
        running.drop_connections()
        return
    lane = request.param == "lane"
    async with serve(ToyApp({("POST", "/size"): _size}, Settings()), lane=lane) as running:
        yield running


async def _pour(peer: Peer, piece: bytes, times: int) -> None:
    try:
        for _ in range(times):
            await peer.send(piece)
    except ConnectionError:
        return


@for_each("size", [4 * MIB + 1, 1024 * MIB, 10**15])
async def test_declared_gibibyte_gets_413_before_it_is_read(server: RunningServer, size: int) -> None:
    peer = await server.connect()
    await peer.send(b"POST /size HTTP/1.1\r\n" + HEAD + b"Content-Length: %d\r\n\r\n" % size)
    status, headers, _ = await peer.reply()
    assert (status, headers[b"connection"]) == (413, b"close")


async def test_endless_chunked_body_gets_413_within_memory(server: RunningServer) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peer = await server.connect()
    peer.writer.write(b"POST /size HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    sending = asyncio.create_task(_pour(peer, piece, 1024))
    answer = await peer.rest()
    # ASGI can't drain the input before closing, so the reply may be lost.
    assert answer.startswith(b"HTTP/1.1 413 ") or (answer == b"" and not server.is_own_server)
    await asyncio.wait_for(sending, WAIT)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 16 * MIB


async def test_bodies_at_the_cap_are_read(server: RunningServer) -> None:
    peer = await server.connect()
    await peer.send(b"POST /size HTTP/1.1\r\n" + HEAD + b"Content-Length: %d\r\n\r\n" % (4 * MIB) + b"x" * (4 * MIB))
    assert (await peer.reply())[2] == b"%d" % (4 * MIB)


async def test_bodies_in_tiny_chunks_use_no_more_memory_than_their_bytes(server: RunningServer) -> None:
    peer = await server.connect()
    head = b"POST /size HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    await peer.send(head + b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n")
    assert (await peer.reply())[2] == b"20000"
