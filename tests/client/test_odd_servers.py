"""Servers that answer, but not as anybody would expect: each case ends in a result, or in one typed error.

Real sockets (`rude`). The rules are our choice where no page is named.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest

from cases import for_each
from client.rude import DONE, OFFER, Asked, assert_readable, discovering, fails, greeting, rude
from millstream import Client
from millstream.client import BadAnswer, NoAnswer, Options, TooLarge
from millstream.client._errors import AccessDenied, ClientError, NotMcp, TargetError
from patience import WAIT

NEVER = 0.05
"""A timeout that is meant to run out."""
Behave = Callable[[Asked], Awaitable[None]]


def once(data: bytes) -> bytes:
    """A whole reply with this answer."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(data) + data


def endless(start: bytes) -> Behave:
    """A reply that begins so, and goes on with lines that are no part of its body, each with a name of its own."""

    async def behave(asked: Asked) -> None:
        await asked.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        await asked.write(start)
        number = 0
        while True:
            await asked.write(b"".join(b"x%d: y\r\n" % each for each in range(number, number + 1000)))
            number += 1000

    return behave


@for_each("start", [b"2\r\n{}\r\n0\r\n", b"2;x="], ids=["trailers", "an extension of a chunk"])
async def test_what_is_no_part_of_a_body_has_a_limit_too(start: bytes) -> None:
    """Without it, trailers fill the memory until the timeout."""
    letters = start if start.endswith(b"\n") else start + b"x" * 1_000_000
    await fails(discovering(endless(letters)), TooLarge, "beside its body")


@for_each("kind", ["application/json", "text/event-stream"])
async def test_a_compressed_answer_is_called_what_it_is(kind: str) -> None:
    """The client says that it takes none: RFC 9110 §12.5.3, where nobody asks."""

    async def behave(asked: Asked) -> None:
        await asked.reply(b"\x1f\x8b\x08\x00", type=kind, more="Content-Encoding: gzip\r\n")

    await fails(discovering(behave), BadAnswer, "compresses its responses")


@for_each("cut", [None, -4], ids=["whole", "almost whole"])
async def test_a_second_answer_to_a_request_never_reaches_another_call(cut: int | None) -> None:
    """The connection was given to two calls at once."""

    async def behave(asked: Asked) -> None:
        said = once(asked.answer(DONE))
        await asked.write(said + said[:cut])

    async with asyncio.timeout(WAIT), rude(discovering(behave)) as server, Client(server.url, timeout=WAIT) as client:
        await client.call("x")
        results = await asyncio.gather(*(client.call("x") for _ in range(6)))
    assert [result.text for result in results] == ["done"] * 6


async def test_a_page_that_people_are_sent_to_changes_nothing_for_messages() -> None:
    """A server that sends a GET of its endpoint to its documentation is still at its endpoint."""

    async def behave(asked: Asked) -> None:
        if asked.path == "/docs":
            await asked.reply(b"<p>Read this", type="text/html")
        elif asked.verb == "GET":
            await asked.reply(b"", status="302 Found", more="Location: /docs\r\n")
        else:
            await asked.result(DONE)

    async def ask(asked: Asked) -> None:
        await (behave if asked.verb == "GET" else greeting(behave))(asked)

    async with asyncio.timeout(WAIT), rude(ask) as server, Client(server.url, timeout=WAIT) as client:
        assert (await client.call("x")).text == "done"
        assert "/docs" in [asked.path for asked in server.asked]


@for_each("place", ["http://[bad", "file:///etc/passwd", "javascript:alert(1)"])
async def test_a_redirect_to_what_is_no_url(place: str) -> None:
    """It ends like any other redirect that can't be followed."""

    async def behave(asked: Asked) -> None:
        await asked.reply(b"", status="307 Temporary Redirect", more=f"Location: {place}\r\n")

    await fails(discovering(behave), TargetError, "not a URL")


