"""Texts from outside don't become lines of the requests that Millstream sends: CR LF injection and request smuggling.

Each row is a place that a caller, an upstream, an API's document, an issuer, or a page fills. The peers record bytes.
Each hostile text is either encoded or refused with an error that a person can read. The next caller isn't affected.

Earlier checks refuse the texts of upstreams, issuers, credentials, WebSocket handshakes, and media types, so that those
rows pass without the encoder's.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from client.misbehaving_servers import GREETING, OFFER, Behave, ReceivedRequest
from http_peer import serve
from millstream import Client, Server, Settings, ToolError
from millstream.client import AccessDenied, MemoryTokenStore, OAuth, Options
from millstream.extensions.http_post import PostFailed, allow_any, parse_url, post
from millstream.gateway import bearer, static_headers
from patience import WAIT
from raw_peer import (
    TEXTS,
    RawPeer,
    attack,
    attempt,
    record_handshakes,
    run_raw_peer,
)
from wire import ask_asgi

ECHO = {
    "name": "echo",
    "inputSchema": {"type": "object", "properties": {"word": {"type": "string", "x-mcp-header": "Word"}}},
}
ERAS = ("2025-11-25", "2026-07-28")
CALLERS: dict[str, Callable[[Client, str], Awaitable[Any]]] = {
    "tool name": lambda client, text: client.call(text),
    "tool name with a prefix": lambda client, text: client.call(f"up_{text}"),
    "prompt name": lambda client, text: client.prompt(text),
    "resource URI": lambda client, text: client.read(f"a://b/{text}"),
    "whole URI": lambda client, text: client.read(text),
    "method": lambda client, text: client.request(text),
    "method of tools": lambda client, text: client.request(f"tools/{text}"),
    "notification": lambda client, text: client.notify(f"notifications/{text}"),
    "any notification": lambda client, text: client.notify(text),
    "argument in a header": lambda client, text: client.call("echo", word=text),
    "name of an argument": lambda client, text: client.call("echo", {text: "x"}),
    "progress token": lambda client, text: client.request(
        "tools/call", {"name": "echo", "arguments": {"word": "x"}, "_meta": {"progressToken": text}}
    ),
    "metadata": lambda client, text: client.request("tools/list", {"_meta": {text: text, "traceparent": text}}),
    "version in the metadata": lambda client, text: client.request(
        "tools/list", {"_meta": {"io.modelcontextprotocol/protocolVersion": text}}
    ),
    "cursor": lambda client, text: client.request("tools/list", {"cursor": text}),
    "completion": lambda client, text: client.request(
        "completion/complete", {"ref": {"type": "ref/prompt", "name": text}, "argument": {"name": text, "value": text}}
    ),
    "subscription": lambda client, text: client.request("resources/subscribe", {"uri": f"a://{text}"}),
    "task id": lambda client, text: client.request("tasks/get", {"taskId": text}),
    "log level": lambda client, text: client.request("logging/setLevel", {"level": text}),
}
"""Place -> a request of a caller that fills it."""


@pytest.fixture(autouse=True)
def _no_faults(caplog: pytest.LogCaptureFixture) -> Any:  # pyright: ignore[reportUnusedFunction]
    """Assert that no unexpected error was logged."""
    yield
    assert [each.getMessage() for each in caplog.records if each.exc_info or each.levelno >= logging.ERROR] == []


async def echo(asked: ReceivedRequest) -> None:
    """Serve one tool, in both eras."""
    if asked.verb != "POST":
        await asked.reply(b"", status="405 Method Not Allowed")
        return
    message = asked.message
    method, params = message.get("method"), message.get("params") or {}
    if "id" not in message:
        await asked.reply(b"", status="202 Accepted")
    elif method == "initialize":
        await asked.result(GREETING, more="Mcp-Session-Id: s1\r\n")
    elif method == "tools/list":
        await asked.result({"tools": [ECHO], "resultType": "complete", "ttlMs": 0, "cacheScope": "private"})
    elif method == "tools/call":
        text = str(params.get("arguments", {}).get("word", "nothing"))
        await asked.result({"resultType": "complete", "content": [{"type": "text", "text": text}]})
    else:
        await asked.reply(refused(message["id"]))


def refused(id: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "Method not found"}}).encode()


def of_era(era: str, behave: Behave = echo) -> Behave:
    """Serve one era."""

    async def both(asked: ReceivedRequest) -> None:
        method = asked.message.get("method") if asked.verb == "POST" else ""
        if method == "server/discover" and era == ERAS[1]:
            await asked.result(OFFER)
        elif method == "initialize" and era == ERAS[1]:
            await asked.reply(refused(asked.message["id"]))
        else:
            await behave(asked)

    return both


def with_event_stream(behave: Behave = echo) -> Behave:
    """Serve HTTP+SSE: responses arrive on the stream."""
    streams: dict[str, ReceivedRequest] = {}

    async def both(asked: ReceivedRequest) -> None:
        if asked.verb == "GET":
            streams[str(len(streams))] = asked
            await asked.stream()
            await asked.chunk(b"event: endpoint\ndata: /messages?stream=%d\n\n" % (len(streams) - 1))
        elif asked.path.startswith("/messages"):
            await asked.reply(b"", status="202 Accepted")
            if "id" in asked.message and asked.method != "server/discover":
                kept = _Kept(asked.verb, asked.path, asked.headers, asked.body, asked.writer)
                await behave(kept)
                await streams[asked.path.partition("=")[2]].event(kept.sent)
        else:
            await asked.reply(b"", status="405 Method Not Allowed")

    return both


class _Kept(ReceivedRequest):
    """Keeps the body of its reply."""

    sent = b""

    async def reply(self, body: bytes, **more: Any) -> None:
        self.sent = body


PEERS: dict[str, Callable[[], Behave]] = {
    ERAS[0]: lambda: of_era(ERAS[0]),
    ERAS[1]: lambda: of_era(ERAS[1]),
    "http+sse": with_event_stream,
}
"""Kind of an upstream -> its behavior."""


async def check_next(client: Client, tool: str = "echo") -> None:
    """Assert that a call without hostile text gets its own response."""
    word = token_hex(4)
    async with asyncio.timeout(WAIT):
        assert (await client.call(tool, word=word)).text == word


def filled(client: Client) -> Mapping[str, Callable[[str], Awaitable[Any]]]:
    """Return the requests of one caller."""
    return {place: partial(act, client) for place, act in CALLERS.items()}


@pytest.mark.parametrize("kind", PEERS)
async def test_texts_of_a_program_add_nothing_to_its_requests(kind: str) -> None:
    async with run_raw_peer(PEERS[kind]()) as peer:
        async with Client(peer.url, timeout=WAIT) as client, Client(peer.url, timeout=WAIT) as other:
            await client.tools()
            await attack(filled(client), peer, partial(check_next, other))
        peer.check()


@pytest.mark.parametrize(
    ("kind", "prefix", "era"),
    [(kind, "", era) for kind in PEERS for era in ERAS] + [(kind, "up", ERAS[1]) for kind in PEERS],
)
async def test_texts_of_callers_add_nothing_to_relayed_requests(kind: str, prefix: str, era: str) -> None:
    """Without a prefix, requests are relayed as they are. With one, the upstream is one of two in a catalog."""
    async with run_raw_peer(PEERS[kind]()) as peer, run_raw_peer(of_era(ERAS[1])) as second:
        gateway = Server("gateway")
        gateway.upstream("up", peer.url, prefix=prefix, isolation="shared")
        if prefix:
            gateway.upstream("second", second.url)
        tool = f"{prefix}_echo" if prefix else "echo"
        async with Client(gateway, revision=era) as client, Client(gateway, revision=era) as other:
            await attack(filled(client), peer, partial(check_next, other, tool))
        await gateway.stop()
        peer.check()
        second.check()


class WrittenAuth:
    """A user's own source of credentials."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers

    async def headers(self, url: Any, method: str, target: str) -> Mapping[str, str]:
        """Return the hostile headers."""
        return self._headers

    def learn_nonce(self, url: Any, nonce: str, challenge: str) -> bool:
        """Ignore nonces."""
        return False

    async def handle_challenge(self, url: Any, status: int, challenge: str) -> bool:
        """Have nothing better."""
        return False


