"""Rows of what real clients send, each with the recorded head of one, measured on our server alone or beside a peer.

A row changes one thing of a recorded request: the tool, the arguments, headers that a proxy adds, or how the body is
framed. `benches.compare` measures them on two source trees.
"""

from dataclasses import dataclass, replace

from benches.wire import CLIENT, KINDS, Kind

_ASCII = "The quick brown fox jumps over the lazy dog. "
_SCRIPTS = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. 敏捷的棕色狐狸跳过懒狗。 "
LONG = 10_240
"""Length of long arguments, in bytes."""


def _call(client: str, tool: str = "add", arguments: str = '"a":@,"b":1', reply: str = "") -> Kind:
    """Return a recorded call with another tool and other arguments."""
    kind = KINDS[f"as-{client}"]
    if tool == "add":
        return kind
    whole = kind.whole.replace(": add\r\n", f": {tool}\r\n")
    body = kind.body.replace('"name":"add"', f'"name":"{tool}"').replace('"a":@,"b":1', arguments)
    return replace(kind, whole=whole, body=body, expect="", reply=reply)


def _with(kind: Kind, *headers: str, without: tuple[str, ...] = ()) -> Kind:
    """Add header lines, or take them from a request."""
    lines = kind.whole.removesuffix("\r\n\r\n").split("\r\n")
    kept = [line for line in lines if line.partition(":")[0].lower() not in without]
    return replace(kind, whole="\r\n".join([*kept, *headers]) + "\r\n\r\n")


def _without_session(kind: Kind) -> Kind:
    return replace(_with(kind, without=("mcp-session-id",)), sessions=0)


def _chunked(kind: Kind) -> Kind:
    size = len(kind.body.encode()) + 6 * kind.body.count("@")
    chunked = _with(kind, "Transfer-Encoding: chunked", without=("content-length",))
    return replace(chunked, body=f"{size:x}\r\n{kind.body}\r\n0\r\n\r\n")


def _other(kind: Kind, method: str, params: str, reply: str) -> Kind:
    """Return a request of another method in the handshake era, whose heads don't name the method."""
    number = "" if method.startswith("notifications/") else ',"id":@'
    params = f',"params":{params}' if params else ""
    return replace(kind, body=f'{{"method":"{method}"{params},"jsonrpc":"2.0"{number}}}', expect="", reply=reply)


