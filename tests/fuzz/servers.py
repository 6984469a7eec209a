"""Targets behind a running server, without a network: HTTP connections, WebSocket frames, and connections of JSON-RPC.

A 500, an exception in the event loop, or a call that's left behind is a fault.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Any

from bad_input.shop import make_shop
from fuzz.parsers import Target, pieces
from millstream._app.server_process.asgi_application import prepare
from millstream._http.server.listener import SocketListener
from millstream._transports.connection import MemoryPipe
from patience import WAIT
from wire import FakeTransport

STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
PING = b'{"jsonrpc":"2.0","id":"the ping behind","method":"ping"}'
REVISIONS = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"]
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class TimeLimit:
    """A time limit, after which a target counts as hanging."""

    seconds: float = WAIT


class _Shop:
    """A server, its event loop, and its faults."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.faults: list[str] = []
        self.server = make_shop()
        self.server.definition.configure(serve="all")
        self.runtime = self.runner.run(self._start())
        self.listener = self.runner.run(self._listen())
        self.state = self.listener.state

    async def _start(self) -> Any:
        asyncio.get_running_loop().set_exception_handler(lambda _, about: self.faults.append(repr(about)))
        runtime = await self.server.start(supervised=True)
        prepare(self.server, runtime)
        return runtime

    async def _listen(self) -> SocketListener:
        return SocketListener(prepare(self.server, self.runtime))

    async def settle(self, turns: int = 30) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)

    async def connection(self, parts: list[bytes]) -> bytes:
        """Return the output of a connection, then close it and check that nothing is left."""
        connection = self.listener.make_protocol()
        transport = _Upgradable(connection)
        connection.connection_made(transport)
        for part in parts:
            if part and not transport.closed:
                transport.protocol.data_received(part)
            await self.settle(3)
        await self.settle()
        transport.protocol.connection_lost(None)
        async with asyncio.timeout(TimeLimit.seconds):
            while self._busy():  # noqa: ASYNC110  no event signals it
                await asyncio.sleep(0)
        return b"".join(transport.written)

    def _busy(self) -> bool:
        return bool(self.state.tasks) or any(call.method == "tools/call" for call in self.runtime.dispatcher.calls)

    def check(self, said: bytes) -> None:
        statuses = {int(status) for status in STATUS.findall(said)}
        assert not statuses & {500, 502, 504}, said[:500]
        faults, self.faults = self.faults, []
        assert not faults, faults


class _Upgradable(FakeTransport):
    """A socket whose protocol can be upgraded."""

    def __init__(self, protocol: Any) -> None:
        super().__init__()
        self.protocol = protocol

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


def http() -> Target:
    """Send bytes on a connection."""
    shop = _Shop()

    def feed(data: bytes) -> None:
        shop.check(shop.runner.run(shop.connection(pieces(data))))

    return feed


def websocket() -> Target:
    """Send bytes after a handshake, as frames."""
    shop = _Shop()

    def feed(data: bytes) -> None:
        said = shop.runner.run(shop.connection([UPGRADE, *pieces(data)]))
        shop.check(said)
        assert said.startswith(b"HTTP/1.1 101"), said[:200]

    return feed


def connections() -> Target:
    """Send messages of each revision on an open connection, each followed by a ping that must be answered."""
    shop = _Shop()

    async def say(data: bytes) -> None:
        pipe = MemoryPipe(shop.runtime.dispatcher)
        revision = REVISIONS[data[0] % len(REVISIONS)].encode() if data else b"2025-11-25"
        opening = b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"%b","capabilities":{}}}'
        async with asyncio.timeout(TimeLimit.seconds):
            for message in (opening % revision, data[1:].replace(b"\n", b" "), PING):
                pipe.send(message)
            heard: bytes = b""
            while b"the ping behind" not in heard or b'"result"' not in heard:
                heard = await pipe.receive()
                assert b"Internal error" not in heard, heard
        await pipe.close()

    def feed(data: bytes) -> None:
        shop.runner.run(say(data))
        shop.check(b"")

    return feed


SERVERS: dict[str, Callable[[], Target]] = {each.__name__: each for each in (http, websocket, connections)}
_CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"add","arguments":{"a":1,"b":2}}}'
_POST = b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
SEEDS: dict[str, list[bytes]] = {
    "http": [
        b"..%bContent-Length: %d\r\n\r\n%b" % (_POST, len(_CALL), _CALL),
        b"..%bTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (_POST, len(_CALL), _CALL),
        b"..GET /dashboard HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health HTTP/1.1\r\n\r\n",
        b"..GET /events?channel=a&last_event_id=x.1 HTTP/1.1\r\nHost: [::1]:8000\r\nOrigin: http://a.example\r\n\r\n",
        b"..DELETE /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nMcp-Session-Id: x\r\nExpect: 100-continue\r\n\r\n",
    ],
    "websocket": [
        b"..\x81\x85\0\0\0\0hello", b"..\x89\x80\0\0\0\0\x88\x82\0\0\0\0\x03\xe8",
        b"..\x01\x83\0\0\0\0abc\x80\x83\0\0\0\0def", b"..\x81\xfe\x00\x7e\0\0\0\0{", b"..\xc1\x80\0\0\0\0",
    ],
    "connections": [
        b"0" + _CALL, b"1[" + _CALL + b"]",
        b'2{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}',
        b'3{"jsonrpc":"2.0","id":2,"method":"resources/read","params":{"uri":"shop://sign"}}',
    ],
}  # fmt: skip