async def call_once(url: str, **options: Any) -> str:
    """Connect, call a tool, and return its result."""
    async with Client(url, timeout=WAIT, **options) as client:
        return (await client.call("echo", word="x")).text


def configured(url: str) -> dict[str, Callable[[str], Awaitable[Any]]]:
    """Return connections whose configuration contains a text."""
    return {
        "value of a header": lambda text: call_once(url, headers={"x-api-key": text}),
        "name of a header": lambda text: call_once(url, headers={text: "v"}),
        "value of Auth": lambda text: call_once(url, options=Options(auth=WrittenAuth({"x-api-key": text}))),
        "name of Auth": lambda text: call_once(url, options=Options(auth=WrittenAuth({text: "v"}))),
        "framing of Auth": lambda text: call_once(url, options=Options(auth=WrittenAuth({"Content-Length": text}))),
        "path": lambda text: call_once(f"{url}/{text}"),
        "query": lambda text: call_once(f"{url}?q={text}"),
        "host": lambda text: call_once(url.replace("127.0.0.1", f"127.0.0.1{text}")),
    }


@pytest.mark.parametrize("kind", PEERS)
async def test_texts_of_a_configuration_add_nothing_to_requests(kind: str) -> None:
    async with run_raw_peer(PEERS[kind]()) as peer:
        await attack(configured(peer.url), peer)
        assert await call_once(peer.url) == "x"


