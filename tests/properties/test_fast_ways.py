import asyncio
import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from bad_input.shop import make_shop
from millstream._http.asgi import AsgiSink
from millstream._http.message import HttpRequest, Response
from millstream._transports.streamable import HttpSessions, StreamableEndpoint
from millstream._transports.streamable.post import Streamable, serve_exactly
from patience import WAIT
from properties.messages import TOOLS, calls, encoded_messages, mostly
from property_settings import examples
from wire import LATEST_HANDSHAKE, META, PER_REQUEST, POST, encode_headers, per_request, request, routing

pytestmark = pytest.mark.many
ADD = {"name": "add", "arguments": {"a": 1, "b": 2}}
RANDOM = re.compile(rb'"requestState":"[^"]*"|[0-9a-f]{16}|"q1-[0-9a-f]{8}"')


class Ways:
    """The fast path and the exact path of one running server."""

    def __init__(self, runner: asyncio.Runner, streamable: Streamable, session: str) -> None:
        self._runner = runner
        self._streamable = streamable
        self.session = {"mcp-session-id": session, "mcp-protocol-version": LATEST_HANDSHAKE}

    def compare(self, fields: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a request on both paths and compare the replies."""
        short = self._runner.run(self._ask(self._streamable.post, fields, body))
        exact = self._runner.run(self._ask(partial(serve_exactly, self._streamable._endpoint), fields, body))
        assert short == exact

    async def _ask(self, handler: Any, fields: list[tuple[bytes, bytes]], body: bytes) -> tuple[int, bytes, bytes]:
        stream = bytearray()
        head: list[Any] = []

        async def send(message: dict[str, Any]) -> None:
            stream.extend(message.get("body", b""))

        class Asked(HttpRequest, eq=False):
            def open(self, status: int, lines: bytes) -> AsgiSink:
                head.append((status, lines))
                return AsgiSink(send, status, lines, limit=2**20)  # type: ignore[arg-type]

        asked = Asked("POST", "/mcp", fields, dict(fields), body)
        async with asyncio.timeout(WAIT):
            response: Response | None = await handler(asked)
        if response is not None:
            return (
                response.status,
                re.sub(rb"(mcp-session-id: )\S+", rb"\1?", response.head),
                RANDOM.sub(b"?", response.body),
            )
        return *head[0], b""


@pytest.fixture(scope="module")
def ways() -> Iterator[Ways]:
    """One server for this file."""
    server = make_shop()
    with asyncio.Runner() as runner:
        runtime = runner.run(server.start(supervised=True))
        streamable = Streamable(StreamableEndpoint(runtime.dispatcher, runtime.streams, HttpSessions(runtime.services)))
        params = {"protocolVersion": LATEST_HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        fields = encode_headers(POST)
        first = HttpRequest("POST", "/mcp", fields, dict(fields), json.dumps(request("initialize", params)).encode())
        reply = runner.run(streamable.post(first))  # type: ignore[arg-type]
        session = re.search(rb"mcp-session-id: (\S+)", reply.head)
        assert session is not None
        yield Ways(runner, streamable, session[1].decode())
        runner.run(server.stop())


def headers_for(message: dict[str, Any], **changes: str) -> list[tuple[bytes, bytes]]:
    """Return the headers for a call, with changes."""
    name = message["params"].get("name") if isinstance(message.get("params"), dict) else None
    return encode_headers(
        {**routing("tools/call", name if isinstance(name, str) and name in TOOLS else "add"), **changes}
    )


CALL = per_request("tools/call", ADD)
META_OF = CALL["params"]["_meta"]


def with_meta(**changes: Any) -> bytes:
    """Return a call with additional members in its envelope."""
    return json.dumps(per_request("tools/call", {**ADD, "_meta": {**META_OF, **changes}})).encode()


@given(
    body=encoded_messages(calls()),
    changes=st.dictionaries(
        st.sampled_from(["accept", "content-type", "mcp-name", "mcp-method", "x"]),
        st.sampled_from(["add", "text/event-stream", "application/json", "*/*", "tools/call", ""]),
        max_size=1,
    ),
)
@settings(max_examples=examples(20))
@example(body=with_meta(progressToken=None), changes={})
@example(body=with_meta(**{f"{META}logLevel": ""}), changes={})
@example(body=with_meta(**{f"{META}clientInfo": {}}), changes={})
@example(body=with_meta(**{f"{META}clientInfo": {"name": "a", "title": 1}}), changes={})
@example(body=with_meta(traceparent=1), changes={})
@example(body=json.dumps(CALL).replace('"2.0"', '"2.\\u0030"').encode(), changes={})
@example(body=json.dumps(CALL).replace('"tools/call"', '"tools\\/call"').encode(), changes={})
@example(body=json.dumps(CALL).replace('"add"', '"\\u0061dd"').encode(), changes={})
@example(body=json.dumps(CALL).replace('"id": 1', '"id": 1.0').encode(), changes={})
@example(body=json.dumps(CALL).replace('"id": 1', '"id": 1, "result": {}').encode(), changes={})
@example(body=json.dumps(CALL).replace('"id": 1', '"id": 1, "x": NaN').encode(), changes={})
@example(body=json.dumps(CALL).replace('"a": 1', '"a": 1.0').encode(), changes={})
@example(body=json.dumps(CALL).replace('"a": 1', '"a": "1"').encode(), changes={})
@example(body=json.dumps(per_request("tools/call", {"name": "add", "arguments": None})).encode(), changes={})
@example(body=json.dumps(per_request("tools/call", {"name": "ask"}, elicitation={})).encode(), changes={})
@example(
    body=json.dumps(per_request("tools/call", {"name": "ask", "arguments": None}, elicitation={})).encode(),
    changes={},
)
@example(
    body=json.dumps(per_request("tools/call", {"name": "ask", "requestState": ""}, elicitation={})).encode(),
    changes={},
)
@example(
    body=json.dumps(per_request("tools/call", {"name": "ask", "requestState": None}, elicitation={})).encode(),
    changes={},
)
@example(
    body=json.dumps(per_request("tools/call", {"name": "ask", "inputResponses": None}, elicitation={})).encode(),
    changes={},
)
@example(
    body=json.dumps(per_request("tools/call", {"name": "ask", "inputResponses": {}}, elicitation={})).encode(),
    changes={},
)
def test_fast_and_exact_paths_agree_on_per_request_calls(ways: Ways, body: bytes, changes: dict[str, str]) -> None:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        message = {}
    ways.compare(headers_for(message if isinstance(message, dict) else {}, **changes), body)


@given(
    body=encoded_messages(calls()),
    sessionless=st.booleans(),
    version=mostly(st.just(LATEST_HANDSHAKE), st.sampled_from(["2025-03-26", PER_REQUEST, "x", ""])),
)
@settings(max_examples=examples(20))
@example(
    body=json.dumps(request("tools/call", {**ADD, "_meta": {"progressToken": None}})).encode(),
    sessionless=False,
    version=LATEST_HANDSHAKE,
)
@example(
    body=json.dumps(request("tools/call", {**ADD, "_meta": {"progressToken": 1.5}})).encode(),
    sessionless=False,
    version=LATEST_HANDSHAKE,
)
@example(
    body=json.dumps(request("tools/call", {**ADD, "_meta": None})).encode(), sessionless=False, version=LATEST_HANDSHAKE
)
@example(
    body=json.dumps(request("tools/call", {**ADD, "_meta": []})).encode(), sessionless=False, version=LATEST_HANDSHAKE
)
@example(
    body=json.dumps(request("tools/call", {"name": "ask", "arguments": None})).encode(),
    sessionless=False,
    version=LATEST_HANDSHAKE,
)
@example(
    body=json.dumps(request("tools/call", ADD)).replace('"2.0"', '"2.\\u0030"').encode(),
    sessionless=False,
    version=LATEST_HANDSHAKE,
)
@example(
    body=json.dumps(request("tools/call", ADD)).replace('"id": 1', '"id": 1, "error": {}').encode(),
    sessionless=False,
    version=LATEST_HANDSHAKE,
)
@example(body=json.dumps(per_request("tools/call", ADD)).encode(), sessionless=False, version=LATEST_HANDSHAKE)
@example(
    body=json.dumps(request("tools/call", {**ADD, "task": {}})).encode(), sessionless=False, version=LATEST_HANDSHAKE
)
def test_fast_and_exact_paths_agree_on_handshake_calls(
    ways: Ways, body: bytes, sessionless: bool, version: str
) -> None:
    session = {} if sessionless else {**ways.session, "mcp-protocol-version": version}
    assume(b"\x00" not in body)
    ways.compare(encode_headers({**POST, **session}), body)


PARAMS: list[Any] = [
    None, {}, {"cursor": "x"}, {"cursor": 1}, {"name": "no-such"}, {"uri": "shop://sign"}, {"level": "debug"},
    {"_meta": {}}, {"_meta": {"progressToken": "t"}}, {"_meta": {"progressToken": None}}, {"_meta": None}, [], "x",
    {"protocolVersion": LATEST_HANDSHAKE},
    {"protocolVersion": LATEST_HANDSHAKE, "capabilities": 1}, {"_meta": META_OF},
    {"_meta": {f"{META}protocolVersion": None}}, {"requestId": 1}, {"text": "Köln"},
]  # fmt: skip


@given(
    method=st.sampled_from([
        "ping", "tools/list", "prompts/list", "prompts/get", "resources/read", "resources/subscribe", "initialize",
        "logging/setLevel", "completion/complete", "notifications/initialized", "notifications/cancelled", "no/such",
        "notifications/no-such", "server/discover", "subscriptions/listen", "tools/call", "",
    ]),
    changes=st.dictionaries(
        st.sampled_from(["id", "params", "result", "error", "method", "jsonrpc"]),
        st.sampled_from([None, 1, "x", 1.5, "", {}, *PARAMS]),
        max_size=1,
    ),
    params=st.sampled_from(PARAMS),
    form=st.sampled_from(["request", "notification", "sessionless request", "sessionless notification"]),
    version=st.sampled_from([LATEST_HANDSHAKE] * 3 + ["2025-03-26", PER_REQUEST, "x", "", None]),
)  # fmt: skip
@settings(max_examples=examples(60))
def test_fast_and_exact_paths_agree_on_other_handshake_messages(
    ways: Ways, method: str, changes: dict[str, Any], params: Any, form: str, version: Any
) -> None:
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": method} | ({"id": 1} if form.endswith("request") else {})
    message |= ({} if params is None else {"params": params}) | changes
    headers = {**POST, **({} if form.startswith("sessionless") else ways.session)}
    headers.pop("mcp-protocol-version", None)
    if version is not None:
        headers["mcp-protocol-version"] = version
    ways.compare(encode_headers(headers), json.dumps(message, ensure_ascii=False).encode())
