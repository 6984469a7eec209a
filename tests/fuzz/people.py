"""The senders of damaged requests: a signed-in user, with a client, codes, tokens, a session, and a cookie.

`People` gets all of it from the running server, as browsers and clients do. Some of these work only once, and damaged
requests end others, so they're renewed now and then. `RECIPES` lists the parts of each valid request, and its status.
"""

import json
import re
from collections.abc import Callable
from html import unescape
from itertools import count
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from msgspec import Struct

from issuing_world import VERIFIER, challenge
from patience import WAIT
from wire import LATEST_HANDSHAKE, POST, per_request, request, routing

KEY = "key-of-root-0123456789"
CLIENT, SECRET = "desk", "a secret of the fuzzer that is long enough"
BACK = "http://127.0.0.1:5555/back"
FORM, JSON = "application/x-www-form-urlencoded", "application/json"
_addresses, _names = count(1), count(1)


class RequestParts(Struct):
    """A request in parts, each of which can be damaged separately."""

    method: str
    path: str
    query: list[tuple[str, str]] = []
    headers: dict[str, str] = {}
    form: list[tuple[str, str]] | None = None
    body: Any = None
    """As JSON, where there is no form."""


class _Stay(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Don't follow redirects."""


def _opener() -> OpenerDirector:
    return build_opener(_Stay)


class People:
    """A signed-in user and the currently valid values."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.host = urlsplit(url).netloc
        self.good: dict[str, str] = {}
        self.renew()

    def renew(self) -> None:
        """Get new valid values."""
        own = {"origin": self.url, "content-type": FORM}
        about = {"redirect_uris": [BACK], "token_endpoint_auth_method": "none",
                 "grant_types": ["authorization_code", "refresh_token"]}  # fmt: skip
        client = json.loads(self.send("POST", "/register", json.dumps(about), {"content-type": JSON})[2])["client_id"]
        page = self.send("GET", f"/authorize?{urlencode(authorization(client))}")
        cookie = page[1]["set-cookie"].partition(";")[0]
        ticket = _ticket(page[2])
        codes = [self.code(client) for _ in range(2)]
        form = {"grant_type": "authorization_code", "client_id": client, "code": codes[0], "redirect_uri": BACK,
                "code_verifier": VERIFIER}  # fmt: skip
        given = json.loads(self.send("POST", "/token", urlencode(form), {"content-type": FORM})[2])
        entry = urlencode({"key": KEY, "next": "/docs"})
        pages, out = (self.send("POST", "/sign-in", entry, own)[1]["set-cookie"].partition(";")[0] for _ in range(2))
        bearer = {"authorization": f"Bearer {given['access_token']}"}
        hello = request("initialize", {"protocolVersion": LATEST_HANDSHAKE, "capabilities": {},
                                       "clientInfo": {"name": "f", "version": "1"}}, 0)  # fmt: skip
        begun = self.send("POST", "/mcp", json.dumps(hello), {**POST, **bearer})
        self.good = {
            "client": client, "ticket": ticket, "browser": cookie, "code": codes[1], "token": given["access_token"],
            "refresh": given["refresh_token"], "pages": pages, "out": out,
            "session": begun[1]["mcp-session-id"], "name": f"ada{next(_names)}",
        }  # fmt: skip

    def code(self, client: str) -> str:
        """Sign in, consent, and return the code."""
        page = self.send("GET", f"/authorize?{urlencode(authorization(client))}")
        form = {
            "ticket": _ticket(page[2]),
            "answer": "allow",
            "name": f"ada{next(_names)}",
            "password": "correct horse",
        }
        headers = {"origin": self.url, "content-type": FORM, "cookie": page[1]["set-cookie"].partition(";")[0]}
        answered = self.send("POST", "/authorize", urlencode(form), headers)
        return parse_qs(urlsplit(answered[1]["location"]).query)["code"][0]

    def send(
        self, method: str, path: str, body: str = "", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], str]:
        """Send one valid request. Return status, headers, and body of the reply."""
        given = {**(headers or {}), "host": self.host, "x-forwarded-for": address()}
        asked = Request(self.url + path, body.encode() or None, given, method=method)  # noqa: S310  loopback
        try:
            reply: Any = _opener().open(asked, timeout=WAIT)
        except OSError as exc:
            if not hasattr(exc, "headers"):
                raise
            reply = exc  # a redirect, or a refusal
        with reply:
            return reply.status, {name.lower(): value for name, value in reply.headers.items()}, reply.read().decode()


def address() -> str:
    """Return a new client address for each request, sent through a trusted proxy, so rate limits don't end the run."""
    number = next(_addresses)
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def authorization(client: str) -> dict[str, str]:
    """Return a request to the authorization endpoint."""
    return {"response_type": "code", "client_id": client, "redirect_uri": BACK, "state": "st", "scope": "orders:write",
            "code_challenge": challenge(), "code_challenge_method": "S256"}  # fmt: skip


def _ticket(page: str) -> str:
    found = re.search(r'name="ticket" value="([^"]+)"', page)
    assert found, page
    return unescape(found[1])


Good = dict[str, str]
Recipe = Callable[[Good, str], RequestParts]
"""``recipe(what is good, the origin)``"""


def form(path: str, cookie: str = "", **members: str) -> Recipe:
    """Return a form. Its values can refer to valid ones: ``{code}``."""

    def make(good: Good, origin: str) -> RequestParts:
        headers = {"content-type": FORM, "origin": origin} | ({"cookie": good[cookie]} if cookie else {})
        return RequestParts(
            "POST", path, headers=headers, form=[(name, each.format(**good)) for name, each in members.items()]
        )

    return make


def get(path: str, *, by: str = "token", **query: str) -> Recipe:
    """Return a GET request with a token, a cookie, or no credential."""

    def make(good: Good, origin: str) -> RequestParts:
        who = {"token": {"authorization": f"Bearer {good['token']}"}, "": {}}.get(by, {"cookie": good.get(by, "")})
        found = [(name, each.format(**good)) for name, each in query.items()]
        return RequestParts("GET", path, found, {**who, "sec-fetch-site": "same-origin"})

    return make


def post(path: str, body: Any, **headers: str) -> Recipe:
    """Return a POST request with JSON and the token."""

    def make(good: Good, origin: str) -> RequestParts:
        given = {"content-type": JSON, "authorization": f"Bearer {good['token']}"}
        return RequestParts(
            "POST", path, headers=given | {name: each.format(**good) for name, each in headers.items()}, body=body
        )

    return make


def mcp(method: str, target: str = "", /, **params: Any) -> Recipe:
    """Return a request of the per-request era."""
    headers = {key: value for key, value in routing(method, target).items() if key != "host"}
    return post("/mcp", per_request(method, params), **headers)


def session(method: str, /, **params: Any) -> Recipe:
    """Return a request in a session of the handshake era."""
    headers = {key: value for key, value in POST.items() if key != "host"}
    return post("/mcp", request(method, params), **headers, **{"mcp-session-id": "{session}"})


def stream(path: str, **more: str) -> Recipe:
    """Return a request for an event stream."""

    def make(good: Good, origin: str) -> RequestParts:
        given = {"accept": "text/event-stream", "authorization": f"Bearer {good['token']}"}
        return RequestParts("GET", path, headers=given | {name: each.format(**good) for name, each in more.items()})

    return make


_ASKED = {name: "{client}" if name == "client_id" else value for name, value in authorization("").items()}
_BASIC = {"client_id": CLIENT, "client_secret": SECRET}
_UPGRADE = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
            "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
_ABOUT = {"redirect_uris": [BACK, "cursor://anysphere.cursor-mcp/oauth/callback"], "client_name": "Reader",
          "grant_types": ["authorization_code", "refresh_token"], "token_endpoint_auth_method": "none",
          "response_types": ["code"], "application_type": "native", "scope": "orders:write"}  # fmt: skip
ADD = {"name": "add", "arguments": {"a": 1, "b": 2, "note": "x"}}
RECIPES: dict[str, tuple[Recipe, int]] = {
    "authorize": (get("/authorize", by="", **_ASKED), 200),
    "authorize in a browser": (get("/authorize", by="browser", prompt="consent", **_ASKED), 200),
    "consent": (form("/authorize", "browser", ticket="{ticket}", answer="allow", name="{name}",
                     password="correct horse"), 303),
    "refusal": (form("/authorize", "browser", ticket="{ticket}", answer="deny"), 303),
    "another way": (form("/authorize", "browser", ticket="{ticket}", way="github"), 200),
    "callback": (get("/sign-in/callback/github", by="browser", state="{code}", code="x", iss="http://127.0.0.1:9"),
                 400),
    "code": (form("/token", grant_type="authorization_code", client_id="{client}", code="{code}", redirect_uri=BACK,
                  code_verifier=VERIFIER), 200),
    "refresh": (form("/token", grant_type="refresh_token", client_id="{client}", refresh_token="{refresh}",
                     scope="orders:write"), 200),
    "client": (form("/token", grant_type="client_credentials", scope="orders:write", **_BASIC), 200),
    "assertion": (form("/token", grant_type="client_credentials", client_id=CLIENT, client_assertion="{token}",
                       client_assertion_type="urn:ietf:params:oauth:client-assertion-type:jwt-bearer"), 401),
    "introspect": (form("/introspect", token="{token}", token_type_hint="access_token", **_BASIC), 200),
    "revoke": (form("/revoke", token="unknown", client_id="{client}"), 200),
    "register": (post("/register", _ABOUT), 201),
    "sign-in": (form("/sign-in", "browser", key=KEY, next="/docs"), 303),
    "sign-in by name": (form("/sign-in", "browser", name="{name}", password="correct horse", next="/chat"), 303),
    "sign-in elsewhere": (form("/sign-in", "browser", way="github", next="/docs"), 200),
    "sign-out": (form("/sign-out", "out", x="1"), 303),
    "form": (get("/sign-in", by="browser"), 200),
    "metadata": (get("/.well-known/oauth-authorization-server", by="", x="1"), 200),
    "resource metadata": (get("/.well-known/oauth-protected-resource/mcp", by=""), 200),
    "openid metadata": (get("/.well-known/openid-configuration", by=""), 200),
    "keys": (get("/.well-known/jwks.json", by=""), 200),
    "call": (mcp("tools/call", "add", **ADD), 200),
    "list": (mcp("tools/list"), 200),
    "read": (mcp("resources/read", "shop://1", uri="shop://1"), 200),
    "prompt": (mcp("prompts/get", "praise", name="praise", arguments={"word": "x"}), 200),
    "initialize": (post("/mcp", request("initialize", {"protocolVersion": LATEST_HANDSHAKE, "capabilities": {},
                        "clientInfo": {"name": "f", "version": "1"}}, 0), accept=POST["accept"]), 200),
    "call in a session": (session("tools/call", **ADD), 200),
    "session stream": (stream("/mcp", **{"mcp-session-id": "{session}"}), 200),
    "old stream": (stream("/sse"), 200),
    "messages": (post("/messages/?session_id=x", request("ping")), 404),
    "events": (stream("/events?channel=a&last_event_id=x.1"), 200),
    "socket": (stream("/ws", **_UPGRADE), 101),
    "publish": (post("/publish", {"channel": "a", "event": "b", "data": {"c": 1}, "id": "d"}), 403),
    "publish by key": (post("/publish", {"channel": "a", "event": "b", "data": {"c": 1}, "id": "d"},
                            authorization=f"Bearer {KEY}"), 200),
    "metrics by key": (post("/metrics", None, authorization=f"Bearer {KEY}"), 405),
    "tool": (post("/tools/add", {"a": 1, "b": 2, "note": "x"}), 200),
    "order": (post("/tools/order", {"isbn": "1", "copies": [{"x": 1}]}), 200),
    "seed call": (post("/mcp/tools/call", ADD), 200),
    "document": (get("/openapi.json"), 200),
    "docs": (get("/docs", by="pages"), 200), "chat": (get("/chat", by="pages"), 200),
    "dashboard": (get("/dashboard", by="pages"), 200), "audit": (get("/dashboard/audit", by="pages"), 200),
    "inspect": (get("/inspect", by="pages"), 200), "metrics": (get("/metrics", by="pages"), 401),
    "style": (get("/assets/base.css", by="", v="1"), 200),
}  # fmt: skip
"""Name -> how a good request is made, and the status that it has."""