async def test_texts_of_a_configuration_add_nothing_to_websocket_handshakes() -> None:
    mcp = Server("shop", serve="hub")

    @mcp.tool
    async def echo(word: str) -> str:  # pyright: ignore[reportUnusedFunction]
        return word

    names = {f"sec-websocket-{each}".encode() for each in ("key", "version", "protocol", "extensions")} | {b"upgrade"}
    async with serve(mcp) as running, record_handshakes(running.port) as peer:
        await attack(configured(peer.url), peer, names=names)
        assert await call_once(peer.url) == "x"
        async with Client(peer.url, timeout=WAIT) as client, Client(peer.url, timeout=WAIT) as other:
            await attack(filled(client), peer, partial(check_next, other), names)
    await mcp.stop()


def wire_bytes(text: str) -> bytes:
    """Return a text as a peer sends it."""
    return text.encode("utf-8", "surrogatepass")


def with_header(name: str, *, status: str = "200 OK", first: bool = False) -> Callable[[str], Behave]:
    """Return upstreams that send a hostile header with the first response of a session."""

    def make(text: str) -> Behave:
        done: list[bool] = []

        async def both(asked: ReceivedRequest) -> None:
            method = asked.message.get("method") if asked.verb == "POST" else ""
            if done or method not in ("initialize", "tools/call"):
                await of_era(ERAS[0])(asked)
                return
            done.append(True)
            body = asked.answer(GREETING) if method == "initialize" else b"{}"
            head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            session = "" if name == "Mcp-Session-Id" else "Mcp-Session-Id: s1\r\n"
            await asked.write(f"{head}{session}{name}: ".encode() + wire_bytes(text) + b"\r\n\r\n" + body)

        return both

    return make


def announcing(text: str) -> Behave:
    """Announce a hostile address for messages."""

    async def both(asked: ReceivedRequest) -> None:
        if asked.verb == "GET":
            await asked.stream()
            await asked.chunk(b"event: endpoint\ndata: /messages?" + wire_bytes(text) + b"\n\n")
        else:
            await asked.reply(b"", status="405 Method Not Allowed")

    return both


def resuming(text: str) -> Behave:
    """Break the stream of a call after an event with a hostile id."""
    calls: list[ReceivedRequest] = []

    async def both(asked: ReceivedRequest) -> None:
        if asked.verb == "GET" and "last-event-id" in asked.headers:
            await asked.stream()
            await asked.event(calls[-1].answer({"content": []}))
            await asked.end()
        elif asked.verb == "POST" and asked.method == "tools/call":
            calls.append(asked)
            await asked.stream()
            await asked.chunk(b"retry: 1\nid: " + wire_bytes(text) + b"\ndata: {}\n\n")
            await asked.end()
        else:
            await of_era(ERAS[0])(asked)

    return both


def changed(method: str, change: Callable[[str], dict[str, Any]], era: str = ERAS[1]) -> Callable[[str], Behave]:
    """Return upstreams whose result for one method contains the text."""

    def make(text: str) -> Behave:
        async def both(asked: ReceivedRequest) -> None:
            if asked.verb == "POST" and asked.message.get("method") == method:
                await asked.result(change(text))
            else:
                await of_era(era)(asked)

        return both

    return make


def annotated(text: str) -> dict[str, Any]:
    tools = [{"name": "echo", "inputSchema": {"type": "object", "properties": {"word": {"x-mcp-header": text}}}}]
    tools.append({"name": text, "inputSchema": ECHO["inputSchema"]})
    return {"tools": tools, "resultType": "complete", "ttlMs": 0, "cacheScope": "private", "nextCursor": ""}


