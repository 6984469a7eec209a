import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from backend_stores import MemoryStore
from cases import for_each
from http_peer import Peer, RunningServer, ToyApp, request, serve
from millstream._config import Settings
from millstream._http.message import Handler, HttpRequest, Response
from millstream._protocol.principal import Principal, Share
from millstream._protocol.sse import COMMENT, Decoder, SseEvent
from millstream._transports.hub_routes import HubRoutes, keep_event_source
from millstream._transports.open_streams import OpenStreams
from millstream.hub import Hub, HubLimits
from patience import WAIT
from stub_auth import protect

JSON = b"Content-Type: application/json\r\n"


class World:
    """A server with the three paths."""

    def __init__(self, server: RunningServer, hub: Hub, streams: OpenStreams) -> None:
        self.server = server
        self.hub = hub
        self.streams = streams

    async def stream(self, path: str = "/events", extra: bytes = b"") -> "Stream":
        """Open a stream."""
        peer = await self.server.connect()
        await peer.send(request("GET", path, extra=extra))
        status, headers = await peer.head()
        assert status == 200, await peer.rest()
        assert headers[b"content-type"] == b"text/event-stream"
        stream = Stream(peer)
        await stream.place()
        return stream

    async def ask(
        self, method: str, path: str, body: bytes = b"", extra: bytes = b""
    ) -> tuple[int, dict[bytes, bytes], Any]:
        """A request with a JSON reply."""
        peer = await self.server.connect()
        await peer.send(request(method, path, body, extra))
        status, headers, reply = await peer.reply()
        peer.close()
        return status, headers, json.loads(reply)

    async def publish(self, body: object) -> tuple[int, dict[bytes, bytes], Any]:
        """`POST /publish`."""
        return await self.ask("POST", "/publish", json.dumps(body).encode(), JSON)

    async def subscribers(self, count: int) -> None:
        """Wait until there are so many."""
        async with asyncio.timeout(WAIT):
            while self.hub.stats().subscribers != count:  # noqa: ASYNC110  nothing tells it
                await asyncio.sleep(0)


