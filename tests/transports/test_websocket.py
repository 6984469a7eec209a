"""WebSocket: both dialects, both eras, who may connect, and how a socket ends. A real client on a real socket."""

import asyncio
import json
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from millstream.hub import HubLimits
from millstream.http import Request
from millstream.protocol.errors import ProtocolError
from millstream.protocol.principal import Principal
from socket_world import WAIT, WAYS, ask, end_of, hear, tell, world
from wire import LATEST_HANDSHAKE, enveloped, request

MCP: Any = "mcp"
INITIALIZE = {
    "protocolVersion": LATEST_HANDSHAKE,
    "capabilities": {"elicitation": {}},
    "clientInfo": {"name": "t", "version": "1"},
}
FORM = {"elicitation": {"form": {}}}


def call(tool: str, id: int = 1, **arguments: Any) -> dict[str, Any]:
    """A tool call of the handshake era."""
    return request("tools/call", {"name": tool, "arguments": arguments}, id)


@pytest.mark.parametrize("way", WAYS)
async def test_a_handshake_client_lists_and_calls_over_the_subprotocol(way: str) -> None:
    """Digest §4.1, custom transports: the format and the lifecycle are those of every transport."""
    async with world(way) as app, app.client(MCP) as socket:
        assert socket.subprotocol == "mcp"
        answer = await ask(socket, request("initialize", INITIALIZE, 0))
        assert answer["result"]["protocolVersion"] == LATEST_HANDSHAKE
        await tell(socket, {"jsonrpc": "2.0", "method": "notifications/initialized"})
        tools = (await ask(socket, request("tools/list", {}, "a")))["result"]["tools"]
        assert "add" in {tool["name"] for tool in tools}
        assert (await ask(socket, call("add", 2, a=1, b=2)))["result"]["content"][0]["text"] == "3"


@pytest.mark.parametrize("way", WAYS)
async def test_a_handshake_tool_asks_the_person_on_the_same_socket(way: str) -> None:
    """Digest §10.2: the question is a request of the server, its answer a response of the client."""
    async with world(way) as app, app.client(MCP) as socket:
        await ask(socket, request("initialize", INITIALIZE, 0))
        question = await ask(socket, call("name"))
        assert question["method"] == "elicitation/create"
        answer = {"jsonrpc": "2.0", "id": question["id"], "result": {"action": "accept", "content": {"name": "Ada"}}}
        assert "Ada" in (await ask(socket, answer))["result"]["content"][0]["text"]


@pytest.mark.parametrize("way", WAYS)
async def test_a_per_request_tool_asks_by_its_result(way: str) -> None:
    """Digest §6: the server writes no request; the client calls again with the answers and the state."""
    async with world(way) as app, app.client(MCP) as socket:
        first = (await ask(socket, enveloped("tools/call", {"name": "name", "arguments": {}}, 1, **FORM)))["result"]
        assert first["resultType"] == "input_required"
        key = next(iter(first["inputRequests"]))
        again = {
            "name": "name",
            "arguments": {},
            "inputResponses": {key: {"action": "accept", "content": {"name": "Ada"}}},
            "requestState": first["requestState"],
        }
        last = (await ask(socket, enveloped("tools/call", again, 2, **FORM)))["result"]
        assert last["resultType"] == "complete"
        assert "Ada" in last["content"][0]["text"]


async def test_both_eras_share_one_socket() -> None:
    """The era is that of each message (`Connection`)."""
    async with world() as app, app.client(MCP) as socket:
        await ask(socket, request("initialize", INITIALIZE, 0))
        newer = await ask(socket, enveloped("tools/call", {"name": "add", "arguments": {"a": 1, "b": 1}}))
        assert newer["result"]["resultType"] == "complete"
        assert "resultType" not in (await ask(socket, call("add", 2, a=1, b=1)))["result"]


async def test_progress_comes_before_the_answer() -> None:
    """Digest §10.5."""
    async with world() as app, app.client(MCP) as socket:
        await ask(socket, request("initialize", INITIALIZE, 0))
        await tell(socket, request("tools/call", {"name": "steps", "arguments": {}, "_meta": {"progressToken": "p"}}))
        said = [await hear(socket) for _ in range(4)]
        assert [message.get("method") for message in said] == [*["notifications/progress"] * 3, None]
        assert said[-1]["result"]["content"][0]["text"] == "done"


async def test_a_cancelled_call_is_not_answered() -> None:
    """Digest §10.6."""
    async with world() as app, app.client(MCP) as socket:
        await ask(socket, request("initialize", INITIALIZE, 0))
        await tell(socket, call("forever", 7))
        await app.until(lambda: len(app.runtime.dispatcher.calls) == 1)
        await tell(socket, {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}})
        assert (await ask(socket, request("ping", id=8)))["id"] == 8
        await app.until(lambda: not app.runtime.dispatcher.calls)


