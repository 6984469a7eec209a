"""A server that a Consul agent lists while it runs: ``millstream run consul.py``, with CONSUL_HTTP_ADDR set.

Consul itself asks `/readyz` whether the server accepts new work, so a stopping or killed server is soon critical, and
leaves the list after ten minutes. Deregistering at the end would be wrong: in a rolling restart, the last of the old
workers would remove what the new ones have registered.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.request import Request, urlopen

from millstream import Server

AGENT = os.environ.get("CONSUL_HTTP_ADDR", "http://127.0.0.1:8500")
PORT = int(os.environ.get("MILLSTREAM_PORT", "8000"))
SERVICE = {
    "ID": f"bookshop-{PORT}",
    "Name": "bookshop",
    "Port": PORT,
    "Tags": ["mcp"],
    "Meta": {"path": "/mcp", "scheme": "http"},
    "Check": {
        "HTTP": f"http://127.0.0.1:{PORT}/readyz",
        "Interval": "10s",
        "DeregisterCriticalServiceAfter": "10m",
    },
}


def put(path: str, body: object = None) -> None:
    """Send a request to the agent: https://developer.hashicorp.com/consul/api-docs/agent/service."""
    headers = {"X-Consul-Token": os.environ.get("CONSUL_HTTP_TOKEN", ""), "Content-Type": "application/json"}
    urlopen(Request(AGENT + path, json.dumps(body).encode(), headers, method="PUT"), timeout=5).close()  # noqa: S310


# region: lifespan
@asynccontextmanager
async def listed(server: Server) -> AsyncIterator[None]:
    """Register the server. Each worker does, under the same ID."""
    await asyncio.to_thread(put, "/v1/agent/service/register", SERVICE)
    yield


mcp = Server("bookshop", lifespan=listed)
# endregion


@mcp.tool
def price(isbn: str) -> int:
    """Price of a book, in cents."""
    return 100 * len(isbn)
