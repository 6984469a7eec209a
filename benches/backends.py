"""Stores for servers of a benchmark: each is a separate process or file."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benches.processes import LOAD_CORE, BenchError, free_port, pinned

NATS = Path(sys.executable).with_name("nats-server")
STORES = ("memory", "sqlite", "redis", "nats")


@contextmanager
def run_store(name: str, folder: Path) -> Iterator[str]:
    """Run a store on the core of the load generator, and yield its URL.

    Raises:
        BenchError: It isn't installed, or doesn't start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    if name == "memory":
        yield "memory://"
        return
    if name == "sqlite":
        yield f"sqlite:///{folder / 'store.db'}"
        return
    if name == "redis":
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    else:
        command = [str(NATS), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(folder)]
    if shutil.which(command[0]) is None:
        raise BenchError(f"{command[0]} isn't installed")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(pinned(LOAD_CORE, command), stdout=log, stderr=log)
    try:
        time.sleep(0.5)
        if process.poll() is not None:
            raise BenchError(f"{command[0]} did not start: {(folder / 'log').read_text('utf-8', 'replace')[-300:]}")
        yield f"{name}://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