def _fill(text: str) -> str:
    """Repeat a text up to the length of long arguments."""
    whole = (text * (LONG // len(text) + 1)).encode()[:LONG]
    return whole.decode("utf-8", "ignore")


def _count(text: str) -> Kind:
    """Return a call of the tool that counts the characters of its argument."""
    return _call("python", "count", f'"text":"{text}"', f'"text":"{len(text)}"')


_HANDSHAKE = (
    f'{{"protocolVersion":"2025-11-25","capabilities":{{}},"clientInfo":{{"name":"{CLIENT["name"]}","version":"1"}}}}'
)
_NGINX = (
    "X-Real-IP: 203.0.113.7", "X-Forwarded-For: 203.0.113.7", "X-Forwarded-Proto: https",
    "X-Forwarded-Host: mcp.example.com", "X-Request-ID: 5f4dcc3b5aa765d61d8327deb882cf99",
)  # fmt: skip
_CLOUDFLARE = (
    "CF-Ray: 9a3f0c1d2e4b5a67-FRA", "CF-Connecting-IP: 203.0.113.7", "CF-IPCountry: DE",
    'CF-Visitor: {"scheme":"https"}', "CDN-Loop: cloudflare; loops=1", "X-Forwarded-For: 203.0.113.7",
    "X-Forwarded-Proto: https",
)  # fmt: skip
_BROWSER = (
    "Origin: http://{host}", "Referer: http://{host}/", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: cors",
    "Sec-Fetch-Dest: empty", 'sec-ch-ua: "Chromium";v="148", "Not/A)Brand";v="24"', "sec-ch-ua-mobile: ?0",
    'sec-ch-ua-platform: "Linux"', "Accept-Language: en-US,en;q=0.9",
)  # fmt: skip
_PLAIN = _call("python")
_SESSION = _call("typescript")
_ADDRESS = '"order":{"isbn":"978-3-16-148410-0","copies":2,"where":{"street":"Main St 1","city":"Springfield"}}'


@dataclass(frozen=True)
class Row:
    """One line of the table: what's sent, to which of our servers, and in which words."""

    title: str
    kind: Kind
    target: str = "ours-traffic"
    connections: int = 16


ROWS = {
    "plain-2026": Row("tools/call, 2026-07-28, Python SDK", _PLAIN),
    "plain-go": Row("tools/call, 2026-07-28, Go SDK", _call("go")),
    "plain-session": Row("tools/call, 2025-11-25 in 16 sessions, TypeScript SDK", _SESSION),
    "plain-rust": Row("tools/call, 2025-11-25 in 16 sessions, Rust SDK", _call("rust")),
    "plain-sessionless": Row(
        "tools/call, 2025-11-25 without sessions, TypeScript SDK",
        _without_session(_SESSION),
        "ours-traffic-sessionless",
    ),
    "text-16k": Row("16 KB of text, Python SDK on loopback", _call("python", "page", "", "Page one.")),
    "text-16k-typescript": Row(
        "16 KB of text, TypeScript SDK on loopback", _call("typescript", "page", "", "Page one.")
    ),
    "text-16k-go": Row("16 KB of text, Go SDK on loopback", _call("go", "page", "", "Page one.")),
    "text-16k-nginx": Row("16 KB of text, through nginx", _with(_call("python", "page", "", "Page one."), *_NGINX)),
    "text-16k-plain": Row(
        "16 KB of text without Accept-Encoding",
        _with(_call("python", "page", "", "Page one."), without=("accept-encoding",)),
    ),
    "umlauts": Row("arguments with umlauts and Chinese", _count("Grüße aus Köln, 你好世界")),
    "long-ascii": Row("10 KB of arguments, ASCII", _count(_fill(_ASCII))),
    "long-any": Row("10 KB of arguments, any script", _count(_fill(_SCRIPTS))),
    "sessions-1000": Row("1,000 sessions in turn", replace(_SESSION, sessions=1_000)),
    "sessions-10000": Row("10,000 sessions in turn", replace(_SESSION, sessions=10_000)),
    "time-limit": Row("MILLSTREAM_TOOL_TIMEOUT=30", _PLAIN, "ours-timed"),
    "nginx": Row("headers of nginx", _with(_PLAIN, *_NGINX)),
    "cloudflare": Row("headers of Cloudflare", _with(_PLAIN, *_CLOUDFLARE)),
    "browser": Row("headers of a browser", _with(_SESSION, *_BROWSER, without=("sec-fetch-mode", "accept-language"))),
    "chunked": Row("a chunked body", _chunked(_PLAIN)),
    "reconnect": Row("a connection per call", _with(_PLAIN, "Connection: close", without=("connection",))),
    "initialize": Row(
        "initialize", _other(_without_session(_with(_SESSION, without=("mcp-protocol-version",))),
                             "initialize", _HANDSHAKE, '"serverInfo"'),
    ),
    "initialized": Row("notifications/initialized", _other(_SESSION, "notifications/initialized", "", "")),
    "ping": Row("ping", _other(_SESSION, "ping", "", '"result":{}')),
    "list-20": Row("tools/list of 20 tools, 2025-11-25", _other(_SESSION, "tools/list", "", '"add_9"'), "ours-20"),
    "pydantic": Row("a pydantic model as the argument", _call("python", "order", _ADDRESS, "Springfield")),
    "def": Row("a `def` tool", _call("python", "add_plain", '"a":@,"b":1', "1000001")),
    "raising": Row("a tool that raises", _call("python", "fail", "", '"isError":true')),
}  # fmt: skip
"""Name -> row. Each name is a case of `python -m benches`."""
KINDS |= {name: row.kind for name, row in ROWS.items()}