async def test_a_listen_stream_runs_on_the_socket() -> None:
    """Digest §7: acknowledged first, then changes, each with the id of the subscription."""
    async with world() as app, app.client(MCP) as socket:
        wanted = {"notifications": {"toolsListChanged": True}}
        first = await ask(socket, enveloped("subscriptions/listen", wanted, "l"))
        assert first["method"] == "notifications/subscriptions/acknowledged"
        app.server.remove_tool("fails")
        change = await hear(socket)
        assert change["method"] == "notifications/tools/list_changed"
        assert change["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"] == "l"


@pytest.mark.parametrize(("revision", "answered"), [("2025-03-26", True), ("2025-06-18", False)])
async def test_batches_belong_to_one_revision(revision: str, answered: bool) -> None:
    """Digest §1."""
    async with world() as app, app.client(MCP) as socket:
        await ask(socket, request("initialize", {**INITIALIZE, "protocolVersion": revision}, 0))
        answer = await ask(socket, [request("ping", id=1), request("ping", id=2)])
        assert sorted(each["id"] for each in answer) == [1, 2] if answered else answer["error"]["code"] == -32600


async def test_text_that_is_no_json_is_a_parse_error_and_the_socket_stays() -> None:
    """JSON-RPC 2.0 §5.1."""
    async with world() as app, app.client(MCP) as socket:
        assert (await ask(socket, "{"))["error"]["code"] == -32700
        assert (await ask(socket, enveloped("ping", id=3)))["id"] == 3


# The dialect


@pytest.mark.parametrize("way", WAYS)
async def test_the_snippet_of_the_first_seed_is_answered(way: str) -> None:
    """Seed 001, example 6."""
    async with world(way) as app, app.client() as socket:
        hello = await hear(socket)
        assert (hello["type"], hello["server"]["name"]) == ("connected", "socket")
        assert hello["client_id"]
        answer = await ask(socket, {"type": "mcp_call", "tool": "add", "arguments": {"a": 1, "b": 2}})
        assert (answer["type"], answer["tool"]) == ("mcp_result", "add")
        assert answer["result"]["content"][0]["text"] == "3"
        assert "id" not in answer


@pytest.mark.parametrize("id", [1, -1, 1.5, "a", "\x00", 10**30])
async def test_the_id_of_a_message_comes_back_with_its_answer(id: Any) -> None:
    """Our dialect: text and numbers, as they stood."""
    async with world() as app, app.client() as socket:
        await hear(socket)
        assert (await ask(socket, {"type": "ping", "id": id})) == {"type": "pong", "id": id}
        answer = await ask(socket, {"type": "mcp_call", "tool": "add", "arguments": {"a": 1, "b": 2}, "id": id})
        assert answer["id"] == id


BAD = [
    ("{", -32700),
    ("", -32700),
    ('{"type":"ping"} x', -32700),
    ("7", -32600),
    ("null", -32600),
    ("{}", -32601),
    ('{"type":7}', -32600),
    ('{"type":"dance","id":1}', -32601),
    ('{"type":"mcp_call","id":1}', -32602),
    ('{"type":"mcp_call","tool":7,"id":1}', -32602),
    ('{"type":"mcp_call","tool":"none","id":1}', -32602),
    ('{"type":"subscribe","channel":"a b","id":1}', -32602),
    ('{"type":"subscribe","channel":"a\\u0000","id":1}', -32602),
    ('{"type":"subscribe","channel":"","id":1}', -32602),
    ('{"type":"subscribe","channel":"$client.x","id":1}', -32003),
    ('{"type":"subscribe","name":"a\\nb","id":1}', -32602),
    ('{"type":"unsubscribe","channel":"nowhere","id":1}', -32602),
    ('{"type":"publish","id":1}', -32602),
    ('{"type":"publish","data":1,"channel":"*","id":1}', -32602),
    ('{"type":"publish","data":1,"channel":"$client.x","id":1}', -32003),
    ('{"type":"publish","data":1,"event":"a\\r\\nb","id":1}', -32602),
    ('{"type":"publish","data":1,"event":"gap","id":1}', -32602),
    ('{"type":"publish","data":1,"event_id":"a\\nb","id":1}', -32602),
    ('{"type":"ping","id":' + "[" * 100 + "]" * 100 + "}", -32700),
    ("[" * 100_000, -32700),
]