UPSTREAMS: dict[str, Callable[[str], Behave]] = {
    "session id": with_header("Mcp-Session-Id"),
    "cookie": with_header("Set-Cookie"),
    "value of a cookie": lambda text: with_header("Set-Cookie")(f"a={text}"),
    "redirect": lambda text: with_header("Location", status="307 Temporary Redirect")(f"/{text}"),
    "redirect elsewhere": lambda text: with_header("Location", status="307 Temporary Redirect")(f"http://{text}/"),
    "challenge": with_header("WWW-Authenticate", status="401 Unauthorized"),
    "scope": lambda text: with_header("WWW-Authenticate", status="403 Forbidden")(
        f'Bearer error="insufficient_scope", scope="{text}", realm="{text}"'
    ),
    "metadata of the challenge": lambda text: with_header("WWW-Authenticate", status="401 Unauthorized")(
        f'Bearer resource_metadata="/{text}"'
    ),
    "nonce": lambda text: with_header("WWW-Authenticate", status="401 Unauthorized")(
        f'DPoP error="use_dpop_nonce"\r\nDPoP-Nonce: {text}'
    ),
    "link": with_header("Link"),
    "retry": with_header("Retry-After", status="503 Service Unavailable"),
    "endpoint event": announcing,
    "event id": resuming,
    "version": changed("initialize", lambda text: {**GREETING, "protocolVersion": text}, ERAS[0]),
    "offered version": changed("server/discover", lambda text: {**OFFER, "supportedVersions": [text, "2026-07-28"]}),
    "only version": changed("server/discover", lambda text: {**OFFER, "supportedVersions": [text]}),
    "annotation": changed("tools/list", annotated),
}
"""Place -> an upstream that fills it."""


async def test_texts_of_an_upstream_add_nothing_to_requests() -> None:
    current: list[Behave] = [of_era(ERAS[0])]

    async def behave(asked: ReceivedRequest) -> None:
        await current[0](asked)

    async with run_raw_peer(behave) as peer:

        async def visit(make: Callable[[str], Behave], text: str) -> None:
            current[0] = make(text)
            options = Options(auth=OAuth(store=MemoryTokenStore(), redirect_handler=stay))
            async with Client(peer.url, timeout=2, options=options) as client:
                tools = await client.tools()
                await client.call("echo", word="x")
                for tool in tools:
                    await client.call(tool.name, word=text)

        async def stay(url: str) -> str:
            raise AccessDenied("The person doesn't sign in.", 401, "")

        async def check() -> None:
            current[0] = of_era(ERAS[0])
            assert await call_once(peer.url) == "x"

        await attack({place: partial(visit, make) for place, make in UPSTREAMS.items()}, peer, check)


ISSUER = ("issuer", "authorization_endpoint", "token_endpoint", "registration_endpoint")
GRANT = ("access_token", "token_type", "scope", "refresh_token")
CLIENT = ("client_id", "client_secret", "token_endpoint_auth_method")
PLACES_OF_ISSUERS = [
    *(("metadata", name) for name in (*ISSUER, "scopes_supported", "token_endpoint_auth_methods_supported")),
    *(("client", name) for name in CLIENT),
    *(("grant", name) for name in GRANT),
    *(("resource", name) for name in ("resource", "authorization_servers", "scopes_supported")),
]


def issuing(kind: str, name: str, text: str) -> Behave:
    """Serve a resource that's also its own issuer, of which one answer contains the text."""

    def change(which: str, answer: dict[str, Any]) -> bytes:
        if which == kind:
            usual = answer.get(name, "")
            value = f"{usual}/{text}" if str(usual).startswith("http") else text
            answer = {**answer, name: [value] if name.endswith(("supported", "servers")) else value}
        return json.dumps(answer).encode()

    async def behave(asked: ReceivedRequest) -> None:
        origin = f"http://{asked.headers['host']}"
        path = asked.path.partition("?")[0]
        if path.startswith("/.well-known/oauth-protected-resource"):
            about = {"resource": f"{origin}/mcp", "authorization_servers": [origin]}
            await asked.reply(change("resource", about))
        elif path.startswith("/.well-known/"):
            places = {each: f"{origin}/{each}" for each in ISSUER[1:]}
            about = {"issuer": origin, **places, "code_challenge_methods_supported": ["S256"],
                     "token_endpoint_auth_methods_supported": ["client_secret_basic"]}  # fmt: skip
            await asked.reply(change("metadata", about))
        elif path.startswith("/registration_endpoint"):
            client = {"client_id": "me", "client_secret": "s", "token_endpoint_auth_method": "client_secret_basic"}
            await asked.reply(change("client", client), status="201 Created")
        elif path.startswith("/token_endpoint"):
            await asked.reply(change("grant", {"access_token": "t", "refresh_token": "r", "token_type": "Bearer"}))
        elif asked.headers.get("authorization") != "Bearer t":
            await asked.reply(b"", status="401 Unauthorized", more="WWW-Authenticate: Bearer\r\n")
        else:
            await of_era(ERAS[1])(asked)

    return behave


