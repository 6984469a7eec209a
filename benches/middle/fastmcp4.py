"""``pytest -p benches.middle.fastmcp4``: the in-memory clients of fastmcp 4 connect through Millstream."""

import contextlib
from collections.abc import AsyncIterator
from importlib import import_module
from typing import Any

import pytest

from benches.middle.between import URL, open_http, record, serve
from millstream._gateway.programs import program


@contextlib.asynccontextmanager
async def connect_session(transport: Any, *, transport_options: Any = None, **options: Any) -> AsyncIterator[Any]:
    """Yield a session, as ``FastMCPTransport.connect_session`` does."""
    import httpx2  # noqa: PLC0415  in the library's environment only
    from fastmcp.client.transports.base import TransportOptions  # noqa: PLC0415
    from mcp.client.streamable_http import streamable_http_client  # noqa: PLC0415

    session_class = (transport_options or TransportOptions()).session_class
    failure: BaseException | None = None
    async with contextlib.AsyncExitStack() as stack:
        application = await stack.enter_async_context(serve(transport.server))
        http = await stack.enter_async_context(open_http(httpx2, application))
        reading, writing = await stack.enter_async_context(streamable_http_client(f"{URL}/mcp", http_client=http))
        try:
            async with session_class(read_stream=reading, write_stream=writing, **options) as session:
                yield session
        except BaseException as error:  # the task group of the streams would wrap it
            failure = error
    if failure is not None:
        raise failure


def pytest_configure(config: pytest.Config) -> None:
    """Replace the in-memory transport."""
    if record(config):
        from fastmcp.client.transports import memory  # noqa: PLC0415

        memory.FastMCPTransport.connect_session = connect_session
        # In memory, functions see the transport of the client's task, usually none. From that, fastmcp concludes that
        # one client has the server to itself.
        run, current = program._fastmcp, import_module("fastmcp.server.context")._current_transport
        program._fastmcp = lambda server, serve, version, _: run(server, serve, version, current.get())
