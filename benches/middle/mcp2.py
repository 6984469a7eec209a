"""``pytest -p benches.middle.mcp2``: the interaction tests of mcp 2.x connect through Millstream."""

import contextlib
import importlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from benches.middle.between import URL, open_http, record, serve

FACTORIES = {
    "in-memory": "connect_in_memory",
    "streamable-http": "connect_over_streamable_http",
    "streamable-http-stateless": "connect_over_streamable_http_stateless",
    "sse": "connect_over_sse",
}
SERVER_OPTIONS = ("stateless_http", "json_response", "event_store", "retry_interval")


@contextlib.asynccontextmanager
async def connect(server: Any, *, sse: bool, spec_version: str = "2025-11-25", **options: Any) -> AsyncIterator[Any]:
    """Yield the library's client of a server, as the suite's own factories do."""
    import httpx2  # noqa: PLC0415  in the library's environment only
    from mcp.client.client import Client  # noqa: PLC0415
    from mcp.client.sse import sse_client  # noqa: PLC0415
    from mcp.client.streamable_http import streamable_http_client  # noqa: PLC0415

    for name in SERVER_OPTIONS:
        options.pop(name, None)
    async with serve(server) as application, contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(open_http(httpx2, application))
        if sse:
            transport = sse_client(f"{URL}/sse", httpx_client_factory=lambda **_: contextlib.nullcontext(http))
        else:
            transport = streamable_http_client(f"{URL}/mcp", http_client=http)
        mode = "legacy" if spec_version < "2026" else spec_version
        yield await stack.enter_async_context(Client(transport, mode=mode, **options))


def pytest_configure(config: pytest.Config) -> None:
    """Replace the suite's factories."""
    if not record(config):
        return
    factories = importlib.import_module("tests.interaction._connect")
    used = importlib.import_module("tests.interaction.conftest")
    for transport, name in FACTORIES.items():
        factory = partial(connect, sse=transport == "sse")
        setattr(factories, name, factory)
        used._FACTORIES[transport] = factory