@for_each("number", [b"1e999", b"9" * 6000, b'"\xff"', b'{"deep":' * 900 + b"1" + b"}" * 900])
async def test_structured_content_that_python_cannot_hold(number: bytes) -> None:
    """It's read when the program asks for it, and fails as an answer of the wrong shape does, or not at all."""

    async def behave(asked: Asked) -> None:
        content = {"resultType": "complete", "content": [], "structuredContent": {"a": "@"}}
        await asked.reply(asked.answer(content).replace(b'"@"', number))

    async with asyncio.timeout(WAIT), rude(discovering(behave)) as server, Client(server.url, timeout=WAIT) as client:
        result = await client.call("x")
        if number.startswith(b"{"):
            assert "deep" in result.data["a"]
            return
        with pytest.raises(BadAnswer) as caught:
            _ = result.data
        assert_readable(caught.value, "wrong shape")
        with pytest.raises(BadAnswer):
            await client.request("tools/call", {"name": "x"})


@for_each(
    "body",
    [
        b'{"jsonrpc":"2.0","id":2,"result":{"content":[{"type":"text","text":"\xff"}]}}',
        b'{"jsonrpc":"2.0","id":"\xff","result":{}}',
        b'{"jsonrpc":"\xff","id":2,"result":{}}',
        b'{"jsonrpc":"2.0","method":"\xff"}',
        b'{"jsonrpc":"2.0","id":2,"result":{"resultType":"input_required"}}',
        b'{"jsonrpc":"2.0","id":%d,"result":{}}' % 10**400,
    ],
)
async def test_an_answer_that_is_wrong_in_one_place(body: bytes) -> None:
    """Letters that are no UTF-8, a server that wants something and doesn't say what, an endless number."""

    async def behave(asked: Asked) -> None:
        await asked.reply(body)

    await fails(discovering(behave), BadAnswer)


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
async def test_a_notification_of_the_wrong_shape_is_passed_over(note: dict[str, Any]) -> None:
    """The call that it comes with goes on."""
    text = json.dumps({"jsonrpc": "2.0", **note}).replace("@", "io.modelcontextprotocol/subscriptionId")

    async def behave(asked: Asked) -> None:
        await asked.stream()
        await asked.event(text.encode())
        await asked.event(asked.answer(DONE))
        await asked.end()

    async with asyncio.timeout(WAIT), rude(discovering(behave)) as server:
        client = Client(server.url, timeout=WAIT, on_change=lambda change: None)
        async with client:
            assert (await client.call("x")).text == "done"


async def test_an_event_id_with_any_letters_is_sent_back_as_utf_8() -> None:
    """WHATWG HTML §9.2.3: `Last-Event-ID` is encoded as UTF-8."""
    answer: list[bytes] = []

    async def behave(asked: Asked) -> None:
        await asked.stream()
        if "last-event-id" in asked.headers:
            assert asked.headers["last-event-id"].encode("latin-1").decode() == "→é"
            await asked.event(answer[0])
        else:
            answer.append(asked.answer(DONE))
            await asked.event(b"", "id: →é\nretry: 0\n")
        await asked.end()

    served = rude(greeting(behave, session="s"))
    async with asyncio.timeout(WAIT), served as server, Client(server.url, timeout=WAIT) as client:
        assert (await client.call("x")).text == "done"


@for_each("about", [5, [], {"name": 5}])
async def test_a_server_that_introduces_itself_oddly_is_used_all_the_same(about: object) -> None:
    """Its name and version are for display only."""

    async def behave(asked: Asked) -> None:
        if asked.method == "server/discover":
            await asked.result({**OFFER, "_meta": {"io.modelcontextprotocol/serverInfo": about}})
        else:
            await asked.result(DONE)

    async with asyncio.timeout(WAIT), rude(behave) as server, Client(server.url, timeout=WAIT) as client:
        assert client.server.name == ""
        assert (await client.call("x")).text == "done"


