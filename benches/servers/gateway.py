"""Our gateway for the benchmarks, before `ours.py`, which it starts on the load generator's core.

Processor time is that of the gateway alone. On the gateway's core, each call would also pay for switches between
the two processes.
"""

import atexit
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from benches.processes import LOAD_CORE
from millstream import Server

START = "from millstream._cli import main; main()"


def start() -> int:
    """Start the server behind the gateway, and return its port once it listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    program = str(Path(__file__).with_name("ours.py"))
    process = subprocess.Popen(
        [sys.executable, "-c", START, "run", program, "--port", str(port), "--log-level", "warning"]
    )
    if (os.cpu_count() or 1) > int(LOAD_CORE):
        os.sched_setaffinity(process.pid, {int(LOAD_CORE)})
    atexit.register(process.terminate)
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
        else:
            break
    return port


mcp = Server("bench-gateway", version="1")
mcp.upstream("bench", f"http://127.0.0.1:{start()}/mcp", prefix="")