class Stream:
    """An open stream and what came of it."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.decoder = Decoder()
        self.events: list[SseEvent] = []
        self.raw = b""

    @property
    def last_id(self) -> str:
        """What an `EventSource` sends when it reconnects."""
        return self.decoder.last_event_id

    async def read(self) -> None:
        """One more chunk."""
        chunk = await self.peer.chunk()
        assert chunk, "the stream is over"
        self.raw += chunk
        self.events += self.decoder.feed(chunk)

    async def place(self) -> None:
        """Wait until the server has said where the stream stands."""
        while not self.last_id:
            await self.read()

    async def until(self, count: int) -> list[str]:
        """Wait for so many events; their data."""
        while len(self.events) < count:
            await self.read()
        return [event.data for event in self.events]

    async def close(self) -> None:
        """Leave."""
        self.peer.close()


async def by_header(request: Any) -> Principal | None:
    """Who a request claims to be."""
    name = request.headers.get(b"x-user")
    return Principal(name.decode()) if name else None


def keep_event_sources(handler: Handler) -> Handler:
    """Wrap a handler as the server does."""

    async def call(request: HttpRequest) -> Any:
        reply = await handler(request)
        return keep_event_source(request, reply) if isinstance(reply, Response) else reply

    return call


@asynccontextmanager
async def world(
    lane: bool, *, authorize: Any = None, max_streams: int = 1000, age: float = 9e9, **limits: Any
) -> AsyncIterator[World]:
    store = MemoryStore(epoch="here")
    hub = Hub(store, HubLimits(**limits), authorize=authorize)
    settings = Settings()
    streams = OpenStreams(Share(max_streams, each=max_streams), max_age=age)
    routes = HubRoutes(hub, streams, gzip=settings.gzip_streams)
    streamed = keep_event_sources(protect(routes.client_stream, by_header))
    table = {
        ("GET", "/events"): keep_event_sources(protect(routes.events, by_header)),
        ("POST", "/publish"): protect(routes.publish, by_header),
        **{("GET", f"/mcp/sse/{name}"): streamed for name in ("me", "you", "a b", "")},
    }
    await hub.open()
    async with serve(ToyApp(table, settings), lane=lane) as server:
        yield World(server, hub, streams)
    await hub.close()


@pytest.fixture(params=[True, False], ids=["lane", "asgi"])
def lane(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def test_subscribers_receive_each_event_once_in_order(lane: bool) -> None:
    async with world(lane) as here:
        streams = [await here.stream() for _ in range(50)]
        for number in range(20):
            status, _, reply = await here.publish({"data": {"n": number}})
            assert (status, reply["subscribers"]) == (200, 50)
        expected = [f'{{"n":{number}}}' for number in range(20)]
        for stream in streams:
            assert await stream.until(20) == expected
            assert {event.event for event in stream.events} == {"message"}
            assert b"event:" not in stream.raw
        assert stream.last_id == reply["id"]


@for_each("how", ["header", "query"])
async def test_reconnect_with_last_event_id_misses_nothing(lane: bool, how: str) -> None:
    async with world(lane) as here:
        stream = await here.stream()
        await here.publish({"data": "1"})
        await stream.until(1)
        await stream.close()
        await here.publish({"data": "2"})
        await here.publish({"data": "3\nlines"})
        if how == "header":
            again = await here.stream(extra=b"Last-Event-ID: %b\r\n" % stream.last_id.encode())
        else:
            again = await here.stream(f"/events?last_event_id={stream.last_id}")
        await here.publish({"data": "4"})
        assert await again.until(3) == ["2", "3\nlines", "4"]


@for_each("name", ["last_event_id", "lastEventId", "lastEventID", "Last-Event-ID", "evs_last_event_id"])
async def test_polyfills_resume_with_their_own_parameter(lane: bool, name: str) -> None:
    """event-source-polyfill, better-sse, and Mercure send the id in the URL, after the one that the page chose."""
    async with world(lane) as here:
        for number in range(3):
            await here.publish({"channel": "a", "data": str(number)})
        ids = [event.id async for event in first_events(here, "/events?channel=a&history=3", 3)]
        again = await here.stream(f"/events?channel=a&last_event_id={ids[0]}&{name}={ids[1]}&_=17")
        assert await again.until(1) == ["2"]


async def first_events(here: World, path: str, count: int) -> AsyncIterator[SseEvent]:
    """Yield the first events of a stream."""
    stream = await here.stream(path)
    await stream.until(count)
    for event in stream.events[:count]:
        yield event


async def test_event_id_from_before_a_restart_gets_a_gap(lane: bool) -> None:
    async with world(lane) as here:
        await here.publish({"data": "1"})
        stream = await here.stream(extra=b"Last-Event-ID: before.7\r\n")
        assert await stream.until(2) == ['{"reason":"unknown"}', "1"]
        assert [event.event for event in stream.events] == ["gap", "message"]


async def test_channels_may_be_repeated_comma_separated_or_wildcards(lane: bool) -> None:
    async with world(lane) as here:
        some = await here.stream("/events?channel=a,b&channel=c.*")
        every = await here.stream("/events?channel=%3E")
        for number, channel in enumerate(["a", "d", "c.x", "b", "broadcast"]):
            await here.publish({"channel": channel, "data": number, "event": "n", "id": f"own-{number}"})
        assert await every.until(5) == list("01234")
        assert await some.until(3) == list("023")
        assert [(each.event, each.id) for each in some.events] == [("n", f"own-{number}") for number in (0, 2, 3)]
        assert (await here.ask("POST", "/publish", b'{"channel":"a","data":1}', JSON))[2]["subscribers"] == 2


async def test_query_selects_history_and_presence(lane: bool) -> None:
    async with world(lane) as here:
        for text in "abc":
            await here.publish({"data": text})
        watcher = await here.stream("/events?channel=$presence.broadcast")
        stream = await here.stream("/events?history=2&client_id=ann&name=Ann%20%C3%89")
        assert await stream.until(2) == ["b", "c"]
        assert json.loads((await watcher.until(1))[0])["name"] == "Ann É"
        await stream.close()
        await watcher.until(2)
        assert [event.event for event in watcher.events] == ["join", "leave"]
        assert await here.hub.presence("broadcast") == []


async def test_clients_receive_their_own_and_missed_messages(lane: bool) -> None:
    async with world(lane) as here:
        await here.hub.send("me", {"progress": 1}, event="progress")
        await here.hub.send("you", "not mine")
        stream = await here.stream("/mcp/sse/me")
        await here.hub.send("me", "result")
        assert await stream.until(3) == ['{"client_id":"me"}', '{"progress":1}', "result"]
        assert [event.event for event in stream.events] == ["connected", "progress", "message"]
        await stream.close()
        await here.subscribers(0)
        await here.hub.send("me", "later")
        again = await here.stream(f"/mcp/sse/me?lastEventId={stream.last_id}")
        assert (await again.until(2))[1:] == ["later"]


async def test_event_streams_have_heartbeats_and_end_with_the_server(lane: bool) -> None:
    async with world(lane) as here:
        streams = [await here.stream(), await here.stream("/mcp/sse/me")]
        assert len(here.streams) == 2
        here.streams.beat()
        for stream in streams:
            while COMMENT not in stream.raw:
                await stream.read()
        here.streams.close()
        for stream in streams:
            assert re.fullmatch(rb"retry: \d{4}\n\n", await stream.peer.chunk())
            assert await stream.peer.chunk() == b""
        assert (here.hub.stats().subscribers, len(here.streams)) == (0, 0)


async def test_expired_event_streams_end_with_a_retry_time(lane: bool) -> None:
    async with world(lane, age=0) as here:
        stream = await here.stream()
        here.streams.beat()
        assert re.fullmatch(rb"retry: \d{4}\n\n", await stream.peer.chunk())
        assert await stream.peer.chunk() == b""


async def test_stalled_readers_are_disconnected_without_affecting_others(lane: bool) -> None:
    async with world(lane, max_buffered=64 * 1024) as here:
        good = await here.stream()
        stalled = await here.server.connect(small_buffer=True)
        await stalled.send(request("GET", "/events"))
        await stalled.head()
        await here.subscribers(2)
        published = 0
        async with asyncio.timeout(WAIT):
            while not here.hub.stats().disconnected:
                await here.hub.publish("broadcast", "x" * 16_000)
                published += 1
                await good.until(published)
        assert here.hub.stats().disconnected == {"slow": 1}
        await here.hub.publish("broadcast", "after")
        assert (await good.until(published + 1))[-1] == "after"
        await here.subscribers(1)


@for_each(
    ("asked", "body", "extra", "status", "text"),
    [
        ("GET /events?channel=secret", b"", b"", 403, "secret"),
        ("GET /events?channel=$client.me", b"", b"", 403, "$client.me"),
        ("GET /events?channel=a%0Ab", b"", b"", 400, "control"),
        ("GET /events?channel=", b"", b"", 400, "characters"),
        ("GET /events?channel=a..b", b"", b"", 400, "segment"),
        ("GET /events?client_id=a%00", b"", b"", 400, "client id"),
        ("GET /events?client_id=a&name=%0D%0A", b"", b"", 400, "name"),
        ("GET /events?history=-1", b"", b"", 400, "history"),
        ("GET /events?history=99999", b"", b"", 400, "history"),
        ("GET /events", b"", b"Accept: application/json\r\n", 406, "event-stream"),
        ("GET /mcp/sse/me", b"", b"Accept: text/html\r\n", 406, "event-stream"),
        ("POST /publish", b'{"channel":"secret","data":1}', JSON, 403, "publish"),
        ("POST /publish", b'{"channel":"$presence.a","data":1}', JSON, 403, "publish"),
        ("POST /publish", b'{"channel":"a.*","data":1}', JSON, 400, "wildcard"),
        ("POST /publish", b'{"channel":"a\\u0007","data":1}', JSON, 400, "control"),
        ("POST /publish", b'{"data":1,"event":"a\\r\\nb"}', JSON, 400, "event name"),
        ("POST /publish", b'{"data":1,"event":"cut"}', JSON, 400, "hub"),
        ("POST /publish", b'{"data":1,"id":"a\\nid: b"}', JSON, 400, "event id"),
        ("POST /publish", b'{"data":1,"id":"here.3"}', JSON, 400, "reserved for the hub"),
        ("POST /publish", b'{"channel":"a"}', JSON, 400, "data"),
        ("POST /publish", b"[1]", JSON, 400, "body"),
        ("POST /publish", b"{", JSON, 400, "body"),
        ("POST /publish", b'{"data":"\xff"}', JSON, 400, ""),
        ("POST /publish", b'{"data":' + b"[" * 100 + b"]" * 100 + b"}", JSON, 400, ""),
        ("POST /publish", b"", JSON, 400, "empty"),
        ("POST /publish", b'{"data":"\\ud800"}', JSON, 400, "surrogate"),
        ("POST /publish", b'{"data":1,"chanel":"ops"}', JSON, 400, "unknown field `chanel`"),
        ("POST /publish", b'{"data":1}', JSON + b"Content-Encoding: gzip\r\n", 415, "coding"),
        ("POST /publish", b'{"data":1}', b"Content-Type: text/plain\r\n", 415, "application/json"),
        ("POST /publish", b'{"data":1}', b"", 415, "application/json"),
        ("POST /publish", b'{"data":"' + b"x" * 2000 + b'"}', JSON, 413, "1000"),
        ("POST /publish", b'{"data":' + b"[1.5," * 1000, JSON, 413, "not 5008 bytes of JSON"),
    ],
)
async def test_invalid_input_is_rejected_without_affecting_others(
    lane: bool, asked: str, body: bytes, extra: bytes, status: int, text: str
) -> None:
    """The errors are problem details (RFC 9457)."""

    def authorize(principal: Any, action: str, channel: str) -> bool:
        return channel != "secret"

    async with world(lane, authorize=authorize, max_event=1000) as here:
        other = await here.stream()
        got, headers, problem = await here.ask(*asked.split(), body, extra)
        assert (got, problem["status"]) == (status, status)
        assert text in problem["detail"]
        assert headers[b"content-type"] == b"application/problem+json"
        await here.publish({"data": "still here"})
        assert await other.until(1) == ["still here"]


async def test_misspelled_channel_parameters_are_rejected(lane: bool) -> None:
    async with world(lane) as here:
        everybody = await here.stream()
        status, _, refusal = await here.publish({"data": "for the operators", "chanel": "ops"})
        detail = "The body isn't a valid event: Object contains unknown field `chanel`."
        assert (status, refusal["detail"]) == (400, f'{detail} Send an event: {{"channel": "news", "data": …}}.')
        await here.publish({"data": "for all"})
        assert await everybody.until(1) == ["for all"]


async def test_channels_in_the_query_of_a_published_event_are_rejected(lane: bool) -> None:
    """Without the refusal, the event would reach the readers of the default channel."""
    async with world(lane) as here:
        everybody = await here.stream()
        for query in ("channel=ops", "x=1&id=7"):
            status, _, refusal = await here.ask("POST", f"/publish?{query}", b'{"data":"secret"}', JSON)
            assert (status, "must be in the body, not in the query" in refusal["detail"]) == (400, True)
        assert (await here.ask("POST", "/publish?token=x", b'{"data":"for all"}', JSON))[0] == 200
        assert await everybody.until(1) == ["for all"]


async def test_excess_connections_get_a_retry_time(lane: bool) -> None:
    async with world(lane, max_connections=2) as here:
        first = await here.stream()
        await here.stream("/mcp/sse/me")
        for path in ("/events", "/mcp/sse/you"):
            status, headers, problem = await here.ask("GET", path)
            assert (status, headers[b"retry-after"]) == (503, b"5")
            assert "connections: 2" in problem["detail"]
        await first.close()
        await here.subscribers(1)
        await here.stream()


@for_each("envelope", ["0", "1"])
async def test_event_sources_resume_from_a_position_whatever_publishers_chose_as_ids(lane: bool, envelope: str) -> None:
    """Two events have the same id, because they're about the same order."""
    async with world(lane) as here:
        stream = await here.stream(f"/events?channel=order.*&envelope={envelope}")
        await here.publish({"channel": "order.created", "data": "1", "id": "7"})
        await stream.until(1)
        assert stream.events[0].id == ("here.2" if envelope == "1" else "7")
        await stream.close()
        await here.publish({"channel": "order.noted", "data": "2"})
        await here.publish({"channel": "order.paid", "data": "3", "id": "7"})
        again = await here.stream("/events?channel=order.*", extra=b"Last-Event-ID: %b\r\n" % stream.last_id.encode())
        assert await again.until(2) == ["2", "3"]


