"""The cost of a start: importing the server class, its modules, and the time to the first response.

Each figure is from a separate process on the server's core, with warm file caches and compiled bytecode.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benches import processes, stdio_load
from benches.processes import ROOT, SERVER_CORE, pinned
from benches.targets import PYTHON, TARGETS, Target

PROGRAM = (
    "import sys, time; modules = len(sys.modules); begun = time.perf_counter(); {line}; "
    "print((time.perf_counter() - begun) * 1000, len(sys.modules) - modules)"
)
IMPORTS = {
    "ours": (sys.executable, "from millstream import Server"),
    "mcp": (PYTHON, "from mcp.server.mcpserver import MCPServer"),
    "fastmcp": (PYTHON, "from fastmcp import FastMCP"),
}


@dataclass(frozen=True)
class Start:
    """One start of one target. None if the target has no such figure."""

    import_ms: float | None
    modules: int | None
    http_ms: float
    stdio_ms: float
    idle: float
    """Resident memory after the first HTTP response, in MiB."""


def measure(name: str, log: Path) -> Start:
    """Start the target's import, HTTP server and stdio server once each.

    Raises:
        BenchError: one of them does not start.
    """
    import_ms: float | None = None
    modules: int | None = None
    if name in IMPORTS:
        python, line = IMPORTS[name]
        command = pinned(SERVER_CORE, [python, "-c", PROGRAM.format(line=line)])
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
        if done.returncode != 0:
            raise processes.BenchError(done.stderr.strip().splitlines()[-1])
        spent, count = done.stdout.split()
        import_ms, modules = float(spent), int(count)
    http, idle = _http(TARGETS[name], log)
    return Start(import_ms, modules, http * 1000, _stdio(TARGETS[f"{name}-stdio"]) * 1000, idle)


def _http(target: Target, log: Path) -> tuple[float, float]:
    port = processes.free_port()
    server = processes.start(target.command(port), dict(target.environment), port, log)
    server.stop()
    return server.started, server.idle


def _stdio(target: Target) -> float:
    begun = time.perf_counter()
    with stdio_load.talking(target.command(0), dict(target.environment)) as (into, out, _):
        stdio_load.initialize(into, out)
        return time.perf_counter() - begun