@pytest.mark.parametrize(("text", "code"), BAD, ids=range(len(BAD)))
async def test_a_wrong_message_is_a_clear_error_and_the_socket_stays(text: str, code: int) -> None:
    """Issue "Bad input": an error in the dialect that asked, and nothing lost."""
    async with world() as app, app.client() as socket:
        await hear(socket)
        answer = await ask(socket, text)
        assert answer["type"] == "error"
        assert answer["error"]["code"] == code, answer
        assert answer["error"]["message"]
        assert answer.get("id") == (1 if '"id":1' in text else None)
        assert (await ask(socket, {"type": "ping"}))["type"] == "pong"


async def test_wrong_arguments_are_told_in_the_result() -> None:
    """Digest §9.1: 2025-11-25, whose shapes the dialect has, tells the model what to fix."""
    async with world() as app, app.client() as socket:
        await hear(socket)
        for arguments in ([], {"a": 1}, {"a": 1, "b": "x"}):
            answer = await ask(socket, {"type": "mcp_call", "tool": "add", "arguments": arguments, "id": 1})
            assert (answer["type"], answer["id"], answer["result"]["isError"]) == ("mcp_result", 1, True)


async def test_a_failing_tool_shows_its_incident_and_nothing_else() -> None:
    """STYLE 21."""
    async with world() as app, app.client() as socket:
        await hear(socket)
        answer = await ask(socket, {"type": "mcp_call", "tool": "fails"})
        assert answer["result"]["isError"]
        assert "incident" in answer["result"]["content"][0]["text"]
        assert "secret" not in json.dumps(answer)


async def test_a_tool_that_must_ask_says_that_the_dialect_cannot() -> None:
    """The dialect has no way back for an answer."""
    async with world() as app, app.client() as socket:
        await hear(socket)
        answer = await ask(socket, {"type": "mcp_call", "tool": "name", "id": 1})
        assert answer["id"] == 1
        assert answer.get("error") or answer["result"]["isError"]


async def test_json_rpc_is_understood_beside_the_dialect() -> None:
    """Issue 3: both on one connection."""
    async with world() as app, app.client() as socket:
        await hear(socket)
        assert (await ask(socket, enveloped("tools/list", id="x")))["id"] == "x"
        assert (await ask(socket, [1]))[0]["error"]["code"] == -32600
        assert (await ask(socket, {"type": "ping"}))["type"] == "pong"


@pytest.mark.parametrize("way", WAYS)
async def test_what_one_socket_publishes_another_hears(way: str) -> None:
    """Issue 3, item 2."""
    async with world(way) as app, app.client() as one, app.client() as other:
        await hear(one), await hear(other)
        await tell(other, {"type": "subscribe", "channel": "news.*", "id": 1})
        assert (await hear(other))["type"] == "position"
        assert await hear(other) == {"type": "subscribed", "id": 1, "channel": "news.*"}
        sent = await ask(one, {"type": "publish", "channel": "news.a", "data": {"n": 1}, "event": "tick", "id": "p"})
        assert (sent["type"], sent["id"], sent["subscribers"]) == ("published", "p", 1)
        event = await hear(other)
        assert event == {
            "type": "event", "channel": "news.a", "event": "tick", "id": sent["event_id"], "data": '{"n":1}',
        }  # fmt: skip


async def test_after_unsubscribing_nothing_comes_and_the_socket_stays() -> None:
    """Our dialect."""
    async with world() as app, app.client() as socket:
        await hear(socket)
        await tell(socket, {"type": "subscribe"})
        assert [(await hear(socket))["type"] for _ in range(2)] == ["position", "subscribed"]
        assert (await ask(socket, {"type": "subscribe"}))["error"]["code"] == -32600
        assert (await ask(socket, {"type": "unsubscribe"}))["type"] == "unsubscribed"
        assert (await app.hub.publish("broadcast", "x")).subscribers == 0
        assert (await ask(socket, {"type": "ping"}))["type"] == "pong"


async def test_a_socket_comes_back_with_the_last_id_and_misses_nothing() -> None:
    """Issue 3, item 1: resume by the id of the last event, in order, none twice."""
    async with world() as app:
        async with app.client() as socket:
            await hear(socket)
            await tell(socket, {"type": "subscribe"})
            place = await hear(socket)
        for n in range(250):
            await app.hub.publish("broadcast", f"line {n}\nof two")
        async with app.client() as socket:
            await hear(socket)
            await tell(socket, {"type": "subscribe", "last_event_id": place["id"]})
            assert [(await hear(socket))["data"] for _ in range(250)] == [f"line {n}\nof two" for n in range(250)]
            assert [(await hear(socket))["type"] for _ in range(2)] == ["position", "subscribed"]


