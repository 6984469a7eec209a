"""Measures clients: each runs on the load generator's core and calls the same Millstream server on the other core."""

import json
import subprocess
from dataclasses import dataclass

from benches.processes import LOAD_CORE, ROOT, SERVER_CORE, BenchError, Running, pinned
from benches.targets import TARGETS


@dataclass(frozen=True)
class ClientLoad:
    """The result of one client. The fields are those of `http_load.Load`, measured at the client."""

    rate: float
    cpu_us: float
    busy: float


def over_http(client: str, server: Running, seconds: float) -> ClientLoad:
    """Calls over HTTP."""
    return _run(client, [f"http://127.0.0.1:{server.port}/mcp"], seconds)


def over_stdio(client: str, seconds: float) -> ClientLoad:
    """Calls to a process that the client starts."""
    return _run(client, pinned(SERVER_CORE, TARGETS["ours-stdio"].command(0)), seconds)


def _run(client: str, target: list[str], seconds: float) -> ClientLoad:
    command = pinned(LOAD_CORE, [*TARGETS[client].command(0), f"{seconds:g}", *target])
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds + 60, check=False)
    if done.returncode != 0:
        raise BenchError((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    return ClientLoad(**json.loads(done.stdout))
