import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bad_input.shop import make_shop
from properties.messages import bodies, encoded_messages, headers, messages, requests
from property_settings import examples
from wire import POST, Reply, Wire, ask_asgi, encode_headers, per_request, request, routing

pytestmark = pytest.mark.many
ENDPOINTS = [
    ("POST", "/mcp"), ("GET", "/mcp"), ("DELETE", "/mcp"), ("OPTIONS", "/mcp"), ("HEAD", "/mcp"), ("PUT", "/mcp"),
    ("GET", "/sse"), ("POST", "/messages/"), ("POST", "/messages/?session_id=x"), ("GET", "/health"), ("GET", "/x"),
]  # fmt: skip
STATUSES = {200, 202, 204, 400, 403, 404, 405, 406, 413, 415, 421}
CODES = {-32700, -32600, -32601, -32602, -32002, -32001, -32020, -32021, -32022, -32603}
ADD = {"name": "add", "arguments": {"a": 1, "b": 2}}


class World:
    """A running server, its event loop, and a session."""

    def __init__(self, wire: Wire, run: Callable[[Coroutine[Any, Any, Any]], Any], session: dict[str, str]) -> None:
        self.wire = wire
        self.run = run
        self.session = session

    def ask(self, method: str, path: str, fields: list[tuple[bytes, bytes]], body: bytes) -> Reply:
        """Send a request. Leave a stream once it has started."""
        reply: Reply = self.run(ask_asgi(self.wire.server, method, path, fields, body, stop_when=bool))
        return reply

    def check(self) -> None:
        """Check that valid calls of both eras still work, and that no call is left running."""
        good = [
            (request("tools/call", ADD), self.session),
            (per_request("tools/call", ADD), routing("tools/call", "add")),
        ]
        for message, fields in good:
            reply = self.ask("POST", "/mcp", encode_headers(fields), json.dumps(message).encode())
            assert reply.message["result"]["content"][0]["text"] == "3"
        self.run(self.wire.until(lambda: not self.wire.runtime.dispatcher.calls and not len(self.wire.runtime.streams)))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """One server for this file."""
    server = make_shop()
    with asyncio.Runner() as runner:
        runtime = runner.run(server.start(supervised=True))
        wire = Wire(server, runtime, None)
        yield World(wire, runner.run, runner.run(wire.initialize()))
        runner.run(server.stop())


def judge(reply: Reply, body: bytes, *, messages_path: bool = False) -> None:
    """Check that the reply follows the protocol."""
    assert reply.status in STATUSES, reply
    if reply.status == 202 and not messages_path:
        assert not asks(body), "a request was taken in silence"
    if reply.headers.get(b"content-type") == b"application/json" and reply.body:
        answers = json.loads(reply.body)
        for answer in answers if isinstance(answers, list) else [answers]:
            if "error" in answer:
                assert answer["error"]["code"] in CODES, answer
                assert b"Internal error" not in reply.body, answer


def asks(body: bytes) -> bool:
    """Return whether a lenient parser would read the body as a request."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(message, dict) and "id" in message and "method" in message


@given(endpoint=st.sampled_from(ENDPOINTS), fields=headers, body=bodies)
@settings(max_examples=examples(20))
@example(endpoint=("POST", "/mcp"), fields=encode_headers(POST), body=b'{"jsonrpc":"2.0","id":NaN,"method":"ping"}')
@example(endpoint=("POST", "/mcp"), fields=[*encode_headers(POST), (b"content-length", b"x")], body=b"{}")
def test_any_request_gets_a_protocol_response(
    world: World, endpoint: tuple[str, str], fields: list[tuple[bytes, bytes]], body: bytes
) -> None:
    reply = world.ask(*endpoint, fields, body)
    judge(reply, body, messages_path=endpoint[1].startswith("/messages"))
    world.check()


@given(body=encoded_messages(messages), extra=headers)
@settings(max_examples=examples(13))
def test_any_session_message_gets_a_response(world: World, body: bytes, extra: list[tuple[bytes, bytes]]) -> None:
    own = encode_headers({name: value for name, value in world.session.items() if name != "mcp-protocol-version"})
    fields = [field for field in extra if field[0] in (b"mcp-protocol-version", b"mcp-method", b"mcp-name")] + own
    judge(world.ask("POST", "/mcp", fields, body), body)
    world.check()


@given(message=requests())
@settings(max_examples=examples(13))
def test_any_message_with_matching_headers_gets_a_response(world: World, message: dict[str, Any]) -> None:
    params = message.get("params")
    params = params if isinstance(params, dict) else {}
    meta = params.get("_meta")
    version = meta.get("io.modelcontextprotocol/protocolVersion") if isinstance(meta, dict) else None
    texts = {"mcp-method": message.get("method"), "mcp-name": params.get("name"), "mcp-protocol-version": version}
    fields = encode_headers(POST) + [
        (name.encode(), value.encode())
        for name, value in texts.items()
        if isinstance(value, str) and value.isascii() and value.isprintable()
    ]
    body = json.dumps(message).encode()
    judge(world.ask("POST", "/mcp", fields, body), body)
    world.check()
