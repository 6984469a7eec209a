"""The measured cases, and their budgets.

A budget compares our figure with one target's: the median over the rounds of each round's ratio, of responses per
second or of processor time. A plain bound limits one of our figures. Cases without budgets are for information.
"""

from dataclasses import dataclass, field

from benches.traffic import ROWS


@dataclass(frozen=True)
class Case:
    """One load on several targets, ours first; `budgets` maps a target to the least ratio ours / theirs."""

    title: str
    targets: tuple[str, ...]
    budgets: dict[str, float]
    kind: str = ""
    """Request kind of `wire.KINDS`; without one the load goes over stdio. `client-…` measures clients instead."""
    cpu_budgets: dict[str, float] = field(default_factory=dict)
    """Target -> the least ratio of processor times for one answer, theirs / ours."""
    connections: int = 64
    """Number of connections that wrk keeps open."""
    most_cpu_us: float | None = None
    """Maximum processor time of one of our responses."""


@dataclass(frozen=True)
class Broadcast:
    """Events to many subscribers of several servers, ours first; `budgets` as in `Case`."""

    title: str
    subscribers: int
    targets: tuple[str, ...]
    budgets: dict[str, float] = field(default_factory=dict)
    most_kib: float | None = None
    """Maximum memory of one of our subscribers."""
    websocket: bool = False
    cpu_budgets: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Bound:
    """The maximum of one of our own figures."""

    title: str
    figure: str
    most: float
    unit: str