@for_each("limit", ["max_connections", "max_subscribers_per_channel", "max_streams"])
async def test_refused_event_sources_reconnect(lane: bool, limit: str) -> None:
    """An `EventSource` fails permanently at any status other than 200."""
    limits: dict[str, Any] = {limit: 1}
    async with world(lane, **limits) as here:
        first = await here.stream()
        for accept in (b"text/event-stream", b"application/json, Text/Event-Stream;q=0.5"):
            peer = await here.server.connect()
            await peer.send(request("GET", "/events", extra=b"Accept: %b\r\nLast-Event-ID: 7\r\n" % accept))
            status, headers, body = await peer.reply()
            peer.close()
            assert (status, headers[b"content-type"]) == (200, b"text/event-stream")
            decoder = Decoder(last_event_id="7")
            (event,) = decoder.feed(body)
            assert (event.event, json.loads(event.data)["status"]) == ("unavailable", 503)
            assert "Too many" in json.loads(event.data)["detail"]
            assert decoder.retry_ms is not None
            assert 5_000 <= decoder.retry_ms <= 10_000
            assert decoder.last_event_id == "7"
        for accept in (b"", b"Accept: */*\r\n"):
            peer = await here.server.connect()
            await peer.send(request("GET", "/events", extra=accept))
            status, headers, _ = await peer.reply()
            peer.close()
            assert (status, headers[b"retry-after"]) == (503, b"5")
        await first.close()
        await here.subscribers(0)
        await here.stream(extra=b"Accept: text/event-stream\r\n")