async def test_a_server_that_never_takes_a_notification_holds_nobody_up() -> None:
    """The end of the handshake, and what a program says later, have the client's timeout."""
    taken = ["notifications/initialized"]

    async def behave(asked: Asked) -> None:
        if asked.method.startswith("notifications/") and asked.method not in taken:
            await asyncio.get_running_loop().create_future()
        await greeting(behave)(asked)

    async with asyncio.timeout(WAIT), rude(behave) as server:
        async with Client(server.url, timeout=WAIT) as client:
            client.conversation.requests._timeout = NEVER
            with pytest.raises(NoAnswer) as late:
                await client.roots_changed()
        taken.clear()
        with pytest.raises(NoAnswer):
            async with Client(server.url, timeout=NEVER):
                pass
    assert_readable(late.value, "roots/list_changed")


async def test_a_server_that_puts_its_answer_off_for_ever_has_the_time_of_one_call() -> None:
    """A round without a question asks for patience; all of them together have the timeout of the call."""

    async def behave(asked: Asked) -> None:
        await asked.result({"resultType": "input_required", "requestState": "later"})

    async with asyncio.timeout(WAIT), rude(discovering(behave)) as server, Client(server.url) as client:
        with pytest.raises(NoAnswer):
            await client.call("x", timeout=1)
        assert len(server.asked) < Options().max_rounds


async def test_an_answer_of_ours_that_nobody_takes_does_not_stop_the_clock() -> None:
    """While the server waits for us the clock of a call stands still; while we wait for the server it doesn't."""

    async def behave(asked: Asked) -> None:
        if not asked.method:
            await asyncio.get_running_loop().create_future()
        await asked.stream()
        await asked.event(b'{"jsonrpc":"2.0","id":"q","method":"ping"}')
        await asyncio.get_running_loop().create_future()

    async with asyncio.timeout(WAIT), rude(greeting(behave, session="s")) as server, Client(server.url) as client:
        with pytest.raises(NoAnswer):
            await client.call("x", timeout=1)


async def test_an_answer_of_a_handler_that_is_no_json_is_an_error_for_the_server() -> None:
    """Without one, the server would wait for ever."""
    said: list[Any] = []

    async def behave(asked: Asked) -> None:
        if not asked.method:
            said.append(asked.message)
            await asked.reply(b"", status="202 Accepted")
            return
        await asked.stream()
        await asked.event(b'{"jsonrpc":"2.0","id":"q","method":"elicitation/create","params":{"message":"Well?"}}')
        while not said:  # noqa: ASYNC110  another request brings it
            await asyncio.sleep(0.01)
        await asked.event(asked.answer(DONE))

    async with asyncio.timeout(WAIT), rude(greeting(behave, session="s")) as server:
        client = Client(server.url, timeout=WAIT, elicit=lambda question: {"x": object()})
        async with client:
            await client.call("x")
    assert said[0]["error"]["message"] == "The client could not answer"


async def test_a_stream_that_closes_at_once_each_time_is_not_asked_for_without_a_pause() -> None:
    """`retry: 0` and a message on each connection: it was asked for thousands of times a second."""
    streams: list[float] = []
    enough = asyncio.Event()

    async def behave(asked: Asked) -> None:
        if asked.verb == "GET":
            streams.append(asyncio.get_running_loop().time())
            await asked.stream()
            await asked.event(b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}', "id: 1\nretry: 0\n")
            await asked.end()
            if len(streams) == 4:
                enough.set()
        else:
            await greeting(behave, session="s")(asked)

    async with asyncio.timeout(WAIT), rude(behave) as server, Client(server.url, timeout=WAIT):
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
async def test_what_a_refusal_quotes_is_short_and_on_one_line(
    status: str, type: str, more: str, body: bytes, expected: type[ClientError]
) -> None:
    """A server may say much; a sentence is one."""

    async def behave(asked: Asked) -> None:
        await asked.reply(body, status=status, type=type, more=more)

    await fails(discovering(behave), expected)
