"""A server that records the bytes of requests before anything interprets them, and hostile texts for each part of one.

A text that reaches the head of a request unchecked adds a header, a request, or a header of a part. `RawPeer.check`
finds all three.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from client.misbehaving_servers import Behave, ReceivedRequest
from millstream import ProtocolError, ToolError
from millstream.client import ClientError
from patience import WAIT

TEXTS = {
    "CR LF": "x\r\nX-Injected: 1",
    "LF": "x\nX-Injected: 1",
    "CR": "x\rX-Injected: 1",
    "NUL": "x\0",
    "request": "x\r\nContent-Length: 0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n",
    "colon": "x: y",
    "space": "a b",
    "low byte": "x\u010aX-Injected: 1\u560d\u560aX-Injected: 2",
    "NEL": "x\x85X-Injected: 1",
    "LS": "x\u2028X-Injected: 1",
    "surrogate": "x\ud80ay",
    "escaped byte": "x\udc8ay",
    "member": 'x","method":"smuggled","x":"',
}
NAMES = frozenset({
    b"accept", b"accept-encoding", b"authorization", b"connection", b"content-length", b"content-type", b"cookie",
    b"dpop", b"host", b"last-event-id", b"mcp-method", b"mcp-name", b"mcp-param-word", b"mcp-protocol-version",
    b"mcp-session-id", b"origin", b"user-agent", b"x-api-key",
})  # fmt: skip
"""Headers that the client, or the configuration of a test, sends."""
VERBS = frozenset({b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"CONNECT", b"PATCH"})
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FORBIDDEN = re.compile(rb"[\r\n\0]")


def split_requests(data: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return the head and body of each request on a connection, and the bytes of an unfinished one."""
    found: list[tuple[bytes, bytes]] = []
    while b"\r\n\r\n" in data:
        head, _, rest = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *([0-9]+)", head)
        size = int(length[1]) if length else 0
        if len(rest) < size:
            break
        found.append((head, rest[:size]))
        data = rest[size:]
    return found, data


class RawPeer:
    """The URL of a server, and what it received on each connection."""

    def __init__(self) -> None:
        self.url = ""
        self.port = 0
        self.streams: list[bytearray] = []
        self._checked: dict[int, int] = {}
        """Number of checked requests, by the position of their connection."""

    @property
    def requests(self) -> list[tuple[bytes, bytes]]:
        """The head and body of all requests."""
        return [each for stream in self.streams for each in split_requests(bytes(stream))[0]]

    def check(self, names: Collection[bytes] = (), verbs: Collection[bytes] = VERBS) -> None:
        """Assert that each new request is one that the client sends without any hostile text.

        Args:
            names: Further headers that the configuration sends, in lower case.
            verbs: HTTP methods that the client sends.
        """
        for number, stream in enumerate(self.streams):
            found, rest = split_requests(bytes(stream))
            assert not rest, f"unfinished request: {rest!r}"
            new, self._checked[number] = found[self._checked.get(number, 0) :], len(found)
            for head, body in new:
                check_head(head, {*NAMES, *names}, verbs)
                _check_parts(head, body)
                if b"application/json" in head.lower().partition(b"content-type:")[2].partition(b"\r\n")[0]:
                    json.loads(body, object_pairs_hook=_without_repeats)