@for_each("path", ["/mcp/sse/me", "/events?channel=$client.me", "/events?history=x"])
async def test_only_temporary_refusals_let_event_sources_reconnect(lane: bool, path: str) -> None:
    async with world(lane, authorize=lambda *_: False) as here:
        peer = await here.server.connect()
        await peer.send(request("GET", path, extra=b"Accept: text/event-stream\r\n"))
        status, _, _ = await peer.reply()
        peer.close()
        assert status in (400, 403)


async def test_events_of_publishers_are_not_named_as_the_hubs_own(lane: bool) -> None:
    async with world(lane) as here:
        for name in ("gap", "cut", "unavailable"):
            assert (await here.publish({"data": 1, "event": name}))[0] == 400


async def test_hub_streams_count_toward_the_stream_cap(lane: bool) -> None:
    async with world(lane, max_streams=1) as here:
        await here.stream()
        status, headers, _ = await here.ask("GET", "/events")
        assert (status, headers[b"retry-after"]) == (503, b"5")
        assert here.hub.stats().subscribers == 1


async def test_channel_permission_receives_the_principal(lane: bool) -> None:
    def authorize(principal: Principal | None, action: str, channel: str) -> bool:
        return principal is not None and (not channel.startswith("$client.") or channel == f"$client.{principal.id}")

    async with world(lane, authorize=authorize) as here:
        assert (await here.ask("GET", "/events"))[0] == 403
        assert (await here.ask("GET", "/mcp/sse/you", extra=b"X-User: me\r\n"))[0] == 403
        assert (await here.ask("POST", "/publish", b'{"data":1}', JSON))[0] == 403
        stream = await here.stream(extra=b"X-User: me\r\n")
        await here.stream("/mcp/sse/me", b"X-User: me\r\n")
        assert (await here.ask("POST", "/publish", b'{"data":1}', JSON + b"X-User: me\r\n"))[0] == 200
        assert await stream.until(1) == ["1"]


