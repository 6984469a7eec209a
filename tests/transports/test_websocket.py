"""WebSocket: JSON-RPC of both eras, access control, and a hundred concurrent clients, with a real client on a real
socket."""

import asyncio
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from cases import for_each
from http_messages import HttpRequest, Response
from millstream import Principal
from socket_world import TRANSPORTS, WAIT, ask, recv_json, send_json, world
from wire import LATEST_HANDSHAKE, per_request, request

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


@for_each("way", TRANSPORTS)
async def test_handshake_client_works_over_the_subprotocol(way: str) -> None:
    async with world(way) as app, app.client(MCP) as socket:
        assert socket.subprotocol == "mcp"
        answer = await ask(socket, request("initialize", INITIALIZE, 0))
        assert answer["result"]["protocolVersion"] == LATEST_HANDSHAKE
        await send_json(socket, {"jsonrpc": "2.0", "method": "notifications/initialized"})
        tools = (await ask(socket, request("tools/list", {}, "a")))["result"]["tools"]
        assert "add" in {tool["name"] for tool in tools}
        assert (await ask(socket, call("add", 2, a=1, b=2)))["result"]["content"][0]["text"] == "3"


@for_each("way", TRANSPORTS)
async def test_handshake_tools_ask_on_the_same_socket(way: str) -> None:
    async with world(way) as app, app.client(MCP) as socket:
        await ask(socket, request("initialize", INITIALIZE, 0))
        question = await ask(socket, call("name"))
        assert question["method"] == "elicitation/create"
        answer = {"jsonrpc": "2.0", "id": question["id"], "result": {"action": "accept", "content": {"name": "Ada"}}}
        assert "Ada" in (await ask(socket, answer))["result"]["content"][0]["text"]


@for_each("way", TRANSPORTS)
@for_each(
    "rest", [r'"result":{"action":"accept","content":{"name":"\ud800"}}', r'"error":{"code":1,"message":"\udc00"}']
)
async def test_call_fails_whose_question_is_answered_with_half_a_character(way: str, rest: str) -> None:
    async with world(way) as app, app.client(MCP) as socket:
        await ask(socket, request("initialize", INITIALIZE, 0))
        question = await ask(socket, call("name"))
        answer = await ask(socket, f'{{"jsonrpc":"2.0","id":"{question["id"]}",{rest}}}')
        assert (answer["id"], answer["result"]["isError"]) == (1, True)
        assert "half of a surrogate pair" in answer["result"]["content"][0]["text"]


@for_each("way", TRANSPORTS)
async def test_per_request_tools_ask_in_their_result(way: str) -> None:
    async with world(way) as app, app.client(MCP) as socket:
        first = (await ask(socket, per_request("tools/call", {"name": "name", "arguments": {}}, 1, **FORM)))["result"]
        assert first["resultType"] == "input_required"
        key = next(iter(first["inputRequests"]))
        again = {
            "name": "name",
            "arguments": {},
            "inputResponses": {key: {"action": "accept", "content": {"name": "Ada"}}},
            "requestState": first["requestState"],
        }
        last = (await ask(socket, per_request("tools/call", again, 2, **FORM)))["result"]
        assert last["resultType"] == "complete"
        assert "Ada" in last["content"][0]["text"]


async def test_both_eras_share_one_socket() -> None:
    async with world() as app, app.client(MCP) as socket:
        await ask(socket, request("initialize", INITIALIZE, 0))
        newer = await ask(socket, per_request("tools/call", {"name": "add", "arguments": {"a": 1, "b": 1}}))
        assert newer["result"]["resultType"] == "complete"
        assert "resultType" not in (await ask(socket, call("add", 2, a=1, b=1)))["result"]


@for_each("name", ["Cookie", "X-Forwarded-Access-Token"])
async def test_headers_as_large_as_in_other_requests_are_accepted(name: str) -> None:
    async with world() as app, app.client(MCP, additional_headers={name: "a=" + "x" * 20_000}) as socket:
        assert "result" in await ask(socket, request("initialize", INITIALIZE, 0))


async def test_progress_precedes_the_response() -> None:
    async with world() as app, app.client(MCP) as socket:
        await ask(socket, request("initialize", INITIALIZE, 0))
        await send_json(
            socket, request("tools/call", {"name": "steps", "arguments": {}, "_meta": {"progressToken": "p"}})
        )
        said = [await recv_json(socket) for _ in range(4)]
        assert [message.get("method") for message in said] == [*["notifications/progress"] * 3, None]
        assert said[-1]["result"]["content"][0]["text"] == "done"