CASES = {
    "call": Case(
        "tools/call, 2026-07-28",
        ("ours", "rust", "mcp-go", "go", "mcp", "mcp-stream", "typescript", "fastmcp", "bare-loop"),
        {"mcp": 15, "typescript": 20, "fastmcp": 40, "bare-loop": 0.5},
        "as-python-2026-07-28",
        {"rust": 1.3},
    ),
    "sessionless": Case(
        "tools/call, 2025-11-25 without sessions",
        (
            "ours-sessionless",
            "rust-sessionless",
            "mcp-go-sessionless",
            "go",
            "mcp-sessionless",
            "mcp-stream-sessionless",
            "typescript",
            "fastmcp-sessionless",
        ),
        {"mcp-sessionless": 28},
        "plain-sessionless",
        {"rust-sessionless": 1.3},
    ),
    "session": Case(
        "tools/call, 2025-11-25 in 16 sessions",
        ("ours", "rust", "mcp-go", "go-session", "mcp", "mcp-stream", "fastmcp"),
        {"mcp": 20},
        "as-typescript-2025-11-25",
        {"rust": 1.3},
    ),
    "adopted": Case(
        "tools/call of a program for another library, 2026-07-28",
        ("adopted", "mcp", "mcp-stream"),
        {"mcp": 1},
        "as-python-2026-07-28",
    ),
    "adopted-session": Case(
        "tools/call of a program for another library, 2025-11-25 in 16 sessions",
        ("adopted", "mcp", "mcp-stream"),
        {"mcp": 1},
        "as-typescript-2025-11-25",
    ),
    "gateway": Case(
        "tools/call through a gateway, 2026-07-28",
        ("ours-gateway", "ours"),
        {},
        "as-python-2026-07-28",
        {"ours": 0.4},
    ),
    "gateways": Case(
        "tools/call through gateways, 2025-11-25 without sessions",
        ("ours-gateway-sessionless", "litellm", "ours-sessionless"),
        {},
        "gateways",
    ),
    "key": Case("with a warm API key", ("ours-key", "ours"), {"ours": 0.9}, "as-python-bearer"),
    "jwt": Case("with a warm JWT", ("ours-jwt", "ours"), {"ours": 0.9}, "as-python-bearer"),
    "limit": Case("with a limit", ("ours-limited", "ours"), {"ours": 0.97}, "as-python-bearer"),
    "secured": Case(
        "with a key, a limit, metrics, and the access log",
        ("ours-secured", "ours"),
        {"ours": 0.8},
        "as-python-bearer",
    ),
    "asgi": Case(
        "tools/call, 2026-07-28, plain ASGI",
        ("ours-asgi", "mcp", "bare-asgi"),
        {"mcp": 8, "bare-asgi": 0.7},
        "as-python-2026-07-28",
    ),
    "list": Case(
        "tools/list of 100 tools, 2026-07-28",
        ("ours-100", "rust-100", "mcp-go-100", "go-100", "mcp-100", "typescript-100", "fastmcp-100"),
        {},
        "list-100",
    ),
    "stdio": Case(
        "stdio, 16 calls in flight, 2025-11-25",
        (
            "ours-stdio",
            "rust-stdio",
            "mcp-go-stdio",
            "go-stdio",
            "mcp-stdio",
            "typescript-stdio",
            "fastmcp-stdio",
            "bare-stdio",
        ),
        {"mcp-stdio": 14},
    ),
    "client-http": Case(
        "clients, tools/call over HTTP, 16 calls in flight",
        ("ours-client", "mcp-client"),
        {"mcp-client": 5},
        "client-http",
    ),
    "client-stdio": Case(
        "clients, tools/call over stdio, 16 calls in flight",
        ("ours-client", "mcp-client"),
        {"mcp-client": 5},
        "client-stdio",
    ),
}
FEW = {
    f"{name}-{connections}": Case(f"{title}, {connections} connections", targets, {}, kind, connections=connections)
    for connections in (1, 16, 256)
    for name, title, targets, kind in (
        (
            "call",
            "tools/call, 2026-07-28",
            ("ours", "rust", "mcp-go", "go", "mcp", "bare-loop"),
            "as-python-2026-07-28",
        ),
        (
            "sessionless",
            "tools/call, 2025-11-25 without sessions",
            ("ours-sessionless", "rust-sessionless", "mcp-go-sessionless", "go", "mcp-sessionless"),
            "plain-sessionless",
        ),
    )
}
"""The cases with 64 connections, repeated with fewer and with more, to vary the concurrency."""
RECORDED = {
    f"as-{name}": Case(
        f"tools/call as the {language} client sends it, {connections} connections",
        ("ours", "rust", "mcp-go", go, "mcp"),
        {},
        f"as-{name}",
        connections=connections,
    )
    for name, language, go, connections in (
        ("python-2026-07-28", "Python", "go", 16),
        ("typescript-2025-11-25", "TypeScript", "go-session", 16),
        ("go-2026-07-28", "Go", "go", 16),
        ("rust-2025-11-25", "Rust", "go-session", 16),
    )
}
"""The exact requests of the official clients (see `benches.record`)."""
DEV_LAB = {
    f"tmdev-{workers}": Case(
        f"the TM Dev Lab layout, 50 users, {name}",
        tuple(f"{each}-shop{suffix}" for each in ("ours", "rust", "mcp-go", "go", "mcp")),
        {},
        "shop",
        connections=50,
    )
    for workers, name, suffix in ((1, "one core", ""), (4, "four workers on every core", "-4"))
}
"""Three tools that need Redis and an HTTP API; see `benches.shop`."""
CASES |= FEW | RECORDED | DEV_LAB
_LEAST = {"reconnect": 0.8, "def": 0.65, "pydantic": 0.85} | dict.fromkeys(("plain-2026", "plain-session"), 1.3)
_PEERS = {
    "ours-traffic": ("rust-traffic", "mcp-traffic", "fastmcp-traffic"),
    "ours-traffic-sessionless": (
        "rust-traffic-sessionless",
        "mcp-traffic-sessionless",
        "fastmcp-traffic-sessionless",
    ),
    "ours-20": ("rust-20", "mcp-20", "fastmcp-20"),
}
ORDINARY = {
    f"real-{name}": Case(
        row.title,
        (row.target, *_PEERS[row.target]),
        {},
        name,
        {} if name == "raising" else {_PEERS[row.target][0]: _LEAST.get(name, 1.0)},
        row.connections,
        60.0 if name == "raising" else None,
    )
    for name, row in ROWS.items()
    if row.target in _PEERS
}
"""The rows of `benches.traffic` beside peers that have the same tools."""
FIXED_RATE = {
    f"fixed-{name}": Case(
        f"{ROWS[name].title}, at a fixed rate",
        ("ours-traffic", *_PEERS["ours-traffic"]),
        {},
        name,
        connections=256,
    )
    for name in ("plain-2026", "wait")
}
"""The latencies of `benches.fixed_rate`. With 256 connections, a tool that waits 10 ms allows 25,600 calls a second."""
CASES |= ORDINARY | FIXED_RATE
PUBLISHED = (
    *(f"real-{name}" for name in ("plain-2026", "plain-session", "umlauts", "long-any", "text-16k", "list-20")),
    *(f"real-{name}" for name in ("pydantic", "def", "wait", "reconnect", "raising")),
    *FIXED_RATE,
    *("gateway", "gateways", "secured", "adopted", "adopted-session", "asgi", "start", "broadcast-5000"),
)
"""What docs/performance.md shows beside peers: `--only page`."""
SIZES = (100, 1_000, 5_000, 10_000)
BROADCASTS = {
    f"broadcast-{size}": Broadcast(
        f"broadcast to {size:,} event streams",
        size,
        ("ours-hub", "bare-sse", "nchan", "fastapi"),
        {"bare-sse": 0.8, "fastapi": 5} if size == 5_000 else {},
        8 if size >= 5_000 else None,
    )
    for size in SIZES
} | {
    f"websocket-{size}": Broadcast(
        f"broadcast to {size:,} WebSockets",
        size,
        ("ours-hub", "fastapi-websocket"),
        most_kib=16 if size >= 5_000 else None,
        websocket=True,
    )
    for size in SIZES
}
BOUNDS = (
    Bound("memory of an idle server", "idle", 45, "MiB"),
    Bound("import", "import_ms", 150, "ms"),
    Bound("modules imported", "modules", 250, ""),
    Bound("first response over stdio", "stdio_ms", 250, "ms"),
)