@for_each(
    ("path", "client_id"),
    [
        ("/mcp/sse/me", "me"),
        ("/mcp/sse/a.b", "a.b"),
        ("/mcp/sse/", None),
        ("/mcp/sse", None),
        ("/mcp/sse/a/b", None),
        ("/events", None),
        ("", None),
    ],
)
def test_client_path_has_at_most_one_segment(path: str, client_id: str | None) -> None:
    assert HubRoutes.match(path) == client_id


async def test_client_ids_with_spaces_are_rejected() -> None:
    async with world(False) as here:
        assert (await here.ask("GET", "/mcp/sse/a%20b"))[0] == 400
        assert (await here.ask("GET", "/mcp/sse/"))[0] == 404


@for_each("query", ["channel=%ff", "client_id=a%ff", "client_id=a&name=%c3"])
async def test_names_must_be_utf_8(lane: bool, query: str) -> None:
    async with world(lane) as here:
        status, headers, body = await here.ask("GET", f"/events?{query}")
        assert (status, headers[b"content-type"]) == (400, b"application/problem+json")
        assert "UTF-8" in body["detail"]


async def test_misspelled_parameters_are_rejected(lane: bool) -> None:
    """The stream would follow the channel `broadcast`, and stay silent."""
    async with world(lane) as here:
        for query, name in (("channels=news", "channel"), ("channel=news&histroy=5", "history")):
            status, _, body = await here.ask("GET", f"/events?{query}")
            assert status == 400
            assert body["detail"].endswith(f"Did you mean '{name}'?")
