import asyncio
import json
import re
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bad_input.shop import make_shop
from http_peer import make_listener
from patience import WAIT
from properties.messages import bodies, headers
from property_settings import examples
from strategies import bytewise, cuts
from wire import POST, FakeTransport, encode_headers, encode_request, per_request, request, routing

STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
ADD = {"name": "add", "arguments": {"a": 1, "b": 2}}
CHUNKED = (
    b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'28\r\n{"jsonrpc":"2.0","id":1,"method":"ping"}\r\n0\r\n\r\n'
)
GOOD = [
    encode_request("POST", "/mcp", encode_headers(POST), json.dumps(request("ping")).encode()),
    encode_request("POST", "/mcp", encode_headers(POST), json.dumps(request("tools/call", ADD)).encode()),
    encode_request(
        "POST",
        "/mcp/",
        encode_headers(routing("tools/call", "add")),
        json.dumps(per_request("tools/call", ADD)).encode(),
    ),
    encode_request("GET", "/health?x", [(b"host", b"localhost")], b""),
    encode_request("DELETE", "/mcp", [(b"host", b"[::1]:1")], b""),
    encode_request("POST", "/mcp", encode_headers(POST), b"{"),
    CHUNKED,
]
"""Requests whose replies do not depend on the time."""


class ShopConnections:
    """A server whose connections are created directly."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self.server = make_shop()
        self.runtime = runner.run(self.server.start(supervised=True))
        self._listener = runner.run(make_listener(self.server))
        self._state = self._listener.state

    def feed(self, pieces: list[bytes], *, replies: int = 0) -> bytes:
        """Return the output of a connection for consecutive pieces, with a minimum number of replies."""
        return self._runner.run(self._feed(pieces, replies))

    async def _feed(self, pieces: list[bytes], replies: int) -> bytes:
        connection = self._listener.make_protocol()
        transport = FakeTransport()
        connection.connection_made(transport)
        for piece in pieces:
            if piece and not transport.closed:
                connection.data_received(piece)
            await asyncio.sleep(0)
        await self._until(lambda: all(call.method == "subscriptions/listen" for call in self.runtime.dispatcher.calls))
        await self._until(lambda: len(STATUS.findall(b"".join(transport.written))) >= replies)
        connection.connection_lost(None)
        await self._until(lambda: not self._state.tasks and not self.runtime.dispatcher.calls)
        return b"".join(transport.written)

    @staticmethod
    async def _until(fact: Callable[[], bool]) -> None:
        """Run the event loop until a condition is true, and for a few more iterations."""
        async with asyncio.timeout(WAIT):
            for _ in iter(fact, True):
                await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture(scope="module")
def lane() -> Iterator[ShopConnections]:
    """One server for this file."""
    with asyncio.Runner() as runner:
        lane = ShopConnections(runner)
        yield lane
        runner.run(lane.server.stop())


sequences = st.lists(st.sampled_from(GOOD), min_size=1, max_size=4)


@given(sequences.flatmap(lambda requests: st.tuples(st.just(requests), cuts(b"".join(requests)))))
@settings(max_examples=examples(6))
def test_segmentation_does_not_change_replies(lane: ShopConnections, case: tuple[list[bytes], list[bytes]]) -> None:
    requests, pieces = case
    changing = re.compile(
        rb'"(uptime_seconds|event_loop_lag_ms|memory_bytes)":[0-9.e-]+|content-length: \d+|date: [^\r]*'
    )
    whole, split = (lane.feed(data, replies=len(requests)) for data in ([b"".join(requests)], pieces))
    assert changing.sub(b"", split) == changing.sub(b"", whole)
    assert len(STATUS.findall(whole)) == len(requests)


@pytest.mark.parametrize("request_bytes", GOOD, ids=range(len(GOOD)))
def test_requests_sent_byte_by_byte_get_replies(lane: ShopConnections, request_bytes: bytes) -> None:
    split, whole = (lane.feed(data, replies=1) for data in (list(bytewise(request_bytes)), [request_bytes]))
    assert STATUS.findall(split) == STATUS.findall(whole)


@st.composite
def nearly_http(draw: st.DrawFn) -> bytes:
    """Draw a damaged request, sometimes after a valid one."""
    method = draw(st.sampled_from(["POST", "GET", "DELETE", "OPTIONS", "PUT", "X"]))
    path = draw(st.sampled_from(["/mcp", "/sse", "/messages/", "/health", "/x", "*", "//mcp"]))
    data = encode_request(method, path, draw(headers), draw(bodies))
    if draw(st.booleans()):
        place = draw(st.integers(0, len(data)))
        data = data[:place] + draw(st.binary(max_size=4)) + data[place + draw(st.integers(0, 4)) :]
    return draw(st.sampled_from([b"", GOOD[0]])) + data


@given(
    st.one_of(nearly_http(), nearly_http(), st.binary(max_size=80)).flatmap(
        lambda data: st.tuples(st.just(data), cuts(data))
    )
)
@settings(max_examples=examples(20))
def test_arbitrary_bytes_cause_no_server_error(lane: ShopConnections, case: tuple[bytes, list[bytes]]) -> None:
    _, pieces = case
    statuses = {int(status) for status in STATUS.findall(lane.feed(pieces))}
    assert not {status for status in statuses if status >= 500 and status != 501}
    assert STATUS.findall(lane.feed([GOOD[0]], replies=1)) == [b"200"]
