import asyncio
import base64
import itertools
import json
import logging
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from cases import for_each
from client.misbehaving_servers import (
    DONE,
    GREETING,
    OFFER,
    ReceivedRequest,
    assert_readable,
    check_failure,
    connected,
    misbehaving,
    with_discovery,
    with_handshake,
)
from millstream import Client, Context, EmbeddedResource, Image, ResourceLink, Server, Text
from millstream.client import (
    AccessDenied,
    ClientError,
    InvalidResponse,
    NotMcp,
    Options,
    RequestTimeout,
    TargetError,
    TooLarge,
)
from millstream.extensions import Extension, method
from patience import WAIT

NEVER = 0.05
"""A timeout that is meant to run out."""
Behave = Callable[[ReceivedRequest], Awaitable[None]]
Json = dict[str, Any]


def once(data: bytes) -> bytes:
    """Return a complete reply with this response."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(data) + data


def endless(start: bytes) -> Behave:
    """Send a reply that starts like this, and continues with header-like lines with different names."""

    async def behave(asked: ReceivedRequest) -> None:
        await asked.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        await asked.write(start)
        number = 0
        while True:
            await asked.write(b"".join(b"x%d: y\r\n" % each for each in range(number, number + 1000)))
            number += 1000

    return behave


@for_each("start", [b"2\r\n{}\r\n0\r\n", b"2;x="], ids=["trailers", "an extension of a chunk"])
async def test_chunk_extensions_and_trailers_are_bounded(start: bytes) -> None:
    letters = start if start.endswith(b"\n") else start + b"x" * 1_000_000
    await check_failure(with_discovery(endless(letters)), TooLarge, "not counting its body")


@for_each("kind", ["application/json", "text/event-stream"])
async def test_compressed_responses_are_explained(kind: str) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.reply(b"\x1f\x8b\x08\x00", type=kind, more="Content-Encoding: gzip\r\n")

    await check_failure(with_discovery(behave), InvalidResponse, "compressed response is incomplete")


@for_each("cut", [None, -4], ids=["whole", "almost whole"])
async def test_duplicate_responses_never_reach_another_call(cut: int | None) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        said = once(asked.answer(DONE))
        await asked.write(said + said[:cut])

    async with connected(with_discovery(behave)) as (_, client):
        await client.call("x")
        results = await asyncio.gather(*(client.call("x") for _ in range(6)))
    assert [result.text for result in results] == ["done"] * 6


async def test_url_elicitation_does_not_affect_messages() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        if asked.path == "/docs":
            await asked.reply(b"<p>Read this", type="text/html")
        elif asked.verb == "GET":
            await asked.reply(b"", status="302 Found", more="Location: /docs\r\n")
        else:
            await asked.result(DONE)

    async def ask(asked: ReceivedRequest) -> None:
        await (behave if asked.verb == "GET" else with_handshake(behave))(asked)

    async with connected(ask) as (server, client):
        assert (await client.call("x")).text == "done"
        assert "/docs" in [asked.path for asked in server.requests]


@for_each("place", ["http://[bad", "file:///etc/passwd", "javascript:alert(1)"])
async def test_invalid_redirect_targets_are_explained(place: str) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.reply(b"", status="307 Temporary Redirect", more=f"Location: {place}\r\n")

    await check_failure(with_discovery(behave), TargetError, "isn't a", "URL")


@for_each("number", [b"1e999", b"9" * 6000, b'{"deep":' * 900 + b"1" + b"}" * 900])
async def test_unrepresentable_structured_content_is_explained(number: bytes) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        content = {"resultType": "complete", "content": [], "structuredContent": {"a": "@"}}
        await asked.reply(asked.answer(content).replace(b'"@"', number))

    async with connected(with_discovery(behave)) as (_, client):
        result = await client.call("x")
        if number.startswith(b"{"):
            assert "deep" in result.data["a"]
            return
        with pytest.raises(InvalidResponse) as caught:
            _ = result.data
        assert_readable(caught.value, "is malformed")
        with pytest.raises(InvalidResponse):
            await client.request("tools/call", {"name": "x"})


async def test_a_result_with_status_202_is_accepted() -> None:
    async with connected(with_discovery(lambda asked: asked.result(DONE, status="202 Accepted"))) as (_, client):
        assert (await client.call("x")).text == "done"


@for_each("streams", [False, True])
@for_each(
    ("sent", "read"),
    [
        (b'"half of \\ud83d"', "half of \ufffd"),
        (b'"all of \\ud83d\\ude00"', "all of \N{GRINNING FACE}"),
        (b'[NaN, Infinity, -Infinity, "\\udc00"]', [None, None, None, "\ufffd"]),
    ],
)
async def test_unusual_json_from_other_libraries_is_repaired(streams: bool, sent: bytes, read: object) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        content = {"resultType": "complete", "content": [], "structuredContent": {"a": "@"}}
        body = b"\xef\xbb\xbf" * (not streams) + asked.answer(content).replace(b'"@"', sent)
        if streams:
            await asked.stream()
            await asked.event(body)
        else:
            await asked.reply(body)

    async with connected(with_discovery(behave)) as (_, client):
        assert (await client.call("x")).data == {"a": read}


@for_each("streams", [False, True])
async def test_response_ids_may_be_strings_instead_of_numbers(streams: bool) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        body = asked.answer(DONE)
        number = b'"id": %d' % asked.message["id"]
        assert number in body
        body = body.replace(number, b'"id": "%d"' % asked.message["id"])
        if streams:
            await asked.stream()
            await asked.event(body)
        else:
            await asked.reply(body)

    async with connected(with_discovery(behave)) as (_, client):
        await client.call("x")


@for_each(
    "body",
    [
        b'{"jsonrpc":"2.0","id":"\xff","result":{}}',
        b'{"jsonrpc":"\xff","id":2,"result":{}}',
        b'{"jsonrpc":"2.0","method":"\xff"}',
        b'{"jsonrpc":"2.0","id":2,"result":{"resultType":"input_required"}}',
        b'{"jsonrpc":"2.0","id":%d,"result":{}}' % 10**400,
    ],
)
async def test_response_errors_show_the_path(body: bytes) -> None:
    await check_failure(with_discovery(lambda asked: asked.reply(body)), InvalidResponse)


@for_each(
    "note",
    [
        {"method": "notifications/subscriptions/acknowledged", "params": {"_meta": {"@": [1]}}},
        {"method": "notifications/subscriptions/acknowledged"},
        {"method": "notifications/tools/list_changed", "params": {"_meta": {"@": {}}}},
        {"method": "notifications/resources/updated", "params": {"uri": 5}},
        {"method": "notifications/cancelled", "params": {"requestId": [1]}},
        {"method": "notifications/progress", "params": {"progressToken": [], "progress": 1}},
    ],
    ids=lambda note: note["method"].removeprefix("notifications/"),
)
async def test_malformed_notifications_are_ignored(note: dict[str, Any]) -> None:
    text = json.dumps({"jsonrpc": "2.0", **note}).replace("@", "io.modelcontextprotocol/subscriptionId")

    async def behave(asked: ReceivedRequest) -> None:
        await asked.stream()
        await asked.event(text.encode())
        await asked.event(asked.answer(DONE))
        await asked.end()

    async with asyncio.timeout(WAIT), misbehaving(with_discovery(behave)) as server:
        client = Client(server.url, timeout=WAIT, on_change=lambda change: None)
        async with client:
            assert (await client.call("x")).text == "done"


async def test_event_ids_are_sent_back_as_utf_8() -> None:
    """WHATWG HTML §9.2.3."""
    answer: list[bytes] = []

    async def behave(asked: ReceivedRequest) -> None:
        await asked.stream()
        if "last-event-id" in asked.headers:
            assert asked.headers["last-event-id"].encode("latin-1").decode() == "→é"
            await asked.event(answer[0])
        else:
            answer.append(asked.answer(DONE))
            await asked.event(b"", "id: →é\nretry: 0\n")
        await asked.end()

    served = misbehaving(with_handshake(behave, session="s"))
    async with asyncio.timeout(WAIT), served as server, Client(server.url, timeout=WAIT) as client:
        assert (await client.call("x")).text == "done"


@for_each("about", [5, [], {"name": 5}])
async def test_unusual_server_info_is_accepted(about: object) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "server/discover":
            await asked.result({**OFFER, "_meta": {"io.modelcontextprotocol/serverInfo": about}})
        else:
            await asked.result(DONE)

    async with connected(behave) as (_, client):
        assert client.server.name == ""
        assert (await client.call("x")).text == "done"


@for_each("empty", [[], None])
async def test_capabilities_may_be_an_empty_array_or_null(empty: object) -> None:  # as PHP encodes an empty object
    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "initialize":
            await asked.result({**GREETING, "capabilities": empty})
        elif asked.method == "tools/call":
            await asked.result(DONE)
        else:
            await asked.reply(b"", status="404 Not Found")

    async def behave_newer(asked: ReceivedRequest) -> None:
        await asked.result({**OFFER, "capabilities": empty} if asked.method == "server/discover" else DONE)

    for each in (behave, behave_newer):
        async with connected(each) as (_, client):
            assert (await client.call("x")).text == "done"


async def test_missing_lists_in_results_are_empty() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.result({"structuredContent": {"a": 1}} if asked.method == "tools/call" else {})

    async with connected(with_handshake(behave)) as (_, client):
        assert (await client.call("x")).data == {"a": 1}
        assert [await client.tools(), await client.prompts(), await client.resources(), await client.templates()] == [
            [], [], [], [],
        ]  # fmt: skip
        assert await client.read("a:b") == []
        assert (await client.prompt("x")).messages == []


async def test_servers_without_logging_receive_no_log_level() -> None:
    options = Options(log_level="error")
    async with connected(with_handshake(lambda asked: asked.result(DONE)), options=options) as (server, client):
        assert (await client.call("x")).text == "done"
        assert "logging/setLevel" not in [asked.method for asked in server.requests]


async def test_unaccepted_notifications_do_not_block() -> None:
    taken = ["notifications/initialized"]

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method.startswith("notifications/") and asked.method not in taken:
            await asyncio.get_running_loop().create_future()
        await with_handshake(behave)(asked)

    async with asyncio.timeout(WAIT), misbehaving(behave) as server:
        async with Client(server.url, timeout=WAIT) as client:
            client.conversation.requests.timeout = NEVER
            with pytest.raises(RequestTimeout) as late:
                await client.roots_changed()
        taken.clear()
        with pytest.raises(RequestTimeout):
            async with Client(server.url, timeout=NEVER):
                pass
    assert_readable(late.value, "roots/list_changed")


async def test_rounds_without_questions_share_the_call_timeout() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.result({"resultType": "input_required", "requestState": "later"})

    async with connected(with_discovery(behave)) as (server, client):
        with pytest.raises(RequestTimeout):
            await client.call("x", timeout=1)
        assert len(server.requests) < Options().max_rounds


async def test_undelivered_answers_do_not_pause_the_timeout() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        if not asked.method:
            await asyncio.get_running_loop().create_future()
        await asked.stream()
        await asked.event(b'{"jsonrpc":"2.0","id":"q","method":"ping"}')
        await asyncio.get_running_loop().create_future()

    async with connected(with_handshake(behave, session="s")) as (_, client):
        with pytest.raises(RequestTimeout):
            await client.call("x", timeout=1)


async def test_unserializable_handler_answers_are_errors_for_the_server() -> None:
    said: list[Any] = []

    async def behave(asked: ReceivedRequest) -> None:
        if not asked.method:
            said.append(asked.message)
            await asked.reply(b"", status="202 Accepted")
            return
        await asked.stream()
        await asked.event(b'{"jsonrpc":"2.0","id":"q","method":"elicitation/create","params":{"message":"Well?"}}')
        while not said:  # noqa: ASYNC110  another request brings it
            await asyncio.sleep(0.01)
        await asked.event(asked.answer(DONE))

    async with asyncio.timeout(WAIT), misbehaving(with_handshake(behave, session="s")) as server:
        client = Client(server.url, timeout=WAIT, elicit=lambda question: {"x": object()})
        async with client:
            await client.call("x")
    assert said[0]["error"]["message"] == "The client couldn't answer"


async def test_answer_that_a_busy_server_does_not_take_is_sent_again() -> None:
    said: list[Any] = []

    async def behave(asked: ReceivedRequest) -> None:
        if not asked.method:
            said.append(asked.message)
            await asked.reply(b"", status="503 Service Unavailable" if len(said) == 1 else "202 Accepted")
            return
        await asked.stream()
        await asked.event(b'{"jsonrpc":"2.0","id":"q","method":"elicitation/create","params":{"message":"Well?"}}')
        while len(said) < 2:  # noqa: ASYNC110  another request brings it
            await asyncio.sleep(0.01)
        await asked.event(asked.answer(DONE))

    async with asyncio.timeout(WAIT), misbehaving(with_handshake(behave, session="s")) as server:
        client = Client(server.url, timeout=WAIT, elicit=lambda question: {"name": "Ada"})
        async with client:
            assert (await client.call("x")).text == "done"
    assert said[0] == said[1]


@for_each("revision", ["2025-11-25", "2026-07-28"])
async def test_roots_of_a_wrong_type_are_an_error_for_the_server(
    revision: str, caplog: pytest.LogCaptureFixture
) -> None:
    mcp, wrong = Server("s"), list[Any]([7])

    @mcp.tool
    async def look(ctx: Context) -> str:
        return str(await ctx.roots())

    async with Client(mcp, revision=revision, roots=wrong, timeout=WAIT) as client:
        with pytest.raises(ClientError, match="couldn't answer"):
            await client.call("look")
    assert "A client handler for questions raised an error." in caplog.text


class Curious(Extension):
    """The client side of an extension whose handler has a bug."""

    name = "com.example/curious"

    @method("com.example/ask", side="client")
    async def answer(self, params: dict[str, Any]) -> dict[str, Any]:
        """Fail."""
        raise LookupError("a bug")


async def test_failing_handlers_of_extensions_are_errors_for_the_server() -> None:
    said: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def behave(asked: ReceivedRequest) -> None:
        if not asked.method:
            said.set_result(asked.message)
            await asked.reply(b"", status="202 Accepted")
            return
        await asked.stream()
        await asked.event(b'{"jsonrpc":"2.0","id":"q","method":"com.example/ask","params":{}}')
        await said
        await asked.event(asked.answer(DONE))

    async with (
        asyncio.timeout(WAIT),
        misbehaving(with_handshake(behave, session="s")) as server,
        Client(server.url, timeout=WAIT, extensions=[Curious()]) as client,
    ):
        await client.call("x")
    assert said.result()["error"]["message"] == "The client couldn't answer: LookupError"


async def test_streams_that_close_immediately_are_reopened_with_backoff() -> None:
    streams: list[float] = []
    enough = asyncio.Event()

    async def behave(asked: ReceivedRequest) -> None:
        if asked.verb == "GET":
            streams.append(asyncio.get_running_loop().time())
            await asked.stream()
            await asked.event(b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}', "id: 1\nretry: 0\n")
            await asked.end()
            if len(streams) == 4:
                enough.set()
        else:
            await with_handshake(behave, session="s")(asked)

    async with asyncio.timeout(WAIT), misbehaving(behave) as server, Client(server.url, timeout=WAIT):
        await enough.wait()
    assert all(later - before >= 0.09 for before, later in pairwise(streams))


@for_each(
    ("status", "type", "more", "body", "expected"),
    [
        ("418 x", f"text/{'x' * 5000}", "", b"", NotMcp),
        ("400 x", "application/json", "", b"", NotMcp),
        ("403 x", "", f'WWW-Authenticate: Bearer error="insufficient_scope" {"x" * 5000}\r\n', b"", AccessDenied),
        ("403 x", "application/problem+json", "", b'{"detail":"one\\ntwo %b"}' % (b"x" * 5000), AccessDenied),
        ("403 x", "application/problem+json", "", b'{"detail":"\xff"}', AccessDenied),
    ],
)
async def test_rejections_are_quoted_briefly_on_one_line(
    status: str, type: str, more: str, body: bytes, expected: type[ClientError]
) -> None:
    await check_failure(with_discovery(lambda asked: asked.reply(body, status=status, type=type, more=more)), expected)


BALANCED = "s1\r\nSet-Cookie: LB=one; Path=/; HttpOnly\r\nSet-Cookie: LBCORS=two; Path=/; SameSite=None; Secure"
"""The session of a server behind a load balancer that keeps sessions on one server by cookies."""


@for_each(("headers", "sent"), [({}, "LB=one; LBCORS=two"), ({"Cookie": "mine=1"}, "mine=1")])
async def test_session_cookies_are_sent_back(headers: dict[str, str], sent: str) -> None:
    async with misbehaving(with_handshake(lambda asked: asked.result(DONE), BALANCED)) as server:
        async with Client(server.url, headers=headers, timeout=WAIT) as client:
            await client.call("x")
        *opening, initialized, _, call, end = server.requests
    assert {each.headers.get("cookie") for each in opening} == {headers.get("Cookie")}
    assert [each.method or each.verb for each in (initialized, call, end)] == [
        "notifications/initialized",
        "tools/call",
        "DELETE",
    ]
    assert {each.headers["cookie"] for each in (initialized, call, end)} == {sent}


@for_each(
    ("attributes", "sent"),
    [
        ("Max-Age=0", False),
        ("path=/; max-age = -1; Expires=Fri, 01 Jan 2100 00:00:00 GMT", False),
        ("Expires=Thu, 01 Jan 1970 00:00:00 GMT", False),
        ("expires=Thu, 01-Jan-1970 00:00:01 GMT; Secure", False),
        ("Max-Age=60; Expires=Thu, 01 Jan 1970 00:00:00 GMT", True),
        ("Max-Age=soon; Expires=never", True),
        ("Expires", True),
    ],
)
async def test_deleted_cookies_are_not_sent_back(attributes: str, sent: bool) -> None:
    set_twice = f"s1\r\nSet-Cookie: LB=one\r\nSet-Cookie: LB=two; {attributes}\r\nSet-Cookie: nothing; a=b"
    async with misbehaving(with_handshake(lambda asked: asked.result(DONE), set_twice)) as server:
        async with Client(server.url, timeout=WAIT) as client:
            await client.call("x")
        assert {each.headers.get("cookie") for each in server.requests[-2:]} == {"LB=two" if sent else None}


async def test_cookies_without_a_session_are_dropped() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.result(DONE, more="Set-Cookie: person=ada\r\n")

    async with connected(with_handshake(behave)) as (server, client):
        await client.call("x")
        await client.call("x")
    assert not any("cookie" in each.headers for each in server.requests)


@for_each("status", ["400 Bad Request", "404 Not Found", "500 Internal Server Error", "503 Service Unavailable"])
async def test_rejected_messages_of_an_event_stream_are_the_reason(status: str) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        if asked.verb == "GET":
            await asked.stream()
            await asked.chunk(b"event: endpoint\ndata: /messages\n\n")
            await asyncio.get_running_loop().create_future()
        await asked.reply(b"", status=status if asked.path == "/messages" else "405 Method Not Allowed")

    async with misbehaving(behave) as server:
        with pytest.raises(ClientError, match=f"status {status[:3]}"):
            async with Client(server.url.replace("/mcp", "/sse"), timeout=WAIT):
                pass


async def test_event_stream_cookies_are_sent_with_messages() -> None:
    streams: list[ReceivedRequest] = []

    async def behave(asked: ReceivedRequest) -> None:
        if asked.verb == "GET":
            streams.append(asked)
            await asked.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nSet-Cookie: LB=one; Path=/\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
            )
            await asked.chunk(b"event: endpoint\ndata: /messages\n\n")
            await asyncio.get_running_loop().create_future()
        await asked.reply(b"", status="202 Accepted" if streams else "405 Method Not Allowed")
        if streams and "id" in asked.message:
            await streams[0].event(asked.answer({**DONE, **GREETING}), "event: message\n")

    async with misbehaving(behave) as server:
        async with Client(server.url.replace("/mcp", "/sse"), timeout=WAIT) as client:
            await client.call("x")
        messages = [each.headers.get("cookie") for each in server.requests if each.path == "/messages"]
    assert messages
    assert set(messages) == {"LB=one"}


@for_each("status", ["400 Bad Request", "404 Not Found", "500 Internal Server Error"])
async def test_a_server_that_rejects_initialized_can_be_used(status: str) -> None:
    async def refusing(asked: ReceivedRequest) -> None:
        if asked.method == "notifications/initialized":
            error = {"jsonrpc": "2.0", "id": None, "error": {"code": -32601, "message": "Method not found"}}
            await asked.reply(json.dumps(error).encode(), status=status)
        else:
            await with_handshake(lambda asked: asked.result(DONE))(asked)

    async with connected(refusing) as (_, client):
        assert (await client.call("x")).text == "done"


@for_each(
    "value", [("maximum", "x"), ("maximum", None), ("multipleOf", "a"), ("enum", 5), ("type", 5), ("minimum", {})]
)
async def test_output_schemas_with_unusable_values_are_repaired(value: tuple[str, Any]) -> None:
    keyword, unusable = value
    schema = {"type": "object", "properties": {"a": {keyword: unusable}, "b": {"type": "string"}}}

    async def behave(asked: ReceivedRequest) -> None:
        tools = [{"name": each, "inputSchema": {"type": "object"}, "outputSchema": schema} for each in ("x", "wrong")]
        data = {"a": 1, "b": 2 if asked.message.get("params", {}).get("name") == "wrong" else ""}
        await asked.result({"tools": tools, "content": [], "structuredContent": data})

    async with connected(with_handshake(behave)) as (_, client):
        await client.tools()
        assert (await client.call("x")).data == {"a": 1, "b": ""}
        with pytest.raises(InvalidResponse, match="'b' must be a string"):
            await client.call("wrong")


async def test_draft_4_bounds_in_an_output_schema_are_converted() -> None:
    schema = {"type": "object", "properties": {"a": {"maximum": 2, "exclusiveMaximum": True}}}

    async def behave(asked: ReceivedRequest) -> None:
        tools = [{"name": "x", "inputSchema": {"type": "object"}, "outputSchema": schema}]
        await asked.result({"tools": tools, "content": [], "structuredContent": {"a": 1}})

    async with connected(with_handshake(behave)) as (_, client):
        await client.tools()
        assert (await client.call("x")).data == {"a": 1}


@for_each("streams", [False, True])
async def test_responses_may_be_batches(streams: bool) -> None:  # as in 2025-03-26, and from some servers always
    logged: list[Any] = []

    async def behave(asked: ReceivedRequest) -> None:
        answer = asked.answer(DONE).decode()
        note = '{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"working"}}'
        if streams:
            await asked.stream()
            for batch in ("[]", "[[1]]", f"  [{note},{answer}]"):
                await asked.event(batch.encode())
            await asked.end()
        else:
            await asked.reply(f"\ufeff\n[{answer},{note}]".encode())

    async with connected(with_handshake(behave), on_log=lambda note: logged.append(note.data)) as (_, client):
        assert [(await client.call("x")).text for _ in range(2)] == ["done", "done"]
    assert logged == ["working"] * 2


async def test_a_server_that_never_responds_to_initialized_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.client._transports.http._INITIALIZED_TIMEOUT", NEVER)

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method != "notifications/initialized":
            await with_handshake(lambda call: call.result(DONE))(asked)

    async with connected(behave) as (_, client):
        assert (await client.call("x")).text == "done"


@for_each("annotations", [{"audience": ["system"]}, {"audience": "user", "priority": 0.5}, {"priority": 7}, [], "high"])
async def test_malformed_hints_do_not_fail_a_result(annotations: object) -> None:
    text = {"type": "text", "text": "done", "annotations": annotations}

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "prompts/get":
            await asked.result({"messages": [{"role": "user", "content": text}]})
        else:
            await asked.result({"content": [text], "structuredContent": {"annotations": annotations}})

    async with connected(with_handshake(behave)) as (_, client):
        result = await client.call("x")
        assert result.text == "done"
        assert result.data == {"annotations": annotations}
        assert (await client.prompt("p")).text == "done"


UNREADABLE: list[Any] = [
    {"type": "hologram", "data": "x"},
    {"type": 5},
    {"type": None, "text": "t"},
    {"text": "no type"},
    {"type": "text", "text": 5},
    {"type": "image", "data": "%%", "mimeType": "image/png"},
    {"type": "resource_link", "name": "no uri"},
    {"type": "resource"},
    {"type": "resource", "resource": {"text": "no uri"}},
    {"type": "resource", "resource": {"uri": "a://b", "blob": "%%"}},
    {},
    None,
    7,
    ["a"],
]


@for_each("block", UNREADABLE)
async def test_unknown_and_malformed_blocks_do_not_cost_the_rest_of_a_result(
    block: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "millstream.client")  # results are private
    text = {"type": "text", "text": "done"}
    messages = [{"role": "user", "content": text}, {"role": "user", "content": block}, 5]

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "prompts/get":
            await asked.result({"messages": messages})
        elif asked.method == "resources/read":
            await asked.result({"contents": [{"uri": "a://b", "text": "done"}, {"uri": 5, "text": "x"}, block]})
        else:
            await asked.result({"content": [block, text], "structuredContent": {"a": 1}})

    async with connected(with_handshake(behave)) as (_, client):
        result = await client.call("x")
        assert ([each.text for each in result.content if isinstance(each, Text)], result.data) == (["done"], {"a": 1})
        assert (await client.prompt("p")).text == "done"
        assert [each.text for each in await client.read("a://b")] == ["done"]
    assert "Skipped an item" in caplog.text


@for_each(
    "more",
    [{"size": "x"}, {"icons": "x"}, {"mimeType": 5, "_meta": 5}, {"title": {}, "annotations": "x"}],
)
async def test_malformed_optional_members_do_not_cost_their_block(more: Json) -> None:
    link = {"type": "resource_link", "uri": "a://b", "name": "n", **more}

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "prompts/get":
            await asked.result({"messages": [{"role": "user", "content": link}], "_meta": 5})
        else:
            await asked.result({"content": [link], "_meta": 5})

    async with connected(with_handshake(behave)) as (_, client):
        assert (await client.call("x")).content == [ResourceLink("a://b", "n")]
        assert (await client.prompt("p")).messages[0].content == ResourceLink("a://b", "n")


async def test_malformed_response_in_a_batch_does_not_affect_the_others() -> None:
    logged: list[Any] = []

    async def behave(asked: ReceivedRequest) -> None:
        note = '{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"working"}}'
        odd = '5,{"jsonrpc":"2.0","id":[1],"result":{}},{"jsonrpc":"1.0"},null'
        await asked.reply(f"[{odd},{note},{asked.answer(DONE).decode()},{odd}]".encode())

    async with connected(with_handshake(behave), on_log=lambda note: logged.append(note.data)) as (_, client):
        assert (await client.call("x")).text == "done"
    assert logged == ["working"]


async def test_malformed_parts_of_listed_items_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    tools: list[Any] = [
        {"name": "a", "inputSchema": {}, "annotations": {"readOnlyHint": "yes", "title": 5}, "icons": "x"},
        {"name": "b", "inputSchema": {}, "title": 5, "description": "B"},
        {"name": 5, "inputSchema": {}},
        7,
    ]

    async with connected(with_handshake(lambda asked: asked.result({"tools": tools}))) as (_, client):
        found = await client.tools()
    assert [(each.name, each.title, each.description) for each in found] == [("a", None, None), ("b", None, "B")]
    assert "Left out icons, annotations of an item" in caplog.text
    assert caplog.text.count("Skipped an item") == 2


BINARY = bytes(range(200, 256)) + b"?>"
STANDARD = base64.b64encode(BINARY).decode()


@for_each(
    "sent",
    [
        base64.urlsafe_b64encode(BINARY).decode(),
        STANDARD.rstrip("="),
        f"data:image/png;base64,{STANDARD}",
        f"{STANDARD[:40]}\r\n{STANDARD[40:]}\r\n",
    ],
    ids=["for URLs", "without padding", "data URI", "lines"],
)
async def test_variants_of_base64_are_read(sent: str) -> None:
    contents = {"uri": "a://b", "blob": sent, "text": None}

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "resources/read":
            await asked.result({"contents": [contents]})
        else:
            image = {"type": "image", "data": sent, "mimeType": "image/png"}
            structure = {"data": sent}
            await asked.result(
                {"content": [image, {"type": "resource", "resource": contents}], "structuredContent": structure}
            )

    async with connected(with_handshake(behave)) as (_, client):
        result = await client.call("x")
        image, embedded = result.content
        assert isinstance(image, Image)
        assert isinstance(embedded, EmbeddedResource)
        assert embedded.resource is not None
        assert image.data == embedded.resource.blob == (await client.read("a://b"))[0].blob == BINARY
        assert result.data == {"data": sent}


SCHEMA = {"type": "object", "properties": {}}


@for_each("tools", [[{}] * 2_000, [{"name": "a", "inputSchema": {"x-mcp-header": "a"}}] * 2_000])
async def test_thousands_of_invalid_tools_cause_few_warnings(
    tools: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.result({"tools": [*tools, {"name": "good", "inputSchema": SCHEMA}], "ttlMs": 0})

    caplog.clear()
    async with connected(with_discovery(behave)) as (_, client):
        assert [each.name for each in await client.tools()] == ["good"]
    warnings = [each.getMessage() for each in caplog.records if "Skipped" in each.getMessage()]
    assert len(warnings) == 11
    assert "990 more" in warnings[-1]


async def test_header_annotations_are_dropped_when_the_list_changes() -> None:
    numbers = itertools.count()

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "tools/call":
            await asked.result({"content": []})
            return
        names = [f"t{next(numbers)}" for _ in range(4_000)]
        schema = {"type": "object", "properties": {"a": {"type": "string", "x-mcp-header": "a"}}}
        await asked.result({"tools": [{"name": each, "inputSchema": schema} for each in names], "ttlMs": 0})

    async with connected(with_discovery(behave)) as (server, client):
        for _ in range(3):
            await client.tools(fresh=True)
        for name in ("t0", "t11999"):
            await client.call(name, a="1")
    assert [each.headers.get("mcp-param-a") for each in server.requests[-2:]] == [None, "1"]


async def test_cached_results_have_a_total_size() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        contents = [{"uri": "doc://1", "text": "x" * 40_000}]
        await asked.result({"contents": contents, "ttlMs": 60_000, "cacheScope": "private", "resultType": "complete"})

    options = Options(max_bytes=100_000)
    async with misbehaving(with_discovery(behave)) as server:
        async with Client(server.url, timeout=WAIT, options=options) as client:
            for uri in ("doc://1", "doc://2", "doc://2", "doc://3", "doc://3", "doc://2", "doc://1"):
                await client.read(uri)
        read = [each.message["params"]["uri"] for each in server.requests if each.method == "resources/read"]
    assert read == ["doc://1", "doc://2", "doc://3", "doc://1"]


async def test_lost_sessions_are_recognized_only_at_the_beginning_of_a_reply() -> None:
    """A reply may have 64 MiB, which would take a second to search."""
    # After the first one, the client checks with a ping that the session still exists.
    bodies = iter([b"x" * 20_000 + b" session not found", b"", b"Error: session not found"])

    async def behave(asked: ReceivedRequest) -> None:
        if not (body := next(bodies, b"")):
            await asked.result({})
        else:
            await asked.reply(body, status="400 Bad Request", type="text/plain")

    async with misbehaving(with_handshake(behave, "s1")) as server:
        async with Client(server.url, timeout=WAIT, revision="2025-11-25") as client:
            with pytest.raises(Exception, match="responded with status 400"):
                await client.request("ping")
            await client.request("ping")  # in a new session
        assert [each.method for each in server.requests].count("initialize") == 2


async def test_websockets_are_not_compressed() -> None:
    """A small compressed message could become a large one."""
    offered: list[str] = []

    async def behave(socket: ServerConnection) -> None:
        assert socket.request is not None
        offered.extend(socket.request.headers.get_all("Sec-WebSocket-Extensions"))
        async for message in socket:
            await socket.send(json.dumps({"jsonrpc": "2.0", "id": json.loads(message)["id"], "result": OFFER}))

    async with serve(behave, "127.0.0.1", 0, subprotocols=[Subprotocol("mcp")]) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with Client(f"ws://127.0.0.1:{port}/ws", timeout=WAIT) as client:
            assert client.transport == "websocket"
    assert offered == []
