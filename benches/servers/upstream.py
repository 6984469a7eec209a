"""Starts `ours.py` on the load generator's core, behind a gateway.

It isn't a child process, so processor time and memory are only the gateway's. It has another core, because on the
gateway's own core, each call would also pay for switches between the two.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from benches.processes import LOAD_CORE, free_port

RUN = "from millstream._cli import main; main()"
DETACH = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL).pid)"
START_SECONDS = 20.0


def start() -> str:
    """Start the server behind the gateway, and return its URL once it listens."""
    port = free_port()
    program = str(Path(__file__).with_name("ours.py"))
    command = [sys.executable, "-c", RUN, "run", program, "--port", str(port), "--log-level", "warning"]
    started = subprocess.run([sys.executable, "-c", DETACH, *command], stdout=subprocess.PIPE, check=True)
    process = int(started.stdout)
    atexit.register(stop, process)
    if (os.cpu_count() or 1) > int(LOAD_CORE):
        os.sched_setaffinity(process, {int(LOAD_CORE)})
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return f"http://127.0.0.1:{port}/mcp"
        time.sleep(0.05)
    raise SystemExit("The server behind the gateway didn't start.")


def stop(process: int) -> None:
    """End the server behind the gateway."""
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)
