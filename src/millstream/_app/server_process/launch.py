"""`Server.run()`: chooses a transport and serves until stopped."""

import asyncio
import logging
import os
import stat
import sys

from millstream._app.definition import Bind
from millstream._app.lifecycle import Runtimes, ServerApplication
from millstream._app.server_process import (
    CommandError,
    check_key,
    check_not_importing,
    convert_start_errors,
    report,
    set_up_logs,
)
from millstream._app.server_process.event_loop import StopSignals, run
from millstream._transports.stdio import off_stdout, serve_stdio

_HTTP = ("http", "sse", "streamable-http")
"""Names for HTTP, which always serves Streamable HTTP and HTTP+SSE."""


def launch(
    application: ServerApplication, transport: str | None, host: str | None, port: int | None, workers: int
) -> None:
    """Serve over HTTP or stdio.

    Raises:
        CommandError: A command is importing the program.
        RuntimeError: An event loop is running in this thread.
        ValueError: The transport is unknown, or doesn't support several workers.
        SystemExit: The server can't start. The reason is on standard error.
    """
    check_not_importing()
    _check_address(host, port, workers)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise RuntimeError(
            "mcp.run() can't be called while an event loop is running. Write `await mcp.run_async()` instead."
        )
    if workers < 1 or (workers > 1 and transport == "stdio"):
        raise ValueError(f"workers={workers}: HTTP supports one or more, and stdio exactly one.")
    if transport is None:
        transport = "stdio" if workers == 1 and _is_piped() else "http"
    if transport == "stdio":
        with off_stdout() as private:  # also while the user's lifespan starts and ends
            try:
                run_stdio(application.runtimes, private)
            except CommandError as exc:
                report(exc)
                sys.exit(1)
    elif transport in _HTTP:
        from millstream._app.server_process.over_http import run_program  # noqa: PLC0415  loads an HTTP server only for HTTP

        run_program(application, host, port, workers=workers)
    else:
        raise _unknown(transport)


async def launch_here(application: ServerApplication, transport: str, host: str | None, port: int | None) -> None:
    """Serve in the running loop, until stopped or until the task is canceled.

    Raises:
        CommandError: The server can't start, or a command is importing the program.
        ValueError: The transport is unknown.
    """
    check_not_importing()
    _check_address(host, port, 1)
    if transport == "stdio":
        with off_stdout() as private:
            await stdio(application.runtimes, private)
    elif transport in _HTTP:
        from millstream._app.server_process.listen_sockets import chosen_address  # noqa: PLC0415  loads an HTTP server for HTTP
        from millstream._app.server_process.over_http import bind_address  # noqa: PLC0415  the same

        if not logging.getLogger().handlers:
            set_up_logs(application.runtimes.definition.settings)
        await bind_address(application, *chosen_address(host, port)).run_here()
    else:
        raise _unknown(transport)


def _check_address(host: object, port: object, workers: object) -> None:
    """Check the types of the arguments of `Server.run`.

    Raises:
        TypeError: An argument has the wrong type. The message identifies it.
    """
    if host is not None and not isinstance(host, str):
        raise TypeError(f"run(host={host!r}): host must be a string, such as '127.0.0.1'.")
    for name, value in (("port", port), ("workers", workers)):
        if type(value) is not int and not (name == "port" and value is None):
            raise TypeError(f"run({name}={value!r}): {name} must be an integer.")


def _unknown(transport: object) -> ValueError:
    port = "" if isinstance(transport, str) else f" For the port, write port={transport}."
    return ValueError(f"Unknown transport {transport!r}. Use 'http' or 'stdio'.{port}")


def _is_piped() -> bool:
    """Return whether standard input is a pipe or socket, so a client has started us."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def run_stdio(runtimes: Runtimes, stdout: int) -> None:
    """Serve the parent program until it closes standard input, or a signal arrives.

    Raises:
        CommandError: The key for sealed state is invalid, or the server can't start.
    """
    run(stdio(runtimes, stdout))


async def stdio(runtimes: Runtimes, stdout: int) -> None:
    """Serve the parent program in the running loop, until it closes standard input or a signal arrives.

    Args:
        runtimes: Runtimes of the server.
        stdout: Descriptor to write to (see `off_stdout`).

    Raises:
        CommandError: The key for sealed state is invalid, or the server can't start.
    """
    check_key(runtimes.definition.settings)
    runtimes.bind = Bind(one_client=True)
    stop = asyncio.Event()
    stops = StopSignals(runtimes, lambda _: stop.set())
    with stops.handle():
        with convert_start_errors(runtimes.definition.name):
            runtime = await runtimes.start_supervised()
            stops.set_ready()
        try:
            await serve_stdio(runtime.dispatcher.served[0], stdout=stdout, stop=stop)
        finally:
            await runtimes.stop()