async def test_texts_of_an_issuer_add_nothing_to_requests() -> None:
    current: list[Behave] = [echo]

    async def behave(asked: ReceivedRequest) -> None:
        await current[0](asked)

    async def visit(url: str) -> str:
        query = parse_qs(urlsplit(url).query)
        return f"{query['redirect_uri'][0]}?code=c&state={query['state'][0]}"

    async with run_raw_peer(behave) as peer:

        async def sign_in(kind: str, name: str, text: str) -> None:
            current[0] = issuing(kind, name, text)
            auth = OAuth(store=MemoryTokenStore(), redirect_handler=visit)
            await call_once(peer.url, options=Options(auth=auth))

        async def check() -> None:
            await sign_in("", "", "")

        places = {f"{kind} {name}": partial(sign_in, kind, name) for kind, name in PLACES_OF_ISSUERS}
        await attack(places, peer, check)


TEXT = {"type": "string"}
FILE = {"type": "string", "format": "binary"}
OPEN = {"type": "object", "additionalProperties": TEXT}
OK = {"200": {"description": "ok", "content": {"application/json": {"schema": {"type": "object"}}}}}


def operation(*parameters: Any, media: str = "", schema: Any = None, **more: Any) -> dict[str, Any]:
    """Return the description of an operation."""
    described = {"parameters": [*parameters], "responses": OK, **more}
    if media:
        described["requestBody"] = {"required": True, "content": {media: {"schema": schema or TEXT}}}
    return described


def parameter(place: str, name: str = "a", schema: Any = TEXT, **more: Any) -> dict[str, Any]:
    """Return the description of a parameter."""
    return {"name": name, "in": place, "required": place == "path", "schema": schema, **more}


def styles() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return an operation with an argument in each place, style, and kind of body, by the name of its tool."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    allowed = {
        "path": ("simple", "label", "matrix"), "query": ("form", "spaceDelimited", "pipeDelimited", "deepObject"),
        "header": ("simple",), "cookie": ("form",),
    }  # fmt: skip
    for place, names in allowed.items():
        for style in names:
            for explode in (False, True):
                described = parameter(
                    place, schema={"type": ["string", "array", "object"]}, style=style, explode=explode
                )
                path = f"/{place}/{style}/{explode}" + ("/{a}" if place == "path" else "")
                found[f"{place}_{style}_{explode}"] = path, operation(described)
    found["query_reserved"] = "/reserved", operation(parameter("query", allowReserved=True))
    content = {"application/json": {"schema": TEXT}}
    found["header_content"] = "/content", operation({"name": "a", "in": "header", "content": content})
    form = {"type": "object", "properties": {"a": TEXT, "file": FILE}, "additionalProperties": TEXT}
    files = {"type": "object", "properties": {"a": {"type": "array", "items": FILE}}}
    for media, schema in {
        "application/json": form, "application/x-www-form-urlencoded": form, "text/plain": TEXT, "text/*": TEXT,
        "image/*": FILE, "application/octet-stream": FILE, "multipart/form-data": form, "multipart/mixed": files,
    }.items():  # fmt: skip
        name = "body_" + media.replace("/", "_").replace("*", "any").replace("-", "_")
        found[name] = f"/{name}", operation(media=media, schema=schema)
    return found


