"""The requests of the load generators: heads and bodies by kind, with "@" for the id.

`a` is the id and `b` is 1, so each response can be checked on its own: the result is the id plus one.
"""

import hmac
import json
import random
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

COMMON = "content-type: application/json\r\naccept: application/json, text/event-stream\r\n"
SESSIONS = 16
CLIENT = {"name": "bench", "version": "1"}
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": CLIENT,
    "io.modelcontextprotocol/clientCapabilities": {},
}


REQUESTS = Path(__file__).with_name("requests")
"""Requests of real clients, as `benches.record` saw them."""


@dataclass(frozen=True)
class Kind:
    """A request of wrk, and the response that `load.lua` expects: the sum, the id as `user`, or the shop's response.
    Without an expectation, only one reply is examined.
    """

    head: str
    body: str
    expect: str = "sum"
    sessions: int = 0
    """The number of sessions whose requests take turns."""
    revision: str = "2025-11-25"
    """The revision of the sessions."""
    reply: str = ""
    """Text that a reply contains. It's searched for in a decompressed reply before the load."""
    whole: str = ""
    """The head as a client writes it, with its first line; then `head` isn't sent."""
    more: tuple[str, ...] = ()
    """Other bodies, which alternate with `body`."""
    pause: int = 0
    """Milliseconds that a connection waits before each request, on average."""

    def requests(self) -> str:
        """Return the requests as `load.lua` reads them."""
        session = "mcp-session-id: {session}\r\n" if self.sessions else ""
        usual = f"POST /mcp HTTP/1.1\r\nhost: {{host}}\r\n{self.head}{session}content-length: {{length}}\r\n\r\n"
        return "\1".join((self.whole or usual) + body for body in (self.body, *self.more))


def _body(method: str, params: Mapping[str, object]) -> str:
    text = json.dumps({"jsonrpc": "2.0", "id": "@", "method": method, "params": params}, separators=(",", ":"))
    return text.replace('"@"', "@")


CALL: dict[str, object] = {"name": "add", "arguments": {"a": "@", "b": 1}}
KINDS = {
    "call-2026": Kind(
        f"{COMMON}mcp-protocol-version: 2026-07-28\r\nmcp-method: tools/call\r\nmcp-name: add\r\n",
        _body("tools/call", CALL | {"_meta": META}),
    ),
    "call-2025": Kind(f"{COMMON}mcp-protocol-version: 2025-11-25\r\n", _body("tools/call", CALL)),
    "call-session": Kind(f"{COMMON}mcp-protocol-version: 2025-11-25\r\n", _body("tools/call", CALL), sessions=SESSIONS),
}


def recorded(client: str, method: str = "tools/call") -> Kind:
    """Return a request of a real client, byte for byte but for the id, which has seven digits, the host, and the
    session."""
    requests = (REQUESTS / f"{client}.http").read_text("utf-8").split("\n### ")[1:]
    text = next(each for each in requests if each.startswith(f"{method}\n"))
    head, _, body = text.partition("\n")[2].partition("\n\n")
    whole = head.replace("\n", "\r\n") + "\r\n\r\n"
    expect = "sum" if method == "tools/call" else ""
    sessions = SESSIONS if "{session}" in head else 0
    body = body.rstrip("\n")
    if "\r\ntransfer-encoding: chunked" in whole.lower():
        size = len(body.encode()) + 6 * body.count("@")
        body = f"{size:x}\r\n{body}\r\n0\r\n\r\n"
    return Kind("", body, expect, sessions, revision=client.partition("-")[2], whole=whole)


KINDS |= {f"as-{path.stem}": recorded(path.stem) for path in sorted(REQUESTS.glob("*.http"))}
_SYLLABLES = (
    "a an ar be ca con da de den do en er es fa for ge go ha in ka la le ment mi na ne or pre ra ro shi ta tion un wa"
)


def page(length: int = 16_384) -> str:
    """Return a text that compresses like English prose: 2.3 to 1 at the lowest level. It's the same in each run."""
    draw = random.Random(1)
    words = ["".join(draw.choices(_SYLLABLES.split(), k=draw.choice((1, 1, 2, 2, 3, 4)))) for _ in range(1_200)]
    weights = [1 / (number + 2) for number in range(len(words))]
    text = "Page one."
    while len(text) < length:
        text += f" {' '.join(draw.choices(words, weights, k=draw.randint(6, 16))).capitalize()}."
    return text[:length]


