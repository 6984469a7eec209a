import asyncio
import contextlib
import gc
import weakref
from collections.abc import Collection, Sequence
from typing import Any

import pytest

from app_peer import ask
from cases import for_each
from http_messages import HttpRequest, Response
from millstream import ProtocolError, Server, Settings
from millstream._http.message import Sink, refusal
from millstream._parts import PartHost, Route
from millstream._protocol.revisions import BY_DATE
from millstream._protocol.sse import encode_event
from millstream._server.features.registry import RegisteredExtension
from millstream.items import Call
from millstream.protocol import INVALID_REQUEST, NEWEST, NEWEST_HANDSHAKE
from millstream.testing import ServerError, connect
from patience import WAIT


def with_parts(server: Server, parts: Sequence[Any]) -> Server:
    """Open parts with a server, after its own."""
    server.definition.extensions = parts
    return server


class Toy:
    """A part that counts sales, and rejects calls while it's shut."""

    name = "till"
    needs: Collection[str] = ("metrics",)

    def __init__(self) -> None:
        self.sold = 0
        self.shut = False
        self.closed = False
        self.seen: list[str] = []

    async def open(self, host: PartHost) -> None:
        """Register one of everything."""
        assert host.metrics is not None
        capability, methods = {"example.com/till": {"currency": "EUR"}}, {"till/sell": self.sell}
        host.extend(RegisteredExtension("extensions", capability, methods, frozenset(BY_DATE)))
        host.routes.add("/till", Route({"GET": self.show}, public=True))
        host.metrics.read("counter", "till_sold_total", "Books sold.", lambda: {(): self.sold})
        host.gate(self.check)
        host.observe(lambda call, seconds, answer: self.seen.append(call.method))
        host.report("sold", lambda: self.sold)
        host.check_ready(lambda: "the till is shut" if self.shut else "")

    async def close(self) -> None:
        """Record that the server stops."""
        self.closed = True

    async def sell(self, call: Call) -> bytes:
        """Handle the method."""
        self.sold += 1
        return b'"sold":%d' % self.sold

    async def show(self, request: HttpRequest) -> Response:
        """Handle the path."""
        return Response(b"%d" % self.sold, 200, b"content-type: text/plain\r\n")

    def check(self, call: Call) -> None:
        """Reject calls while the till is shut."""
        if self.shut:
            raise ProtocolError(INVALID_REQUEST, "The till is shut")


class Empty:
    """A part that records when it opens and closes."""

    def __init__(self, name: str, events: list[str], needs: Collection[str] = ()) -> None:
        self.name = name
        self.needs = needs
        self._events = events

    async def open(self, host: PartHost) -> None:
        """Note it."""
        self._events.append(f"open {self.name}")

    async def close(self) -> None:
        """Note it."""
        self._events.append(f"close {self.name}")


@for_each("revision", [NEWEST.date, NEWEST_HANDSHAKE.date])
async def test_a_part_adds_a_method_and_a_gate(revision: str) -> None:
    toy = Toy()
    server = with_parts(Server("shop", serve="metrics"), [toy])
    async with connect(server, revision=revision) as client:
        assert (await client.request("till/sell", {}))["sold"] == 1
        toy.shut = True
        with pytest.raises(ServerError, match="The till is shut"):
            await client.request("till/sell", {})
        assert toy.seen.count("till/sell") == 2
    assert (toy.sold, toy.closed) == (1, True)


async def test_a_part_adds_a_capability_a_route_a_metric_and_a_readiness_check() -> None:
    toy = Toy()
    server = with_parts(Server("shop", serve="metrics"), [toy])
    async with connect(server) as client:
        await client.request("till/sell", {})
        discovered = await client.request("server/discover")
        assert discovered["capabilities"]["extensions"]["example.com/till"] == {"currency": "EUR"}
    async with server.running():
        assert (await ask(server, "GET", "/till")).body == b"1"
        assert b"\ntill_sold_total 1.0\n" in (await ask(server, "GET", "/metrics")).body
        assert (await ask(server, "GET", "/readyz")).body == b"ok\n"
        toy.shut = True
        ready = await ask(server, "GET", "/readyz")
        assert (ready.status, ready.body) == (200, b"degraded: the till is shut\n")
        health = await ask(server, "GET", "/health")
        assert b'"status":"degraded","reasons":["the till is shut"]' in health.body
        assert b'"sold":1' in health.body


async def test_servers_with_parts_can_restart() -> None:
    server = with_parts(Server("shop", serve="metrics"), [Toy()])
    for number in (1, 2):
        async with connect(server) as client:
            assert (await client.request("till/sell", {}))["sold"] == number