def values(name: str, text: str) -> list[dict[str, Any]]:
    """Return arguments that contain the text, as values, names, files, and names and types of files."""
    if not name.startswith("body"):
        return [{"a": text}, {"a": [text, text]}, {"a": {text: text}}]
    texts = {"a": text, "body": text, text: text}
    if "multipart" not in name and not name.startswith("body_image"):
        return [texts, {"body": text}]
    files = [f"data:{text},x", f"data:a/{text};base64,eA==", "eA=="]
    names = [f"{text}.png", f"data:{text},x", f"data:a/{text},x"]
    return [{"body": file, "file": file, "a": file} for file in files] + [
        {**texts, "file": "eA==", "file__filename": each, "a": ["eA=="], "a__filename": [each]} for each in names
    ]  # fmt: skip


def document(port: int, operations: Mapping[str, tuple[str, dict[str, Any]]], **more: Any) -> bytes:
    """Return a document whose operations have these names and paths, and `plain`, which repeats its argument."""
    paths: dict[str, Any] = {}
    for name, (path, described) in operations.items():
        method = described.get("x-method") or ("post" if "requestBody" in described else "get")
        paths.setdefault(path, {})[method] = {"operationId": name, **described}
    paths["/plain"] = {"get": operation(parameter("query", "word"), operationId="plain")}
    about = {
        "openapi": "3.1.0",
        "info": {"title": "x", "version": "1"},
        "servers": [{"url": f"http://127.0.0.1:{port}/v1"}],
    }
    return json.dumps({**about, "paths": paths, **more}).encode()


class Api:
    """An API whose document is set by the test."""

    def __init__(self) -> None:
        self.document = b""

    async def __call__(self, asked: ReceivedRequest) -> None:
        """Return the document, or the word of the query."""
        if asked.path == "/openapi.json":
            await asked.reply(self.document)
        else:
            word = parse_qs(urlsplit(asked.path).query).get("word", [""])
            await asked.reply(json.dumps({"word": word[0]}).encode())


@asynccontextmanager
async def run_api(make: Callable[[int], bytes], own_client: bool = False) -> AsyncIterator[tuple[RawPeer, Server]]:
    """Run an API and a gateway for it, with the operator's key, or a server with its own client."""
    api = Api()
    async with run_raw_peer(api) as peer, AsyncExitStack() as stack:
        api.document = make(peer.port)
        if own_client:
            client = httpx2.AsyncClient(base_url=f"http://127.0.0.1:{peer.port}/v1", headers={"x-api-key": "SECRET"})
            await stack.enter_async_context(client)
            yield peer, Server.from_openapi(json.loads(api.document), client)
            return
        gateway = Server("gateway")
        key = static_headers({"X-Api-Key": "SECRET"})
        gateway.upstream("api", openapi=f"http://127.0.0.1:{peer.port}/openapi.json", prefix="", auth=key)
        yield peer, gateway
        await gateway.stop()


async def check_plain(client: Client) -> None:
    """Assert that a call without hostile text gets its own response."""
    word = token_hex(4)
    async with asyncio.timeout(WAIT):
        assert json.loads((await client.call("plain", word=word)).text) == {"word": word}


@pytest.mark.parametrize("own_client", [False, True], ids=["upstream", "own client"])
async def test_arguments_add_nothing_to_requests_to_an_api(own_client: bool) -> None:
    async with run_api(lambda port: document(port, styles()), own_client) as (peer, mcp):
        async with Client(mcp, timeout=WAIT) as client, Client(mcp, timeout=WAIT) as other:
            names = {tool.name for tool in await client.tools()}
            assert names == {*styles(), "plain"}

            async def call(name: str, text: str) -> None:
                for each in values(name, text):
                    await attempt(client.call(name, each, raise_on_error=False))

            await attack({name: partial(call, name) for name in styles()}, peer, partial(check_plain, other), {b"a"})
        peer.check({b"a"})