SECRET = "the benchmark has no secrets, but a key has to be long"  # noqa: S105
ISSUER, AUDIENCE = "https://issuer.example", "https://bench.example/mcp"


def _token() -> str:
    """Return a long-lived JWT. It's also used as a key, so the same request works for both."""
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "bench", "client_id": "bench", "iat": now, "exp": now + 86_400}
    parts = [json.dumps(part).encode() for part in ({"alg": "HS256", "typ": "at+jwt"}, claims)]
    signed = b".".join(urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = urlsafe_b64encode(hmac.digest(SECRET.encode(), signed, "sha256")).rstrip(b"=")
    return f"{signed.decode()}.{signature.decode()}"


BEARER = _token()
"""The header of a signed-in client. As a key, it's the same for every server."""
KINDS["call-bearer"] = Kind(f"{KINDS['call-2026'].head}authorization: Bearer {BEARER}\r\n", KINDS["call-2026"].body)
_PYTHON = KINDS["as-python-2026-07-28"]
KINDS["as-python-bearer"] = replace(
    _PYTHON, whole=_PYTHON.whole.replace("\r\n\r\n", f"\r\nauthorization: Bearer {BEARER}\r\n\r\n")
)
KINDS["list-100"] = replace(recorded("python-2026-07-28", "tools/list"), reply='"add_99"')
INITIALIZE = (
    _body("initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": CLIENT})
    .replace("@", "1")
    .encode()
)
INITIALIZED = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'


USERS = 10
"""Number of users in the shop's requests, in turn."""


def _turn(user: str) -> list[str]:
    """Return the requests of one shop user, as in TM Dev Lab's second benchmark."""
    handshake = _body("initialize", {"protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": CLIENT})
    search = {"category": "Electronics", "min_price": 50.0, "max_price": 500.0, "limit": 10}
    items = [{"product_id": 42, "quantity": 2}, {"product_id": 1337, "quantity": 1}]
    requests: list[tuple[str, Mapping[str, object]]] = [
        ("tools/call", {"name": "search_products", "arguments": search}),
        ("tools/call", {"name": "get_user_cart", "arguments": {"user_id": user}}),
        ("tools/call", {"name": "checkout", "arguments": {"user_id": user, "items": items}}),
        ("tools/list", {}),
    ]
    return [body for each in requests for body in (handshake, INITIALIZED.decode(), _body(*each))]


_TURNS = [body for number in range(1, USERS + 1) for body in _turn(f"user-{number:05d}")]
KINDS["shop"] = Kind(COMMON, _TURNS[0], expect="shop", more=tuple(_TURNS[1:]))


@dataclass(frozen=True)
class First:
    """A request that needs no preparation. A server that responds to it has started."""

    path: str
    head: str
    body: bytes


FIRST_CALL = First("/mcp", KINDS["call-2026"].head, KINDS["call-2026"].body.replace("@", "1").encode())
FIRST_BEARER = First("/mcp", KINDS["call-bearer"].head, FIRST_CALL.body)
FIRST_SESSION = First("/mcp", COMMON, INITIALIZE)
"""The first request for a server that supports only the handshake."""
GATEWAY_KEY = "sk-bench"
"""The key of LiteLLM's proxy, which doesn't start without one. Other servers ignore its header."""
_SESSION = KINDS["as-typescript-2025-11-25"]
KINDS["gateways"] = replace(
    _SESSION,
    sessions=0,
    whole=_SESSION.whole.replace("mcp-session-id: {session}", f"x-litellm-api-key: Bearer {GATEWAY_KEY}"),
)
FIRST_GATEWAY = First(
    "/mcp", f"{KINDS['call-2025'].head}x-litellm-api-key: Bearer {GATEWAY_KEY}\r\n",
    KINDS["call-2025"].body.replace("@", "1").encode(),
)  # fmt: skip
FIRST_EVENT = First("/publish", "content-type: application/json\r\n", b'{"data":"first"}')


def call_lines(first: int, count: int) -> list[bytes]:
    """Return `count` calls for stdio, one line each, with ids from `first` on."""
    before, middle, after = KINDS["call-2025"].body.split("@")
    return [f"{before}{number}{middle}{number}{after}\n".encode() for number in range(first, first + count)]