async def test_parts_open_after_their_needs_and_close_before_them() -> None:
    events: list[str] = []
    server = with_parts(
        Server("shop"), [Empty("b", events, ["a"]), Empty("a", events), Empty("c", events, ["lifespan"])]
    )
    async with server.running():
        assert events == ["open a", "open b", "open c"]
    assert events[3:] == ["close c", "close b", "close a"]


async def test_unorderable_parts_are_rejected_at_startup() -> None:
    wrong: list[tuple[list[Empty], str]] = [
        ([Empty("till", [], ["hub"])], "The part 'till' needs 'hub', which isn't served: add it to serve="),
        ([Empty("till", [], ["shelf"])], "The part 'till' needs 'shelf', which isn't served: add it to extensions="),
        (
            [Empty("a", [], ["b"]), Empty("b", [], ["a"])],
            "Parts depend on each other in a cycle: 'a' needs 'b' needs 'a'",
        ),
        ([Empty("lifespan", [])], "Two parts are named 'lifespan'"),
    ]
    for parts, text in wrong:
        with pytest.raises(ValueError, match=text):
            async with with_parts(Server("shop", settings=Settings()), parts).running():
                pass


async def test_opened_parts_are_closed_when_a_later_part_fails() -> None:
    class Broken(Empty):
        async def open(self, host: PartHost) -> None:
            raise LookupError("no till")

    events: list[str] = []
    with pytest.raises(LookupError, match="no till"):
        async with with_parts(Server("shop"), [Empty("a", events), Broken("b", events)]).running():
            pass
    assert events == ["open a", "close a"]


async def test_background_work_ends_before_its_part_closes() -> None:
    class Busy(Empty):
        async def open(self, host: PartHost) -> None:
            host.run(self.work())

        async def work(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                self._events.append("work ends")

    events: list[str] = []
    async with with_parts(Server("shop"), [Busy("busy", events)]).running():
        await asyncio.sleep(0)
    assert events == ["work ends", "close busy"]


async def test_background_work_that_ignores_cancellation_does_not_block_closing() -> None:
    released = asyncio.Event()

    async def ignore() -> None:
        while not released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await released.wait()

    events: list[str] = []
    async with with_parts(
        Server("shop", settings=Settings(drain_timeout=0.01)), [Empty("a", events)]
    ).running() as runtime:
        runtime.host.run(ignore())
        await asyncio.sleep(0)
    assert events == ["open a", "close a"]
    released.set()


async def test_finished_background_work_is_forgotten() -> None:
    done = asyncio.Event()

    async def finish() -> None:
        done.set()

    async with Server("shop").running() as runtime:
        work = finish()
        remembered = weakref.ref(work)
        runtime.host.run(work)
        del work
        await done.wait()
        await asyncio.sleep(0)  # the callbacks of a finished task run in the next turn
        gc.collect()
        assert remembered() is None


async def test_two_parts_cannot_serve_the_same_path() -> None:
    class Shadow(Empty):
        async def open(self, host: PartHost) -> None:
            host.routes.add("/mcp", Route({}))

    async with with_parts(Server("shop"), [Shadow("shadow", [])]).running() as runtime:
        with pytest.raises(ValueError, match="Two parts of the server serve '/mcp'"):
            runtime.serve_http()


class Feed:
    """A part with an event stream, which stays open until the part closes."""

    name = "feed"
    needs: Collection[str] = ()

    def __init__(self) -> None:
        self.sinks: list[Sink] = []
        self.opened = asyncio.Event()

    async def open(self, host: PartHost) -> None:
        """Serve the stream."""
        self._open_stream = host.streams.open
        host.routes.add("/feed", Route({"GET": self.show}, stream=True, public=True))

    async def close(self) -> None:
        """End the streams."""
        for sink in self.sinks:
            sink.close()

    async def show(self, request: HttpRequest) -> Response | None:
        """Send one event."""
        sink = self._open_stream(request)
        if sink is None:
            return refusal(503, "Too many open streams.")
        self.sinks.append(sink)
        sink.write(encode_event(b"sold" + request.query, id="7"))
        self.opened.set()
        await sink.wait_closed()
        return None


async def test_event_streams_from_parts_count_against_their_caller() -> None:
    feed = Feed()
    server = with_parts(Server("shop", settings=Settings(max_streams=2)), [feed])  # one caller may have half of them
    async with asyncio.timeout(WAIT), server.running():
        first = asyncio.create_task(ask(server, "GET", "/feed?=2", accept="text/event-stream"))
        await feed.opened.wait()
        assert (await ask(server, "GET", "/feed", accept="text/event-stream")).status == 503
        feed.sinks[0].close()
        reply = await first
    assert (reply.status, reply.headers[b"content-type"]) == (200, b"text/event-stream")
    assert reply.body == b"id: 7\ndata: sold=2\n\n"
