"""Rows of real clients' requests, which `benches.compare` measures on our server alone, or on two source trees.

A row changes one thing of a recorded request: the tool, the arguments, headers that a proxy adds, or how the body is
framed.
"""

from dataclasses import dataclass, replace
from typing import Literal

from benches.backends import STORES
from benches.wire import KINDS, Kind, recorded

PYTHON, TYPESCRIPT, GO = "python-2026-07-28", "typescript-2025-11-25", "go-2026-07-28"
"""The clients whose requests the rows change, in the revision that each speaks with us by default."""
LONG = 10_240
"""Length of long arguments, in bytes."""
_ASCII = "The quick brown fox jumps over the lazy dog. "
_SCRIPTS = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. 敏捷的棕色狐狸跳过懒狗。 "
_ORDER = '"order":{"isbn":"978-3-16-148410-0","copies":2,"where":{"street":"Main St 1","city":"Springfield"}}'
_PROXY = (
    "X-Real-IP: 203.0.113.7", "X-Forwarded-Host: mcp.example.com", "X-Forwarded-Port: 443",
    "X-Request-ID: 5f4dcc3b5aa765d61d8327deb882cf99",
)  # fmt: skip
"""Headers that many sites add to those of nginx's guide."""
_CLOUDFLARE = (
    "CF-Ray: 9a3f0c1d2e4b5a67-FRA", "CF-Connecting-IP: 203.0.113.7", "CF-IPCountry: DE",
    'CF-Visitor: {"scheme":"https"}', "CDN-Loop: cloudflare; loops=1", "X-Forwarded-For: 203.0.113.7",
    "X-Forwarded-Proto: https",
)  # fmt: skip
"""Headers that Cloudflare documents to add, with `Accept-Encoding: gzip, br` in place of the client's."""


@dataclass(frozen=True)
class Row:
    """One line of the table: what's sent, to which of our servers, and on how many connections."""

    title: str
    kind: Kind
    target: str = "ours-traffic"
    connections: int = 16
    first: tuple[tuple[Kind, int], ...] = ()
    """Requests to send before the load, and how often."""
    streams: tuple[tuple[Kind, str, int], ...] = ()
    """Streams that stay open during the load: the request, the beginning of the reply, and the number of streams. `#`
    in a body is a number."""
    store: str = ""
    """One of `backends.STORES`, for a separate store."""
    workers: int = 1
    beside: bool = False
    """Whether the load goes to another server on the same store, and this one, which has a subscriber of another
    channel, only reads.
    """
    way: Literal["wrk", "apart", "stdio"] = "wrk"
    """How requests are sent: by wrk, with their head and body in two segments, or over stdio."""


def _call(client: str, tool: str, arguments: str, reply: str) -> Kind:
    """Return a recorded call with another tool and other arguments."""
    kind = recorded(client)
    whole = kind.whole.replace(": add\r\n", f": {tool}\r\n")
    body = kind.body.replace('"name":"add"', f'"name":"{tool}"').replace('"a":@,"b":1', arguments)
    return replace(kind, whole=whole, body=body, expect="", reply=reply)


def _page(client: str) -> Kind:
    """Return a call of the tool that returns 16 KB of text."""
    return _call(client, "page", "", "Page one.")


def _count(text: str) -> Kind:
    """Return a call of the tool that counts the characters of its argument."""
    return _call(PYTHON, "count", f'"text":"{text}"', str(len(text)))


def _sum(tool: str) -> Kind:
    """Return a call of another tool that adds two numbers."""
    return replace(_call(PYTHON, tool, '"a":@,"b":1', ""), expect="sum")


