"""A server with events, and a client that follows only SEP-3415, using plain HTTP and JSON."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from msgspec import Struct

import http_peer
from millstream import Principal, Server, Settings, auth
from millstream.extensions.events import Events
from patience import WAIT

ADA, BOB = "ada-" + "k" * 40, "bob-" + "k" * 40
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "sep", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


class OrderPaid(Struct):
    """A customer paid an order."""

    order: str
    customer: str = "ada"
    total: float = 1.0


class AtLeast(Struct):
    """The minimum total of refunds to deliver."""

    total: float = 0.0


class Refunded(Struct):
    """An order was refunded."""

    order: str
    customer: str
    total: float


class Above(Struct):
    """An argument without effect."""

    above: int = 0


class Noted(Struct):
    """A note on an order."""

    order: str


class Audited(Struct):
    """An event that only auditors may see."""

    what: str


def is_own(event: Refunded, wanted: AtLeast, principal: Principal | None) -> bool:
    """Return whether a refund belongs to the subscriber and is large enough."""
    return principal is not None and event.customer == principal.subject and event.total >= wanted.total


def key_of(name: str) -> str:
    """Return the key of an additional customer."""
    return f"{name}-" + "k" * 40


def make_shop(
    store: str = "memory://", *, customers: Sequence[str] = (), authorize_channel: Any = None, **options: Any
) -> Server:
    """Return a shop with two customers, and optionally more."""
    keys = auth.keys(named_keys={"ada": (ADA, ["audit"]), "bob": BOB, **{each: key_of(each) for each in customers}})
    settings = Settings(secret_key="0123456789abcdef" * 4)
    events = Events(**options)
    shop = Server(
        "shop",
        serve="hub",
        store=store,
        auth=keys,
        extensions=[events],
        settings=settings,
        authorize_channel=authorize_channel,
    )
    events.event("order.paid")(OrderPaid)
    events.event("order.refunded", arguments=AtLeast, match=is_own)(Refunded)
    events.event("order.noted", arguments=Above)(Noted)
    events.event("audit.noted", scopes=["audit"])(Audited)
    return shop


def events_of(shop: Server) -> Events:
    """Return the events extension of a shop."""
    events = shop.extension(Events)
    assert events is not None
    return events


class RpcError(Exception):
    """A JSON-RPC error."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.code: int = error["code"]
        self.data: Any = error.get("data")


class SepClient:
    """Posts JSON-RPC requests one at a time."""

    def __init__(self, http: httpx2.AsyncClient, url: str, key: str) -> None:
        self._http = http
        self._url = url
        self._key = key
        self._id = 0
        self.extensions: dict[str, Any] = {}
        """Extensions that the client declares."""
        self.names: dict[str, str] = {}
        """`Mcp-Name` by method, for methods other than `tools/call`."""

    def _request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._id += 1
        capabilities = {"extensions": self.extensions} if self.extensions else {}
        meta = {**META, "io.modelcontextprotocol/clientCapabilities": capabilities}
        body = {"jsonrpc": "2.0", "id": self._id, "method": method, "params": {**params, "_meta": meta}}
        headers = {
            "accept": "application/json, text/event-stream",
            "content-type": "application/json",
            "mcp-protocol-version": "2026-07-28",
            "mcp-method": method,
            "authorization": f"Bearer {self._key}",
        }
        if method == "tools/call":
            headers["mcp-name"] = params["name"]
        elif method in self.names:
            headers["mcp-name"] = self.names[method]
        return {"url": self._url, "content": json.dumps(body), "headers": headers}

    async def request(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a request and return its result."""
        answer = (await self._http.post(**self._request(method, params))).json()
        if "error" in answer:
            raise RpcError(answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    @asynccontextmanager
    async def stream(
        self, method: str = "events/stream", **params: Any
    ) -> AsyncGenerator[AsyncIterator[dict[str, Any]]]:
        """Call `events/stream` and yield an iterator of its messages."""
        async with self._http.stream("POST", **self._request(method, params)) as response:

            async def messages() -> AsyncIterator[dict[str, Any]]:
                if response.headers["content-type"] == "application/json":
                    raise RpcError(json.loads(await response.aread())["error"])
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        yield json.loads(line.removeprefix("data: "))

            yield messages()

    async def subscribe(self, url: str, secret: str, name: str = "order.paid", **params: Any) -> dict[str, Any]:
        """Call `events/subscribe` and return its result."""
        delivery = {"mode": "webhook", "url": url, "secret": secret}
        return await self.request("events/subscribe", name=name, delivery=delivery, **params)


class World:
    """A running shop."""

    def __init__(self, shop: Server, http: httpx2.AsyncClient, port: int) -> None:
        self.shop = shop
        self.events: Events = events_of(shop)
        self.port = port
        self._http = http

    def client(self, key: str = ADA) -> SepClient:
        """Return a client of one customer."""
        return SepClient(self._http, f"http://127.0.0.1:{self.port}/mcp", key)


@asynccontextmanager
async def run_shop(shop: Server) -> AsyncGenerator[World]:
    """Run a shop for the duration of the block."""
    async with http_peer.serve(shop) as served, httpx2.AsyncClient(timeout=WAIT, trust_env=False) as http:
        try:
            yield World(shop, http, served.port)
        finally:
            await shop.stop()
