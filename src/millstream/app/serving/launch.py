"""`Server.run()`: choose a transport and serve until stopped."""

import asyncio
import os
import stat
import sys
from typing import TYPE_CHECKING

from millstream.transports.stdio import off_stdout, serve_stdio

if TYPE_CHECKING:
    from millstream.app.server import Server


def launch(server: "Server", transport: str | None, host: str, port: int) -> None:
    """Serve over HTTP or stdio.

    Raises:
        ValueError: an unknown transport.
    """
    if transport is None:
        transport = "stdio" if _is_piped() else "http"
    if transport == "stdio":
        asyncio.run(_stdio(server))
    elif transport == "http":
        from millstream.app.serving.listening import run_program  # noqa: PLC0415  loads an HTTP server only for HTTP

        run_program(server, host, port)
    else:
        raise ValueError(f"Unknown transport {transport!r}: use 'http' or 'stdio'")


def _is_piped() -> bool:
    """Standard input is a pipe or socket: a client started us to talk to us."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


async def _stdio(server: "Server") -> None:
    with off_stdout() as private:  # also while the user's lifespan starts and ends
        async with server.running() as runtime:
            await serve_stdio(runtime.dispatcher, stdout=private)
