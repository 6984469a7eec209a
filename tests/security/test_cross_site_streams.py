"""Cross-site streams: an image, frame, or link on another site sends a GET, and opening a stream has side effects.

It could take over a client's mailbox, or announce a false member. Fetch Metadata headers (W3C, §2.4) show the origin of
a request, and pages can't forge them.
"""

import json
from typing import Any

import pytest

from cases import for_each
from four_workers import ADMIN_KEY, ALLOWED_ORIGIN, FOUR, ON_FOUR
from millstream import Server, Settings
from wire import POST, Wire, run_wire

WAYS = pytest.mark.parametrize("way", ["asgi", "lane", ON_FOUR])
STREAMS = ["/events?channel=a", "/mcp/sse/alice", "/sse", "/mcp", "/mcp/", "/dashboard/events"]


def make_server() -> Server:
    """Return a server with all streams and an additional allowed origin."""
    return Server("streams", serve="all", settings=Settings(allowed_origins=(ALLOWED_ORIGIN,)))


async def status(wire: Wire, path: str, fields: dict[str, str]) -> int:
    """Return the status of a GET, and close the stream if one opens."""
    headers = {**POST, "accept": "text/event-stream", "authorization": f"Bearer {ADMIN_KEY}", **fields}
    if wire.running is None:
        return await _begun_over_asgi(wire, path, headers)
    peer = await wire.running.connect()
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    await peer.send(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
    found, _ = await peer.head()
    peer.close()
    return found


async def _begun_over_asgi(wire: Wire, path: str, headers: dict[str, str]) -> int:
    plain, _, query = path.partition("?")
    scope = {
        "type": "http", "method": "GET", "path": plain, "query_string": query.encode(), "client": ("127.0.0.1", 1),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    sent: list[Any] = []
    given = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Any:
        return next(given, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        sent.append(message)

    await wire.server(scope, receive, send)
    return int(sent[0]["status"])


@WAYS
@for_each("path", STREAMS)
async def test_cross_site_pages_cannot_open_streams(path: str, way: str) -> None:
    async with run_wire(make_server(), way) as wire:
        for mode in ("no-cors", "navigate", "cors"):
            crossing = {"sec-fetch-site": "cross-site", "sec-fetch-mode": mode}
            assert await status(wire, path, crossing) == 403
        assert await status(wire, path, {"sec-fetch-site": "cross-site", "origin": "https://evil.example"}) == 403
        if way == FOUR:
            return
        assert not wire.runtime.streams.by_transport().get("http", 0)
        assert wire.runtime.hub is not None
        assert json.loads(json.dumps(wire.runtime.hub.stats().subscribers)) == 0


@WAYS
@for_each("path", STREAMS)
async def test_same_site_pages_allowed_origins_and_programs_get_streams(path: str, way: str) -> None:
    async with run_wire(make_server(), way) as wire:
        own: list[dict[str, str]] = [{}, *({"sec-fetch-site": site} for site in ("same-origin", "same-site", "none"))]
        friend = {"sec-fetch-site": "cross-site", "origin": ALLOWED_ORIGIN}
        for fields in [*own, friend]:
            assert await status(wire, path, fields) not in (403, 421), fields


CHROME = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/156.0.8078.79 Safari/537.36"
)
IMAGE = {
    "user-agent": CHROME,
    "accept": "image/jxl,image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8",
    "accept-encoding": "gzip, deflate",
}
"""Headers of an image that Chromium loads without TLS from a host that isn't loopback."""


@WAYS
@for_each("path", STREAMS[:-1])  # the dashboard is only for this machine
async def test_pages_that_browsers_do_not_identify_cannot_open_streams(path: str, way: str) -> None:
    async with run_wire(make_server(), way) as wire:
        for host in ("0.0.0.0:8000", "[::]:8000", "192.168.1.5:8000"):
            fetched = {**IMAGE, "host": host, "accept": "text/event-stream"}
            for fields in ({**IMAGE, "host": host}, fetched, {**fetched, "referer": "http://evil.example/"}):
                assert await status(wire, path, fields) == 403
            own = {**fetched, "referer": f"http://{host}/chat"}
            for fields in (own, {**fetched, "user-agent": "curl/8.5.0"}):
                assert await status(wire, path, fields) not in (403, 421), fields


@WAYS
async def test_cross_site_links_open_pages(way: str) -> None:
    async with run_wire(make_server(), way) as wire:
        crossing = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "accept": "text/html"}
        assert await status(wire, "/docs", crossing) == 200