async def test_a_gap_is_told_before_what_is_left() -> None:
    """Issue 3, item 1."""
    async with world() as app, app.client() as socket:
        await hear(socket)
        await app.hub.publish("broadcast", "left")
        gap = await ask(socket, {"type": "subscribe", "last_event_id": "never.1"})
        assert gap == {"type": "gap", "reason": "unknown"}
        assert (await hear(socket))["data"] == "left"


async def test_a_named_subscriber_is_present_until_its_socket_closes() -> None:
    """Issue 3, item 1: presence."""
    async with world() as app:
        async with app.client() as socket:
            hello = await hear(socket)
            await tell(socket, {"type": "subscribe", "name": "Ada"})
            await app.until(lambda: app.hub.stats().published > 0)
            (member,) = await app.hub.presence("broadcast")
            assert (member.client_id, member.name) == (hello["client_id"], "Ada")
        await app.until(lambda: app.hub.stats().published > 1)
        assert await app.hub.presence("broadcast") == []


async def test_caps_of_the_hub_are_errors_of_the_dialect() -> None:
    """Issue 3: too many subscriptions of one socket, and of all."""
    limits = HubLimits(max_channels_per_subscriber=2, max_connections=3)
    async with world(limits=limits) as app, app.client() as one, app.client() as other:
        await hear(one), await hear(other)
        answers = []
        for socket, channel in [(one, "a"), (one, "b"), (one, "c"), (other, "a"), (other, "b")]:
            answer = await ask(socket, {"type": "subscribe", "channel": channel})
            answers.append(answer["error"]["code"] if answer["type"] == "error" else (await hear(socket))["type"])
        assert answers == ["subscribed", "subscribed", -32000, "subscribed", -32000]


async def test_a_forbidden_channel_is_refused_in_the_dialect() -> None:
    """Issue "Bad input": publishing to a forbidden channel."""

    def authorize(principal: Principal | None, action: str, channel: str) -> bool:
        return channel != f"no-{action}"

    async with world(authorize=authorize) as app, app.client() as socket:
        await hear(socket)
        for message in ({"type": "subscribe", "channel": "no-subscribe"},
                        {"type": "publish", "channel": "no-publish", "data": 1}):  # fmt: skip
            assert (await ask(socket, message))["error"]["code"] == -32003


# Who may connect


async def test_credentials_are_judged_before_the_socket_is_accepted() -> None:
    """FACTS §1 row 3: authentication before accept, and the query holds no credential."""

    async def authenticate(request: Request) -> Principal | None:
        assert request.query == b""
        if request.headers.get(b"authorization") != b"Bearer good":
            raise ProtocolError(-32001, "Who are you?", status=401)
        return Principal("ada")

    async with world(authenticate=authenticate) as app:
        for path in ("/ws", "/ws?access_token=good", "/ws?authorization=Bearer%20good"):
            with pytest.raises(InvalidStatus) as refused:
                async with app.client(path=path):
                    pass
            assert refused.value.response.status_code == 401
        async with app.client(additional_headers={"authorization": "Bearer good"}) as socket:
            assert (await hear(socket))["type"] == "connected"


@pytest.mark.parametrize("way", WAYS)
async def test_one_socket_too_many_is_503_with_a_time_to_come_back(way: str) -> None:
    """Issue "Bad input"."""
    async with world(way, max_streams=2) as app:
        async with app.client(), app.client(MCP):
            with pytest.raises(InvalidStatus) as refused:
                async with app.client():
                    pass
            assert refused.value.response.status_code == 503
            assert refused.value.response.headers["retry-after"] == "5"
        await app.until(lambda: len(app.runtime.streams) == 0)
        async with app.client() as socket:
            await hear(socket)


async def test_a_hundred_sockets_are_served_at_once() -> None:
    """Each gets its own answers, and all hear one event."""
    async with world(max_threads=100) as app, asyncio.timeout(WAIT * 4), asyncio.TaskGroup() as group:
        here, told = asyncio.Semaphore(0), asyncio.Event()

        async def one(n: int) -> None:
            async with app.client() as socket:
                await hear(socket)
                answer = await ask(socket, {"type": "mcp_call", "tool": "add", "arguments": {"a": n, "b": n}, "id": n})
                assert (answer["id"], answer["result"]["content"][0]["text"]) == (n, str(2 * n))
                await tell(socket, {"type": "subscribe"})
                assert [(await hear(socket))["type"] for _ in range(2)] == ["position", "subscribed"]
                here.release()
                assert (await hear(socket))["data"] == "all"
                await told.wait()

        for n in range(100):
            group.create_task(one(n))
        for _ in range(100):
            await here.acquire()
        assert (await app.hub.publish("broadcast", "all")).subscribers == 100
        told.set()