DOCUMENTS: dict[str, Callable[[str], tuple[str, dict[str, Any]]]] = {
    "path": lambda text: (f"/{text}", operation()),
    "path with a variable": lambda text: (f"/{text}/{{a}}", operation(parameter("path"))),
    "method": lambda text: ("/m", operation(**{"x-method": text})),
    "server": lambda text: (f"/s/{len(text)}", operation(servers=[{"url": f"/v1/{text}"}])),
    "host": lambda text: (f"/h/{len(text)}", operation(servers=[{"url": f"http://127.0.0.1{text}/v1"}])),
    "header": lambda text: ("/p", operation(parameter("header", text))),
    "cookie": lambda text: ("/p", operation(parameter("cookie", text))),
    "query": lambda text: ("/p", operation(parameter("query", text))),
    "variable": lambda text: (f"/p/{{{text}}}", operation(parameter("path", text))),
    "matrix": lambda text: (f"/p/{{{text}}}", operation(parameter("path", text, style="matrix"))),
    "media type": lambda text: ("/b", operation(media=f"text/plain{text}")),
    "subtype": lambda text: ("/b", operation(media=f"text/{text}")),
    "type of JSON": lambda text: ("/b", operation(media=f"application/json; a={text}", schema=OPEN)),
    "type of a form": lambda text: ("/b", operation(media=f"application/x-www-form-urlencoded;{text}", schema=OPEN)),
    "boundary": lambda text: ("/b", operation(media=f"multipart/form-data; boundary={text}", schema=OPEN)),
    "kind of multipart": lambda text: ("/b", operation(media=f"multipart/{text}", schema=OPEN)),
    "parameter's type": lambda text: (
        "/p",
        operation({"name": "a", "in": "header", "content": {f"text/{text}": {"schema": TEXT}}}),
    ),
    "part": lambda text: (
        "/b",
        operation(media="multipart/form-data", schema={"type": "object", "properties": {text: TEXT, f"f{text}": FILE}}),
    ),
    "part's type": lambda text: (
        "/b",
        {
            **operation(),
            "requestBody": {
                "content": {
                    "multipart/form-data": {
                        "schema": {"type": "object", "properties": {"a": TEXT, "file": FILE, "o": OPEN}},
                        "encoding": {each: {"contentType": f"text/{text}"} for each in ("a", "file", "o")},
                    }
                }
            },
        },
    ),
    "part's header": lambda text: (
        "/b",
        {
            **operation(),
            "requestBody": {
                "content": {
                    "multipart/form-data": {
                        "schema": {"type": "object", "properties": {"a": TEXT}},
                        "encoding": {"a": {"headers": {text: {"schema": {"type": "string", "default": text}}}}},
                    }
                }
            },
        },
    ),
    "type of content": lambda text: (
        "/b",
        operation(
            media="multipart/form-data",
            schema={
                "type": "object",
                "properties": {
                    "a": {"type": "string", "contentMediaType": f"text/{text}"},
                    "file": {"type": "string", "contentEncoding": "base64", "contentMediaType": f"image/{text}"},
                },
            },
        ),
    ),
    "operation": lambda text: ("/o", operation(operationId=text)),
    "security": lambda text: ("/o", operation(security=[{text: [text]}])),
    "response": lambda text: ("/o", operation(responses={"200": {"description": text, "content": {text: {}}}})),
}
"""Place in a document -> the path and the operation that contain a text."""
DOCUMENT_TEXTS = [text for text in TEXTS.values() if text.encode("utf-8", "ignore").decode() == text]
"""JSON documents with lone surrogates aren't accepted."""
SCHEMES = {f"k{number}": {"type": "apiKey", "in": "header", "name": text} for number, text in enumerate(DOCUMENT_TEXTS)}


@pytest.mark.parametrize("own_client", [False, True], ids=["upstream", "own client"])
async def test_documents_add_nothing_to_requests_to_an_api(own_client: bool) -> None:
    """Operations that can't be called may be left out."""

    async def call(place: str) -> None:
        operations = {}
        for number, text in enumerate(DOCUMENT_TEXTS):
            path, described = DOCUMENTS[place](text)
            operations[f"op{number}"] = f"/{number}{path}", described
        made = partial(document, operations=operations, components={"securitySchemes": SCHEMES})
        async with run_api(made, own_client) as (peer, mcp), Client(mcp, timeout=WAIT) as client:
            await check_plain(client)
            for tool in await client.tools():
                members = dict(tool.input_schema.get("properties", {}))
                for value in ("eA==", {"k": "x"}):  # also a file
                    given = dict.fromkeys(members, value)
                    await attempt(client.call(tool.name, given, raise_on_error=False))
            peer.check({b"a"})
            await check_plain(client)

    faults: list[str] = []
    for place in DOCUMENTS:
        try:
            await call(place)
        except Exception as exc:
            faults.append(f"{place}: {type(exc).__name__} {str(exc)!a}"[:400])
    assert not faults, "\n".join(faults)


