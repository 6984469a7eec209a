"""Unbounded event streams (CVE-2026-53965): the client limits how much it buffers of an endless line or event.
tests/client/test_faults.py tests endless bodies and headers.
"""

import asyncio

import pytest

from cases import for_each
from client.misbehaving_servers import ReceivedRequest, misbehaving, with_discovery
from millstream import Client
from millstream.client import Options, TooLarge
from wire import Decoder

MIB = 1024 * 1024
ENDLESS = {
    "a line": [b"data: ", b"x"],
    "an event": [b"", b"data: x\n"],
    "the name of an event": [b"event: ", b"x"],
    "an id": [b"id: ", b"7"],
    "a comment": [b": ", b"x"],
    "line ends of the other kind": [b"", b"data: x\r"],
}


@for_each("what", ENDLESS)
async def test_endless_streams_end_at_the_limit(what: str) -> None:
    begin, piece = ENDLESS[what]
    sent = 0
    gone = asyncio.Event()

    async def behave(asked: ReceivedRequest) -> None:
        nonlocal sent
        await asked.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + begin)
        block = piece * (65536 // len(piece))
        try:
            while sent < 1024 * MIB:
                await asked.write(block)
                sent += len(block)
        finally:
            gone.set()

    async with misbehaving(with_discovery(behave)) as server:
        with pytest.raises(TooLarge):
            async with Client(server.url, options=Options(max_bytes=MIB)) as client:
                await client.call("x")
        await gone.wait()
    assert sent < 64 * MIB


@for_each("line", [b": x\n", b"unknown: x\n", b"\n", b"retry: 1\n", b"id: 7\n", b"\r", b"\xff\xfe\n"])
def test_ignored_lines_are_not_kept_in_memory(line: bytes) -> None:
    decoder = Decoder(max_event_bytes=1000)
    for _ in range(200):
        assert decoder.feed(line * 1000) == []
    assert [event.data for event in decoder.feed(b"\ndata: on\n\n")] == ["on"]
