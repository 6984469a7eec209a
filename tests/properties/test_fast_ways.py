"""The usual way to read a message and each transport's exact way have the same effect."""

import asyncio
import json
import re
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from msgspec import Struct
from pydantic import BaseModel

from bad_input.shop import make_shop
from cases import for_each
from millstream import Context
from millstream._app.runtime import Runtime
from millstream._http.asgi import AsgiSink
from millstream._http.message import HttpRequest, Response
from millstream._protocol.admission import target_name
from millstream._protocol.metadata import encode_value
from millstream._protocol.principal import Principal
from millstream._server.calls.call import Call
from millstream._transports import connection
from millstream._transports.connection import ClientConnection
from millstream._transports.streamable import HttpSessions, StreamableEndpoint, post
from patience import WAIT
from properties.messages import SPELLINGS, TOOLS, calls, encoded_messages, mostly, requests
from property_settings import examples
from strategies import json_values, texts
from wire import LATEST_HANDSHAKE, META, PER_REQUEST, POST, encode_headers, per_request, request, routing

pytestmark = pytest.mark.many
RANDOM = re.compile(rb'"requestState":"[^"]*"|[0-9a-f]{16}|"q1-[0-9a-f]{8}"|(?<=mcp-session-id: )\S+')
TRANSPORTS = ["post", "stdio", "sse", "websocket", "memory"]


class Place(Struct):
    city: str = ""
    inner: "Place | None" = None


class Order(BaseModel):
    title: str = ""
    copies: int = 1


def make_server() -> Any:
    """The shop, with a tool for each way to decode arguments, and one that returns what it sees of its caller."""
    mcp = make_shop()

    @mcp.tool
    def says(text: str, more: dict[str, str] | None = None) -> str:
        """Has a decoder that reads all."""
        return text

    @mcp.tool
    async def visits(place: Place) -> str:
        """Has a decoder that ignores unknown members of places."""
        return place.city

    @mcp.tool
    async def orders(order: Order) -> str:
        """Has a pydantic model."""
        return order.title

    @mcp.tool
    async def looks(ctx: Context) -> list[Any]:
        """Return what a function sees."""
        client = ctx.client
        return [client.name, client.version, dict(client.capabilities), dict(ctx.meta), ctx.revision, ctx.headers]

    return mcp


def describe(call: Call, scope: str) -> tuple[Any, ...]:
    """Return the fields of a call that its handlers, gates, and observers read."""
    client, session = call.client, call.session
    http = call.origin.cancel_on_disconnect if isinstance(call.origin, HttpRequest) else None
    return (
        call.revision.date, repr(call.id), call.method, call.name or target_name(call.method, call.raw_params()),
        call.raw_params(), call.raw_meta(), repr(call.token), call.log_level, dict(client.capabilities), client.name,
        client.version, None if session is None else session.revision.date, call.principal, dict(call.headers or {}),
        call.transport, call.client_id, call.long_lived, call.reply_channel is None, call.open_reply is None,
        bool(scope), http,
    )  # fmt: skip