def _fill(text: str) -> str:
    """Repeat a text up to the length of long arguments."""
    return (text * (LONG // len(text) + 1)).encode()[:LONG].decode("utf-8", "ignore")


def _with(kind: Kind, *headers: str, without: tuple[str, ...] = ()) -> Kind:
    """Take header lines from a request, and add others."""
    lines = kind.whole.removesuffix("\r\n\r\n").split("\r\n")
    kept = [line for line in lines if line.partition(":")[0].lower() not in without]
    return replace(kind, whole="\r\n".join([*kept, *headers]) + "\r\n\r\n")


def _post(path: str, body: str, reply: str = "") -> Kind:
    """Return a request of a Python program that isn't MCP, as httpx2 writes it."""
    whole = (
        f"POST {path} HTTP/1.1\r\nHost: {{host}}\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\n"
        "Connection: keep-alive\r\nUser-Agent: python-httpx2/2.16.2\r\nContent-Length: {length}\r\n"
        "Content-Type: application/json\r\n\r\n"
    )
    return Kind("", body, expect="", reply=reply, whole=whole)


def _listen(channel: str) -> tuple[Kind, str]:
    """Return a browser's subscription to a channel of the hub, and the beginning of its stream."""
    whole = f"GET /events?channel={channel} HTTP/1.1\r\nHost: {{host}}\r\nAccept: text/event-stream\r\n\r\n"
    return Kind("", "", expect="", whole=whole), "id: "


def _task(tool: str) -> Kind:
    """Return a call that becomes a task."""
    call = _call(PYTHON, tool, "", '"resultType":"task"')
    capable = '"io.modelcontextprotocol/clientCapabilities":{"extensions":{"io.modelcontextprotocol/tasks":{}}}'
    return replace(call, body=call.body.replace('"io.modelcontextprotocol/clientCapabilities":{}', capable))


def _follow(customer: str) -> tuple[Kind, str]:
    """Return an open stream of one customer's events, and the beginning of it."""
    kind = recorded(PYTHON, "tools/list")
    params = f'"params":{{"name":"order.paid","arguments":{{"customer":"{customer}"}},'
    body = kind.body.replace("tools/list", "events/stream").replace('"params":{', params)
    return replace(kind, whole=kind.whole.replace("tools/list", "events/stream"), body=body), "events/active"


def _publish(size: int = 100) -> Kind:
    """Return a publication of text."""
    return _post("/publish", f'{{"channel":"bench","data":"{"x" * size}"}}', '"subscribers":')


def _without_session(kind: Kind) -> Kind:
    return replace(_with(kind, without=("mcp-session-id",)), sessions=0)


def _other(client: str, method: str, reply: str = "") -> Kind:
    return replace(recorded(client, method), reply=reply)


_PAID = _post("/publish", '{"channel":"order.paid","data":{"order":"7","customer":"ada"}}', '"subscribers":')
_PLAIN, _SESSION = recorded(PYTHON), recorded(TYPESCRIPT)
ROWS = {
    "plain-2026": Row("tools/call, 2026-07-28, Python", _PLAIN),
    "plain-go": Row("tools/call, 2026-07-28, Go", recorded(GO)),
    "plain-typescript": Row("tools/call, 2026-07-28, TypeScript", recorded("typescript-2026-07-28")),
    "plain-session": Row("tools/call, 2025-11-25 in 16 sessions, TypeScript", _SESSION),
    "plain-python": Row("tools/call, 2025-11-25 in 16 sessions, Python", recorded("python-2025-11-25")),
    "plain-python1": Row("tools/call, 2025-11-25 in 16 sessions, Python's first line", recorded("python1-2025-11-25")),
    "plain-2025-06-18": Row("tools/call, 2025-06-18 in 16 sessions, Python", recorded("python1-2025-06-18")),
    "plain-2025-03-26": Row("tools/call, 2025-03-26 in 16 sessions, Python", recorded("python1-2025-03-26")),
    "plain-rust": Row("tools/call, 2025-11-25 in 16 sessions, Rust", recorded("rust-2025-11-25")),
    "plain-sessionless": Row(
        "tools/call, 2025-11-25 without sessions, TypeScript", _without_session(_SESSION), "ours-traffic-sessionless"
    ),
    "text-16k": Row("16 KB of text, Python on loopback", _page(PYTHON)),
    "text-16k-typescript": Row("16 KB of text, TypeScript on loopback", _page(TYPESCRIPT)),
    "text-16k-go": Row("16 KB of text, Go on loopback", _page(GO)),
    "text-16k-nginx": Row("16 KB of text, Python through nginx", _page("nginx-2026-07-28")),
    "text-16k-plain": Row("16 KB of text, no compression accepted", _with(_page(PYTHON), without=("accept-encoding",))),
    "umlauts": Row("arguments with umlauts and Chinese", _count("Grüße aus Köln, 你好世界")),
    "long-ascii": Row("10 KB of arguments, ASCII", _count(_fill(_ASCII))),
    "long-any": Row("10 KB of arguments, any script", _count(_fill(_SCRIPTS))),
    "sessions-1000": Row("1,000 sessions in turn", replace(_SESSION, sessions=1_000)),
    "sessions-10000": Row("10,000 sessions in turn", replace(_SESSION, sessions=10_000)),
    "time-limit": Row("MILLSTREAM_TOOL_TIMEOUT=30", _PLAIN, "ours-timed"),
    "nginx-guide": Row("headers of nginx, as its guide sets it up", recorded("nginx-2026-07-28")),
    "nginx": Row("headers of nginx, as many sites set it up", _with(recorded("nginx-2026-07-28"), *_PROXY)),
    "cloudflare": Row(
        "headers of Cloudflare",
        _with(_PLAIN, "Accept-Encoding: gzip, br", *_CLOUDFLARE, without=("accept-encoding",)),
    ),
    "browser": Row("fetch() in Chromium", recorded("chromium-2025-11-25")),
    "chunked": Row("a chunked body, Go", recorded("nethttpchunked-2026-07-28")),
    "apart": Row("head and body in two segments, as httpx sends them", _PLAIN, way="apart"),
    "stdio-plain": Row("stdio, 16 calls in flight, 2025-11-25", KINDS["call-2025"], "ours-stdio", way="stdio"),
    "reconnect": Row("a connection per call", _with(_PLAIN, "Connection: close", without=("connection",))),
    "initialize-python": Row("initialize, old Python", _other("python1-2025-03-26", "initialize", '"serverInfo"')),
    "ping-python": Row("ping, old Python", _other("python1-2025-03-26", "ping", '"result":{}')),
    "initialize": Row("initialize, TypeScript", _other(TYPESCRIPT, "initialize", '"serverInfo"')),
    "initialized": Row("notifications/initialized, TypeScript", _other(TYPESCRIPT, "notifications/initialized")),
    "ping": Row("ping, TypeScript", _other(TYPESCRIPT, "ping", '"result":{}')),
    "discover": Row("server/discover, Python", _other(PYTHON, "server/discover", '"supportedVersions"')),
    "list-20": Row("list of 20 tools, 2025-11-25, TypeScript", _other(TYPESCRIPT, "tools/list", '"add_9"'), "ours-20"),
    "list-20-2026": Row("list of 20 tools, 2026-07-28, Python", _other(PYTHON, "tools/list", '"add_9"'), "ours-20"),
    "pydantic": Row("a pydantic model as the argument", _call(PYTHON, "order", _ORDER, "Springfield")),
    "def": Row("a `def` tool", _call(PYTHON, "add_plain", '"a":@,"b":1', "1000002")),
    "wait": Row("a tool that waits 10 ms", _sum("add_later"), connections=256),
    "raising": Row("a tool that raises", _call(PYTHON, "fail", "", '"isError":true')),
    "task": Row("a call that becomes a task", _task("finish"), "ours-hub-rows"),
    "task-10000": Row(
        "the same, 10,000 tasks running", _task("finish"), "ours-hub-rows", first=((_task("wait"), 10_000),)
    ),
    "events-10": Row("publish an event to 10 streams", _PAID, "ours-hub-rows", streams=((*_follow("ada"), 10),)),
    "events-9000": Row(
        "the same, 8,990 other streams", _PAID, "ours-hub-rows",
        streams=((*_follow("ada"), 10), (*_follow("other-#"), 8_990)),
    ),
} | {
    f"forwarded-{many}": Row("a call through a gateway", KINDS["as-python-2026-07-28"], "ours-gateway", many)
    for many in (16, 64, 256)
} | {
    f"publish-{store}{f'-{workers}' if workers > 1 else ''}": Row(
        f"publish to 10 subscribers, {store}{f', {workers} workers' if workers > 1 else ''}", _publish(),
        "ours-hub-rows", connections=64, streams=((*_listen("bench"), 10),), store=store, workers=workers,
    )
    for store in STORES for workers in (1, 2, 4)
} | {
    f"single-{store}{'' if streams else '-none'}": Row(
        f"1,000 publications a second to {streams} subscribers, {store}", replace(_publish(), pause=64),
        "ours-hub-rows", connections=64, streams=((*_listen("bench"), streams),), store=store,
    )
    for store in STORES for streams in (10, 0)
} | {
    f"foreign-{store}": Row(
        f"an event published elsewhere, {store}", _publish(), "ours-hub-rows",
        connections=64, streams=((*_listen("other"), 1),), store=store, beside=True,
    )
    for store in ("redis", "nats")
}  # fmt: skip
"""Name -> row. Each name is a case of `python -m benches`."""
KINDS |= {name: row.kind for name, row in ROWS.items()}