async def test_canceled_calls_get_no_response() -> None:
    async with world() as app, app.client(MCP) as socket:
        await ask(socket, request("initialize", INITIALIZE, 0))
        await send_json(socket, call("forever", 7))
        await app.until(lambda: len(app.runtime.dispatcher.calls) == 1)
        await send_json(socket, {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}})
        assert (await ask(socket, request("ping", id=8)))["id"] == 8
        await app.until(lambda: not app.runtime.dispatcher.calls)


async def test_subscriptions_run_on_the_socket() -> None:
    """2026-07-28, subscriptions: acknowledged first, then changes, each with the id of the subscription."""
    async with world() as app, app.client(MCP) as socket:
        wanted = {"notifications": {"toolsListChanged": True}}
        first = await ask(socket, per_request("subscriptions/listen", wanted, "l"))
        assert first["method"] == "notifications/subscriptions/acknowledged"
        app.server.remove_tool("fails")
        change = await recv_json(socket)
        assert change["method"] == "notifications/tools/list_changed"
        assert change["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"] == "l"


@for_each(("revision", "answered"), [("2025-03-26", True), ("2025-06-18", False)])
async def test_only_one_revision_accepts_batches(revision: str, answered: bool) -> None:
    async with world() as app, app.client(MCP) as socket:
        await ask(socket, request("initialize", {**INITIALIZE, "protocolVersion": revision}, 0))
        answer = await ask(socket, [request("ping", id=1), request("ping", id=2)])
        assert sorted(each["id"] for each in answer) == [1, 2] if answered else answer["error"]["code"] == -32600


async def test_invalid_json_is_a_parse_error_and_keeps_the_socket() -> None:
    """JSON-RPC 2.0 §5.1."""
    async with world() as app, app.client(MCP) as socket:
        assert (await ask(socket, "{"))["error"]["code"] == -32700
        assert (await ask(socket, per_request("ping", id=3)))["id"] == 3


async def test_error_about_half_a_character_has_the_id_of_its_request() -> None:
    async with world() as app, app.client(MCP) as socket:
        answer = await ask(socket, r'{"jsonrpc":"2.0","id":7,"method":"ping","params":{"x":"\ud800"}}')
        assert (answer["id"], answer["error"]["code"]) == (7, -32700)
        assert (await ask(socket, per_request("ping", id=3)))["id"] == 3


# Who may connect


async def test_credentials_are_checked_before_accepting_the_socket() -> None:

    async def authenticate(request: HttpRequest) -> Principal | Response:
        assert request.query == b""
        if request.headers.get(b"authorization") != b"Bearer good":
            return Response(b"Who are you?\n", 401, b"www-authenticate: Bearer\r\n")
        return Principal("ada")

    async with world(guard=authenticate) as app:
        for path in ("/ws", "/ws?access_token=good", "/ws?authorization=Bearer%20good"):
            with pytest.raises(InvalidStatus) as refused:
                async with app.client(path=path):
                    pass
            assert refused.value.response.status_code == 401
        async with app.client(additional_headers={"authorization": "Bearer good"}) as socket:
            assert (await recv_json(socket))["type"] == "connected"


@for_each("way", TRANSPORTS)
async def test_excess_sockets_get_503_with_retry_after(way: str) -> None:
    async with world(way, max_streams=4) as app:
        async with app.client(), app.client(MCP):
            with pytest.raises(InvalidStatus) as refused:
                async with app.client():
                    pass
            assert refused.value.response.status_code == 503
            assert refused.value.response.headers["retry-after"] == "5"
        await app.until(lambda: len(app.runtime.streams) == 0)
        async with app.client() as socket:
            await recv_json(socket)


@pytest.mark.many
async def test_a_hundred_sockets_are_served_concurrently() -> None:
    async with world() as app, asyncio.timeout(WAIT * 4), asyncio.TaskGroup() as group:
        here, told = asyncio.Semaphore(0), asyncio.Event()

        async def one(n: int) -> None:
            async with app.client() as socket:
                await recv_json(socket)
                answer = await ask(socket, {"type": "mcp_call", "tool": "add", "arguments": {"a": n, "b": n}, "id": n})
                assert (answer["id"], answer["result"]["content"][0]["text"]) == (n, str(2 * n))
                await send_json(socket, {"type": "subscribe"})
                assert [(await recv_json(socket))["type"] for _ in range(2)] == ["position", "subscribed"]
                here.release()
                assert (await recv_json(socket))["data"] == "all"
                await told.wait()

        for n in range(100):
            group.create_task(one(n))
        for _ in range(100):
            await here.acquire()
        assert (await app.hub.publish("broadcast", "all")).subscribers == 100
        told.set()
