import asyncio
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from http_messages import HttpRequest, Response
from http_peer import HEAD, STREAM_HEAD, Endpoints, SocketListener, ToyApp
from millstream import Settings
from patience import WAIT
from property_settings import examples
from strategies import bytewise, cuts


class Wire(asyncio.Transport):
    """A transport that keeps what is written before its end."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 50000), "sockname": ("127.0.0.1", 8000)})
        self.written = b""
        self.ended = False
        self.late = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it; what comes behind the end apart."""
        if self.ended:
            self.late += data
        else:
            self.written += data

    def close(self) -> None:
        """The end."""
        self.ended = True

    abort = write_eof = close

    def can_write_eof(self) -> bool:
        """As a TCP socket."""
        return True

    def is_closing(self) -> bool:
        """After the end."""
        return self.ended

    def get_write_buffer_size(self) -> int:
        """Everything is taken at once."""
        return 0

    def pause_reading(self) -> None:
        """What has come is kept by the feeder below."""

    resume_reading = pause_reading


async def _echo(request: HttpRequest) -> Response:
    return Response(body=request.body)


async def _slow(request: HttpRequest) -> Response:
    await asyncio.sleep(0)
    return Response(body=request.body)


async def _stream(request: HttpRequest) -> None:
    request.open(200, STREAM_HEAD).write(request.body)


def table() -> Endpoints:
    """Hot paths, and others."""
    routes = {("POST", f"/{kind}/{way}"): handler for way in ("hot", "exact") for kind, handler in _KINDS.items()}
    table = ToyApp(routes, Settings(max_body=100)).table
    limits = structs.replace(table.limits, max_url=200)
    hot = {key: found for key, found in table.hot.items() if key[1].endswith(b"hot")}
    return Endpoints(table.find, limits=limits, policy=table.policy, hot=hot)


_KINDS: dict[str, Any] = {"echo": _echo, "slow": _slow, "stream": _stream}


async def talk(pieces: list[bytes]) -> bytes:
    """What a connection answers to these bytes."""
    wire = Wire()
    protocol = SocketListener(table()).make_protocol()
    protocol.connection_made(wire)
    for piece in pieces:
        if wire.ended:
            break
        protocol.data_received(piece)
        for _ in range(3):
            await asyncio.sleep(0)
    for _ in range(400):
        await asyncio.sleep(0)
    protocol.connection_lost(None)
    if protocol.state.tasks:
        await asyncio.wait(protocol.state.tasks, timeout=WAIT)
    assert protocol.state.tasks == set()
    assert wire.late == b""
    protocol.guard._sweep()
    return re.sub(rb"date: [^\r]+\r\n", b"", wire.written)


def _message(path: str, body: bytes, *, chunked: bool) -> bytes:
    head = b"POST %b HTTP/1.1\r\n" % path.encode() + HEAD
    if chunked:
        return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


PATHS = st.sampled_from([f"/{kind}/{way}" for kind in _KINDS for way in ("hot", "exact")])
MESSAGES = st.builds(_message, PATHS, st.binary(min_size=1, max_size=120), chunked=st.booleans())
FRAGMENTS = st.sampled_from(
    [
        b"\r\n",
        b"\r\n\r\n",
        b"POST ",
        b"/echo/hot",
        b" HTTP/1.1\r\n",
        HEAD,
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n",
        b"Connection: close\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
        b"0\r\n\r\n",
        b"5\r\nabcde\r\n",
        b"x" * 300,
    ]
)


@given(st.lists(st.one_of(MESSAGES, FRAGMENTS, st.binary(max_size=20)), max_size=8), st.data())
@settings(max_examples=examples(20))
def test_arbitrary_bytes_get_http_replies_and_leak_nothing(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    answer = asyncio.run(talk([piece for piece in data.draw(cuts(stream)) if piece]))
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    assert b"HTTP/1.1 5" not in answer


@given(st.lists(MESSAGES, min_size=1, max_size=6), st.one_of(st.just(b""), st.binary(min_size=1, max_size=20)))
@settings(max_examples=examples(10))
def test_input_byte_by_byte_gives_the_same_result_as_all_input_at_once(messages: list[bytes], garbage: bytes) -> None:
    stream = b"".join(messages) + garbage
    whole = asyncio.run(talk([stream]))
    assert whole == asyncio.run(talk(list(bytewise(stream))))