class Ways:
    """The usual way and the exact way of each transport to one running server."""

    def __init__(self, runner: asyncio.Runner, runtime: Runtime) -> None:
        self._runner = runner
        self._runtime = runtime
        self._endpoint = StreamableEndpoint(runtime.dispatcher, runtime.streams, HttpSessions(runtime.services))
        self._seen: list[Any] = []
        self._exact = False
        """Whether the exact way read the last message."""
        dispatcher = runtime.dispatcher
        run = dispatcher.call

        async def call(call: Call, scope: str = "") -> bytes:
            self._seen.append(describe(call, scope))
            return await run(call, scope)

        dispatcher.call = call  # type: ignore[method-assign]
        runtime.services.note = lambda method, transport, session=None, status="", **more: self._seen.append(
            (method, transport, session is None, status, more.get("principal"))
        )
        opened = runner.run(self._post(encode_headers(POST), json.dumps(INITIALIZE).encode()))
        session = re.search(rb"mcp-session-id: (\S+)", opened[1])
        assert session is not None
        self.session = {"mcp-session-id": session[1].decode(), "mcp-protocol-version": LATEST_HANDSHAKE}

    def compare(self, body: bytes, fields: list[tuple[bytes, bytes]] | None = None, transport: str = "post") -> bool:
        """Send a message both ways, and compare the effects. Return whether the usual way took it."""
        way, exact = (post, "serve_exactly") if transport == "post" else (connection, "check_text")
        read, original = way.read_usual, getattr(way, exact)

        def note(given: Any, *more: Any) -> Any:
            self._exact = True
            return original(given, *more)

        def ask(reads: Any) -> tuple[bool, list[Any]]:
            self._exact = False
            self._seen.clear()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(way, "read_usual", reads)
                patch.setattr(way, exact, note)
                reply = self._runner.run(
                    self._post(fields or [], body) if transport == "post" else self._send(transport, body)
                )
            return self._exact, [
                RANDOM.sub(b"?", each) if isinstance(each, bytes) else each for each in reply
            ] + self._seen

        usual, exactly = ask(read), ask(lambda _: None)
        assert usual[1] == exactly[1]
        assert exactly[0]
        return not usual[0]

    async def _post(self, fields: list[tuple[bytes, bytes]], body: bytes) -> list[Any]:
        stream = bytearray()
        head: list[Any] = []

        async def send(message: dict[str, Any]) -> None:
            stream.extend(message.get("body", b""))

        class Asked(HttpRequest, eq=False):
            def open(self, status: int, lines: bytes) -> AsgiSink:
                head.append((status, lines))
                return AsgiSink(send, status, lines, limit=2**20)  # type: ignore[arg-type]

        asked = Asked("POST", "/mcp", fields, dict(fields), body, b"client_id=x" if (b"query", b"") in fields else b"")
        async with asyncio.timeout(WAIT):
            response: Response | None = await post.Streamable(self._endpoint).post(asked)
        return [*head, bytes(stream)] if response is None else [response.status, response.head, response.body]

    async def _send(self, transport: str, body: bytes) -> list[bytes]:
        """Return what a connection writes after `initialize`."""
        written: list[bytes] = []

        def write(message: bytes) -> bool:
            written.append(message)
            return True

        async def drain() -> None:
            return None

        remote = {"principal": Principal("ada"), "peer": "192.0.2.1", "headers": {b"user-agent": b"x"}}
        client = ClientConnection(
            self._runtime.dispatcher, write, drain, transport=transport,
            **(remote if transport in ("sse", "websocket") else {}),
        )  # fmt: skip
        if transport == "memory":
            client.open_reply = lambda call: client
        client.receive(json.dumps(INITIALIZE).encode())
        client.receive(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
        written.clear()
        self._seen.clear()
        self._exact = False
        client.receive(body)
        async with asyncio.timeout(WAIT):
            await client.settle()
        await client.close()
        return written


INITIALIZE = request(
    "initialize",
    {
        "protocolVersion": LATEST_HANDSHAKE, "capabilities": {},
        "clientInfo": {"name": "t" * 5_000, "version": "1" * 300, "title": "T"},
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def ways() -> Iterator[Ways]:
    """One server for this file."""
    server = make_server()
    with asyncio.Runner() as runner:
        runtime = runner.run(server.start(supervised=True))
        yield Ways(runner, runtime)
        runner.run(server.stop())


NAMES = [*TOOLS, "says", "visits", "orders", "looks"]


def headers_for(message: Any, **changes: str) -> list[tuple[bytes, bytes]]:
    """Return the headers for a message of the per-request era, with changes."""
    message = message if isinstance(message, dict) else {}
    params = message.get("params")
    name = params.get("name") if isinstance(params, dict) else None
    method = message.get("method")
    named = routing(method if isinstance(method, str) and method.isascii() else "tools/call")
    if isinstance(name, str) and name in NAMES:
        named["mcp-name"] = name
    return encode_headers({**named, **changes})


def parse(body: bytes) -> Any:
    """Return the value of a body, or an empty object."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return {}


inputs = st.one_of(
    st.fixed_dictionaries({"text": mostly(texts)}, optional={"more": json_values}),
    st.fixed_dictionaries({"place": st.fixed_dictionaries({"city": mostly(texts)}, optional={"x": json_values})}),
    st.fixed_dictionaries({"order": st.fixed_dictionaries({"title": mostly(texts)}, optional={"x": json_values})}),
    st.fixed_dictionaries({}, optional={"a": mostly(st.integers()), "b": mostly(st.integers()), "x": json_values}),
)
bodies = st.one_of(
    encoded_messages(calls("says", "visits", "orders", "looks", inputs=inputs)),
    encoded_messages(calls("looks")),
    encoded_messages(requests()),
)


def spell(message: Any, old: str, *new: str) -> list[bytes]:
    """Return a message with another spelling of a part."""
    text = json.dumps(message, ensure_ascii=False)
    assert old in text
    return [text.replace(old, each, 1).encode("utf-8", "surrogateescape") for each in new]


def odd_messages(make: Any) -> list[bytes]:
    """Return messages of one era that readers could understand differently."""
    add = make("tools/call", {"name": "add", "arguments": {"a": 1, "b": 2}})
    looks = make("tools/call", {"name": "looks", "arguments": {}})
    meta = looks["params"].get("_meta", {})
    about = {f"{META}clientInfo": {"name": "n" * 257, "version": "v" * 257, "title": "t" * 257}}
    metas: list[dict[str, Any]] = [
        about, {f"{META}clientInfo": {}}, {f"{META}clientInfo": {"name": "a", "title": 1}},
        {f"{META}clientInfo": {"name": "a" * 256, "version": "é" * 256, "websiteUrl": None}},
        {f"{META}clientCapabilities": {"roots": {}, "experimental": {"x": "y" * 5_000}, "other": "z" * 5_000}},
        {"progressToken": None}, {"progressToken": 1.5}, {"progressToken": 1.0}, {"progressToken": "p" * 20_000},
        {"progressToken": "p" * 16_384}, {f"{META}logLevel": ""}, {f"{META}logLevel": "loud"},
        {f"{META}logLevel": "debug"}, {"traceparent": 1}, {"é": "é"},
    ]  # fmt: skip
    visits = make("tools/call", {"name": "visits", "arguments": {"place": {"city": "Köln", "x": "y"}}})
    orders = make("tools/call", {"name": "orders", "arguments": {"order": {"title": "Köln", "x": "y"}}})
    says = make("tools/call", {"name": "says", "arguments": {"text": "Köln"}})
    ids = [each.decode("utf-8", "surrogateescape") for each in SPELLINGS]
    ids += [f'"{"i" * size}"' for size in (1_364, 16_382, 16_383)]
    spelled: list[tuple[Any, str, list[str]]] = [
        (add, '"2.0"', ['"2.\\u0030"', '"2.1"', "2.0"]),
        (add, '"tools/call"', ['"tools\\/call"', '"tools\udcff/call"']),
        (add, '"add"', ['"\\u0061dd"', '"a\udcff"']),
        (add, '"a": 1', ['"a": 1.0', '"a": "1"', '"a": NaN', '"é": 1', '"\udcff": 1']),
        (add, '"id": 1', [*(f'"id": {each}' for each in ids), '"id": 2, "id": 1', '"id": 1, "id": null']),
        (add, '"id": 1', ['"id": 1, "result": {}', '"id": 1, "error": null', '"id": 1, "x": "\udcff"', '"x": 1']),
        (add, '"name": ', ['"name": "x", "name": ', '"name": 1, "name": ', '"x": "\udcff", "name": ']),
        (add, '"arguments": {', ['"arguments": 1, "arguments": {', '"arguments": {"é": "\udcff"}, "arguments": {']),
        (add, '"params": {', [f'"params": {{{each}, ' for each in ('"task": {}', '"inputResponses": {}')]),
        (
            add,
            '"params": {',
            ['"params": {"requestState": null, ', '"params": [], "params": {'],
        ),
        (visits, '"y"', ['"é"', '"\udcff"']),
        (orders, '"y"', ['"é"', '"\udcff"']),
        (says, "Köln", ["Köln", "Köln" * 3_000, "\udcff", "ї" * 40_000, "\\ud83d"]),
        (looks, "}", ["} \udcff"]),
        (looks, '"id": 1', ['"id": 1, "x": "\udcc3{}\udca9"']),  # UTF-8 without the arguments' text
    ]
    found = [body for message, old, new in spelled for body in spell(message, old, *new)]
    found += [json.dumps(make("tools/call", {"name": "looks", "_meta": {**meta, **each}})).encode() for each in metas]
    found += [json.dumps(make("tools/call", {"name": "ask", "arguments": each})).encode() for each in (None, [], {})]
    for method in ("tools/list", "prompts/get", "resources/read", "ping", "server/discover", "no/such"):
        found.append(json.dumps(make(method, {"name": "add", "uri": "shop://sign"})).encode())
    for method in ("initialized", "progress", "cancelled", "x", "roots/list_changed"):
        note = make(f"notifications/{method}", {"requestId": 9, "x": "é"})
        del note["id"]
        found += [json.dumps(note).encode(), *spell(note, "é", "é", "\udcff")]
    return found


@for_each("make", [per_request, request], ids=["per request", "handshake"])
@for_each("transport", TRANSPORTS)
def test_odd_messages_have_the_effect_of_the_exact_way(ways: Ways, make: Any, transport: str) -> None:
    taken = 0
    for body in odd_messages(make):
        fields = headers_for(parse(body)) if make is per_request else encode_headers({**POST, **ways.session})
        taken += ways.compare(body, fields, transport)
    assert taken > 20
    looks = make("tools/call", {"name": "looks", "arguments": {}})
    fields = headers_for(looks) if make is per_request else encode_headers(POST)
    body = json.dumps(looks).encode()
    assert ways.compare(body, fields)
    assert not ways.compare(body, [*fields, (b"query", b"")])  # a client of the hub


@for_each("name", ["greet", "=?base64?Z3JlZXQ=?=", "grüß", "\x7f", "a b", " a", ""])
def test_names_agree_with_their_header_in_any_spelling(ways: Ways, name: str) -> None:
    message = per_request("prompts/get", {"name": name})
    for header in (name, encode_value(name), f"=?base64?{b64encode(name.encode()).decode()}?="):
        ways.compare(json.dumps(message).encode(), headers_for(message, **{"mcp-name": header.strip(" ")}))


@given(
    body=bodies,
    changes=st.dictionaries(
        st.sampled_from(["accept", "content-type", "mcp-name", "mcp-method", "mcp-param-region", "query", "x"]),
        st.sampled_from(["add", "text/event-stream", "application/json", "*/*", "tools/call", ""]),
        max_size=1,
    ),
)
@settings(max_examples=examples(40))
def test_posts_of_the_per_request_era_agree(ways: Ways, body: bytes, changes: dict[str, str]) -> None:
    ways.compare(body, headers_for(parse(body), **changes))


@given(
    body=bodies,
    sessionless=st.booleans(),
    version=mostly(st.just(LATEST_HANDSHAKE), st.sampled_from(["2025-03-26", PER_REQUEST, "x", ""])),
)
@settings(max_examples=examples(40))
@example(body=json.dumps(per_request("ping")).encode(), sessionless=False, version=LATEST_HANDSHAKE)
def test_posts_of_the_handshake_era_agree(ways: Ways, body: bytes, sessionless: bool, version: str) -> None:
    session = {} if sessionless else {**ways.session, "mcp-protocol-version": version}
    assume(b"\x00" not in body)
    ways.compare(body, encode_headers({**POST, **session}))


@given(body=bodies, transport=st.sampled_from(TRANSPORTS[1:]))
@settings(max_examples=examples(60))
def test_messages_on_connections_agree(ways: Ways, body: bytes, transport: str) -> None:
    message = parse(body)
    assume(not isinstance(message, list) and b"subscriptions/listen" not in body)
    ways.compare(body, transport=transport)


PARAMS: list[Any] = [
    None, {}, {"cursor": "x"}, {"cursor": 1}, {"name": "no-such"}, {"uri": "shop://sign"}, {"level": "debug"},
    {"_meta": {}}, {"_meta": {"progressToken": "t"}}, {"_meta": {"progressToken": None}}, {"_meta": None}, [], "x",
    {"protocolVersion": LATEST_HANDSHAKE},
    {"protocolVersion": LATEST_HANDSHAKE, "capabilities": 1}, per_request("ping")["params"],
    {"_meta": {f"{META}protocolVersion": None}}, {"requestId": 1}, {"text": "Köln"},
]  # fmt: skip


@given(
    method=st.sampled_from([
        "ping", "tools/list", "prompts/list", "prompts/get", "resources/read", "resources/subscribe", "initialize",
        "logging/setLevel", "completion/complete", "notifications/initialized", "notifications/cancelled", "no/such",
        "notifications/no-such", "server/discover", "tools/call", "",
    ]),
    changes=st.dictionaries(
        st.sampled_from(["id", "params", "result", "error", "method", "jsonrpc"]),
        st.sampled_from([None, 1, "x", 1.5, "", {}, *PARAMS]),
        max_size=1,
    ),
    params=st.sampled_from(PARAMS),
    form=st.sampled_from(["request", "notification", "sessionless request", "sessionless notification"]),
    version=st.sampled_from([LATEST_HANDSHAKE] * 3 + ["2025-03-26", PER_REQUEST, "x", "", None]),
    transport=st.sampled_from(["post", *TRANSPORTS]),
)  # fmt: skip
@settings(max_examples=examples(80))
def test_other_handshake_messages_agree(ways: Ways, method: str, params: Any, changes: Any, **more: Any) -> None:
    form, version, transport = more["form"], more["version"], more["transport"]
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": method} | ({"id": 1} if form.endswith("request") else {})
    message |= ({} if params is None else {"params": params}) | changes
    headers = {**POST, **({} if form.startswith("sessionless") else ways.session)}
    headers.pop("mcp-protocol-version", None)
    if version is not None:
        headers["mcp-protocol-version"] = version
    ways.compare(json.dumps(message, ensure_ascii=False).encode(), encode_headers(headers), transport)
