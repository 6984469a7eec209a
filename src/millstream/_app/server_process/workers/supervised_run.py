"""Serving with several workers, from the command line or from ``Server.run(workers=…)``."""

import asyncio
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from millstream._app.server_process.facts import Facts
from millstream._app.server_process.listen_sockets import passed_sockets
from millstream._app.server_process.panel import show
from millstream._app.server_process.workers.file_changes import changes
from millstream._app.server_process.workers.restart import own_command
from millstream._app.server_process.workers.sockets import open_sockets
from millstream._app.server_process.workers.supervisor import Supervisor, slots_of
from millstream._stores import open_store
from millstream._stores.local.server import run_local_server


def can_supervise() -> bool:
    """Return whether sockets can be passed to another process by their descriptors."""
    return os.name == "posix"


def supervise(
    host: str,
    port: int,
    workers: int,
    *,
    run: int = 1,
    descriptor: int | None = None,
    watched: Path | None = None,
    told: Callable[[Facts], None] = show,
) -> None:
    """Serve with several workers until stopped.

    Args:
        host: address to listen on.
        port: port to listen on; 0 for any.
        workers: number of workers.
        run: number of this ``run()`` call in the program.
        descriptor: descriptor of a socket to listen on instead.
        watched: folder; when a Python file in it changes, all workers restart.
        told: called once when the workers serve.

    Raises:
        CommandError: the address can't be used, or a worker can't start.
        SystemExit: a second signal stopped it without draining.
    """
    command = own_command()
    sockets = passed = passed_sockets(descriptor)
    if passed:
        host = sockets[0].getsockname()[0]
    else:
        sockets = open_sockets(host, port, workers)
    try:
        slots = slots_of(sockets, workers, passed=bool(passed))
        program = None if watched is None else partial(changes, watched)
        store = partial(run_local_server, open_store)
        supervisor = Supervisor(command, slots, host=host, run=run, changes=program, store=store, told=told)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(supervisor.run())
    finally:
        for each in sockets:
            each.close()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return uvloop's factory if installed: the parent serves the store of all workers, which takes a third less
    time.
    """
    try:
        import uvloop  # noqa: PLC0415  not everywhere
    except ImportError:
        return asyncio.SelectorEventLoop
    return uvloop.new_event_loop