async def test_texts_of_credentials_add_nothing_to_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens come from variables and files, and headers from callers."""
    file = tmp_path / "token"
    async with run_raw_peer(of_era(ERAS[1])) as peer:

        async def through(auth: Any = None, headers: Mapping[str, str] = {}, **options: Any) -> None:
            gateway = Server("gateway")
            try:
                gateway.upstream("up", peer.url, prefix="", auth=auth, **options)
                async with serve(gateway) as running:
                    await call_once(f"http://127.0.0.1:{running.port}/mcp", headers=headers)
            except Exception as exc:
                if type(exc).__name__ != "LocalError":  # the configuration is refused
                    raise
                raise ToolError(str(exc)) from None
            finally:
                await gateway.stop()

        async def from_variable(text: str) -> None:
            if "\0" in text or "\ud80a" in text:
                return  # variables can't have them
            monkeypatch.setenv("TOKEN", text)
            await through(bearer(env="TOKEN"))

        async def from_file(text: str) -> None:
            file.write_bytes(wire_bytes(text))
            await through(bearer(file=str(file)))

        async def rotated(text: str) -> None:
            file.write_text("good")
            gateway = Server("gateway")
            gateway.upstream("up", peer.url, prefix="", auth=bearer(file=str(file)))
            async with Client(gateway, timeout=WAIT) as client:
                await client.call("echo", word="x")
                file.write_bytes(wire_bytes(text))
                await client.call("echo", word="x")
            await gateway.stop()

        async def forwarded(text: str) -> None:
            await through(headers={"x-tenant": text}, forward_headers=("x-tenant",))

        await attack(
            {
                "variable": from_variable,
                "file": from_file,
                "rotated file": rotated,
                "header": lambda text: through(static_headers({"x-api-key": text})),
                "name of a header": lambda text: through(static_headers({text: "v"})),
                "query": lambda text: through(static_headers(query={"key": text})),
                "forwarded header": forwarded,
                "name of a forwarded header": lambda text: through(forward_headers=(text,)),
            },
            peer,
            partial(call_once, peer.url),
            {b"x-tenant"},
        )


async def test_texts_of_pages_add_nothing_to_requests() -> None:
    """An ASGI server may pass any bytes on. `millstream dev` forwards MCP's headers, and a key."""
    names = (b"mcp-inspect-authorization", b"mcp-session-id", b"mcp-x", b"accept", b"content-type", b"last-event-id")
    async with run_raw_peer(of_era(ERAS[0])) as peer:
        mcp = Server("ours", serve="web", settings=Settings(inspect_urls=(peer.url,)))

        async def post(text: str, *, name: bytes, method: str = "POST") -> None:
            headers = [(b"host", b"127.0.0.1"), (name, wire_bytes(text))]
            reply = await ask_asgi(mcp, method, "/inspect/via/1", headers, b"{}")
            assert reply.status in (200, 202, 400, 405, 502), reply
            assert b"nternal" not in reply.body

        async def name(text: str) -> None:
            headers = [(b"host", b"127.0.0.1"), (b"mcp-" + wire_bytes(text), b"v")]
            assert (await ask_asgi(mcp, "POST", "/inspect/via/1", headers, b"{}")).status in (200, 202, 400, 502)

        async with mcp.running():
            places = {each.decode(): partial(post, name=each) for each in names}
            await attack({**places, "name": name}, peer, partial(call_once, peer.url), {b"mcp-x"})
        await mcp.stop()


async def test_texts_of_subscribers_add_nothing_to_webhook_requests() -> None:
    """`post` sends webhooks to URLs that callers choose, with ids and signatures as headers."""

    async def behave(request: ReceivedRequest) -> None:
        await request.reply(b"{}")

    async with run_raw_peer(behave) as peer:

        async def deliver(url: str, headers: Mapping[str, str]) -> None:
            with suppress(PostFailed, ValueError):
                await post(parse_url(url), headers, b"{}", judge=allow_any, seconds=WAIT)

        texts = {
            "id": lambda text: deliver(peer.url, {"webhook-id": text}),
            "name of a header": lambda text: deliver(peer.url, {f"webhook-{text}": "v"}),
            "path": lambda text: deliver(f"{peer.url}/{text}", {}),
            "query": lambda text: deliver(f"{peer.url}?a={text}", {}),
            "host": lambda text: deliver(peer.url.replace("127.0.0.1", f"127.0.0.1{text}"), {}),
        }
        await attack(texts, peer, lambda: deliver(peer.url, {"webhook-id": "1"}), {b"webhook-id", b"webhook-x"})
