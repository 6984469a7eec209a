"""``pytest -p benches.middle.mcp1``: the in-memory sessions of mcp 1.x connect through Millstream."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from benches.middle.between import URL, open_http, record, serve


@contextlib.asynccontextmanager
async def connect(
    server: Any, read_timeout_seconds: Any = None, *, raise_exceptions: bool = False, **options: Any
) -> AsyncIterator[Any]:
    """Yield the library's session with a server, as its own function does."""
    import httpx  # noqa: PLC0415  in the library's environment only
    from mcp.client.session import ClientSession  # noqa: PLC0415
    from mcp.client.streamable_http import streamable_http_client  # noqa: PLC0415

    async with (
        serve(server) as application,
        open_http(httpx, application) as http,
        streamable_http_client(f"{URL}/mcp", http_client=http) as (reading, writing, _),
        ClientSession(reading, writing, read_timeout_seconds=read_timeout_seconds, **options) as session,
    ):
        await session.initialize()
        yield session


def pytest_configure(config: pytest.Config) -> None:
    """Replace the function that makes sessions."""
    if record(config):
        from mcp.shared import memory  # noqa: PLC0415

        memory.create_connected_server_and_client_session = connect