def check_head(head: bytes, names: Collection[bytes], verbs: Collection[bytes]) -> None:
    """Assert that a head has one request line and no header twice or unexpected."""
    start, *lines = head.split(b"\r\n")
    assert not any(map(_FORBIDDEN.search, (start, *lines))), head
    verb, target, version = start.split(b" ")
    assert verb in verbs, head
    assert version == b"HTTP/1.1", head
    assert not target.startswith(b"/smuggled"), head
    found = [line.partition(b":")[0].lower() for line in lines]
    assert all(map(_NAME.fullmatch, found)), head
    assert len(found) == len({*found}), head
    assert {*found} <= {*names}, head


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Assert that a JSON object has no member twice, so that all servers read the same value."""
    assert len(dict(pairs)) == len(pairs), pairs
    return dict(pairs)


def _check_parts(head: bytes, body: bytes) -> None:
    """Assert that each part of a multipart body has only the headers that describe it."""
    boundary = re.search(rb"(?i)\r\ncontent-type: multipart/[a-z-]+; boundary=([0-9a-f]+)", head)
    if boundary is None:
        assert b"multipart" not in head.lower().partition(b"content-type:")[2].partition(b"\r\n")[0], head
        return
    first, *parts, last = body.split(b"--" + boundary[1])
    assert (first, last) == (b"", b"--\r\n"), body
    for part in parts:
        lines = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")[0].split(b"\r\n")
        assert not any(map(_FORBIDDEN.search, lines)), part
        found = [line.partition(b":")[0].lower() for line in lines]
        assert sorted(found) in ([b"content-disposition"], [b"content-disposition", b"content-type"]), part


@asynccontextmanager
async def run_raw_peer(behave: Behave) -> AsyncIterator[RawPeer]:
    """Run a server that records everything, and calls `behave` for each request."""
    peer, tasks = RawPeer(), set[asyncio.Task[Any]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        stream, answered = bytearray(), 0
        peer.streams.append(stream)
        with suppress(ConnectionError, asyncio.CancelledError):
            while data := await reader.read(65536):
                stream += data
                for head, body in split_requests(bytes(stream))[0][answered:]:
                    answered += 1
                    await behave(_read(head, body, writer))
        tasks.discard(task)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    peer.port = server.sockets[0].getsockname()[1]
    peer.url = f"http://127.0.0.1:{peer.port}/mcp"
    try:
        yield peer
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _read(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> ReceivedRequest:
    start, *lines = head.decode("latin-1").split("\r\n")
    verb, path, *_ = [*start.split(" "), ""]
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return ReceivedRequest(verb, path, headers, body, writer)


@asynccontextmanager
async def record_handshakes(port: int) -> AsyncIterator[RawPeer]:
    """Run a proxy in front of a WebSocket server. It records what arrives before the server's reply."""
    peer, tasks = RawPeer(), set[asyncio.Task[Any]]()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: bytearray | None) -> None:
        while data := await reader.read(65536):
            if record is None:
                replied.add(writer)
            elif not replied:
                record += data
            writer.write(data)
        writer.close()

    replied: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        replied.clear()
        peer.streams.append(stream := bytearray())
        back, forth = await asyncio.open_connection("127.0.0.1", port)
        with suppress(ConnectionError, asyncio.CancelledError):
            await asyncio.gather(pump(reader, forth, stream), pump(back, writer, None))
        forth.close()
        writer.close()
        tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    peer.port = server.sockets[0].getsockname()[1]
    peer.url = f"ws://127.0.0.1:{peer.port}/ws"
    try:
        yield peer
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def attack(
    places: Mapping[str, Callable[[str], Awaitable[Any]]],
    peer: RawPeer,
    after: Callable[[], Awaitable[None]] | None = None,
    names: Collection[bytes] = (),
) -> None:
    """Send each text through each place. The error names all places that let one through.

    Args:
        places: Calls that fill a place with a text.
        peer: The server that receives the requests.
        after: A call of another caller, made after all texts of a place.
        names: See `RawPeer.check`.
    """
    faults: list[str] = []
    for place, act in places.items():
        for what, text in TEXTS.items():
            try:
                await attempt(act(text))
                peer.check(names)
            except Exception as exc:  # all of them are reported
                faults.append(f"{place}, {what}: {type(exc).__name__} {str(exc)!a}"[:400])
        try:
            if after is not None:
                await after()
                peer.check(names)
        except Exception as exc:
            faults.append(f"{place}, next call: {type(exc).__name__} {str(exc)!a}"[:400])
    assert not faults, "\n".join(faults)


async def attempt(action: Awaitable[Any]) -> None:
    """Wait for a call with a hostile text, which may be refused with a proper error.

    Programs can write lone surrogates, which no message can have: Python's own error describes them.
    """
    try:
        async with asyncio.timeout(WAIT):
            text = getattr(await action, "text", "")
    except (ClientError, ProtocolError, ToolError, UnicodeEncodeError) as exc:
        text = exc
    assert "nternal error" not in str(text), text
