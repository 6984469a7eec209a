"""An `EventSource` gives up at any status but 200, so a temporary refusal is a stream with one event."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from http_peer import Peer, RunningServer, request, serve
from millstream import Server, Settings, auth
from millstream.hub import Hub
from millstream.stores import StoreUnavailable

KEY = "the one key of the tests of event sources"
WAYS = pytest.mark.parametrize("lane", [True, False], ids=["lane", "plain"])
PATHS = ("/events", "/mcp/sse/me")
BROWSER = b"Accept: text/event-stream\r\n"


async def reply_to(server: RunningServer, path: str, extra: bytes = b"") -> tuple[int, dict[bytes, bytes], bytes]:
    """Return the reply to a request that opens no stream."""
    peer: Peer = await server.connect()
    await peer.send(request("GET", path, extra=extra))
    reply = await peer.reply()
    peer.close()
    return reply


def read_refusal(body: bytes) -> tuple[int, Any]:
    """Return the reconnection time and the data of a refused stream."""
    retry, event = body.decode().split("\n\n", 1)
    assert event.startswith("event: unavailable\ndata: ")
    return int(retry.removeprefix("retry: ")), json.loads(event.partition("data: ")[2])


@WAYS
@pytest.mark.parametrize("rate", ["1/minute", "1/day"])
async def test_event_sources_over_their_rate_reconnect_when_they_may(rate: str, lane: bool) -> None:
    settings = Settings(secret_key=KEY, limit_requests=rate)
    server = Server("hub", version="1", settings=settings, serve=("hub",))
    async with server.running(), serve(server, lane=lane) as running:
        await reply_to(running, "/events?history=x")  # the one request in this minute
        for path in PATHS:
            status, headers, body = await reply_to(running, path, BROWSER)
            assert (status, headers[b"content-type"]) == (200, b"text/event-stream")
            retry, refusal = read_refusal(body)
            assert (refusal["status"], "Too many requests" in refusal["detail"]) == (429, True)
            status, headers, _ = await reply_to(running, path, b"Accept: */*\r\n")
            assert status == 429
            assert retry >= 1_000 * int(headers[b"retry-after"])


@WAYS
async def test_event_sources_that_sent_too_many_wrong_keys_reconnect(lane: bool) -> None:
    settings = Settings(secret_key=KEY, limit_failed_sign_ins="1/minute")
    server = Server("hub", version="1", settings=settings, serve=("hub",), auth=auth.keys("the-right-key-0123456789"))
    async with server.running(), serve(server, lane=lane) as running:
        seen = []
        for number in range(3):
            extra = BROWSER + b"Authorization: Bearer wrong-key-0123456789-%d\r\n" % number
            status, _, body = await reply_to(running, "/events", extra)
            seen.append(status)
        assert seen == [403, 200, 200]
        assert read_refusal(body)[1]["status"] == 429


@WAYS
async def test_other_refusals_keep_their_status(lane: bool) -> None:
    server = Server("hub", version="1", settings=Settings(secret_key=KEY), serve=("hub",))
    async with server.running(), serve(server, lane=lane) as running:
        assert (await reply_to(running, "/events?channel=$client.me", BROWSER))[0] == 403
        assert (await reply_to(running, "/events?channel=a..b", BROWSER))[0] == 400


@WAYS
async def test_event_sources_reconnect_when_the_store_is_back(lane: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server("hub", version="1", settings=Settings(secret_key=KEY), serve=("hub",))

    @asynccontextmanager
    async def fail(*_: object) -> AsyncIterator[None]:
        raise StoreUnavailable("10.1.2.3 is away")
        yield

    async with server.running(), serve(server, lane=lane) as running:
        monkeypatch.setattr(Hub, "hold_interest", fail)
        for path in PATHS:
            status, _, body = await reply_to(running, path, BROWSER)
            assert status == 200
            assert read_refusal(body)[1] == {"status": 503, "detail": "The store didn't respond in time."}
            status, headers, _ = await reply_to(running, path, b"Accept: */*\r\n")
            assert (status, headers[b"retry-after"]) == (503, b"5")
