import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from cases import for_each
from millstream import Server, Settings, ToolError
from socket_world import ask, recv_json, world
from wire import (
    POST,
    WAIT,
    Json,
    Wire,
    encode_headers,
    encode_request,
    open_pipe,
    per_request,
    request,
    routing,
    run_wire,
)


async def leaves() -> str:
    raise GeneratorExit


def leaves_in_a_thread() -> str:
    raise GeneratorExit


async def leaves_after_a_step() -> AsyncIterator[str]:
    yield "one"
    raise GeneratorExit


async def leaves_in_a_group() -> str:
    async with asyncio.TaskGroup() as group:
        group.create_task(leaves())
    return "never"


def cancel_this_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel("for a change")


async def cancels_itself() -> str:
    cancel_this_task()
    await asyncio.sleep(60)
    return "never"


async def cancels_itself_and_fails() -> str:
    cancel_this_task()
    raise ValueError("secret")


async def is_cancelled_by_its_helper() -> str:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_soon(task.cancel)
    await asyncio.sleep(60)
    return "never"


TOOLS: dict[str, Callable[..., Any]] = {
    tool.__name__: tool
    for tool in (
        leaves, leaves_in_a_thread, leaves_after_a_step, leaves_in_a_group, cancels_itself, cancels_itself_and_fails,
        is_cancelled_by_its_helper,
    )
}  # fmt: skip


def make_server() -> Server:
    """Return a server with functions that cancel their own tasks."""
    mcp = Server("leaving", serve=("rest",), settings=Settings(secret_key="k" * 40))
    for tool in TOOLS.values():
        mcp.tool(tool)
    return mcp


async def call(wire: Wire, name: str) -> Json:
    """Send a `tools/call` of the newest revision."""
    reply = await wire.post(per_request("tools/call", {"name": name, "arguments": {}}), routing("tools/call", name))
    assert reply.status == 200
    found: Json = reply.message["result"]
    return found


def opaque(result: Json) -> bool:
    """Check that an error contains only an incident."""
    return result.get("isError") is True and "incident" in result["content"][0]["text"]


async def test_calls_that_cancel_their_own_task_are_answered_over_a_pipe() -> None:
    async with make_server().running() as runtime, asyncio.timeout(WAIT):
        for name in TOOLS:
            pipe = open_pipe(runtime)
            opening = {"protocolVersion": "2025-03-26", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
            pipe.send(json.dumps(request("initialize", opening, 0)).encode())
            await pipe.receive()
            asked = request("tools/call", {"name": name}, 1)
            pipe.send(json.dumps(asked).encode())
            assert opaque(json.loads(await pipe.receive())["result"])
            pipe.send(json.dumps([asked, request("ping", None, 2)]).encode())
            answers = {each["id"]: each["result"] for each in json.loads(await pipe.receive())}
            assert (opaque(answers[1]), answers[2]) == (True, {})
            await pipe.close()


@for_each("name", TOOLS)
async def test_tool_that_cancels_its_task_affects_no_other_call(name: str) -> None:
    mcp, release = make_server(), asyncio.Event()

    @mcp.tool
    async def hold() -> str:
        await release.wait()
        return "held"

    async with run_wire(mcp, "lane") as wire:
        held = asyncio.create_task(call(Wire(wire.server, wire.runtime, wire.running), "hold"))
        await wire.until(lambda: len(wire.runtime.dispatcher.calls) == 1)
        peer = wire._peer = await wire.running.connect()  # type: ignore[union-attr]
        for _ in range(2):
            assert opaque(await call(wire, name))
            assert wire._peer is peer
        rest = await wire.post({}, {**POST}, f"/tools/{name}")
        assert (rest.status, rest.message["type"].rpartition("#")[2]) == (500, "internal-error")
        assert wire._peer is peer
        headers = await wire.initialize("2025-03-26")
        batch = [request("tools/call", {"name": name}, 1), request("ping", None, 2)]
        answers = {each["id"]: each["result"] for each in (await wire.post(batch, headers)).message}
        assert (opaque(answers[1]), answers[2]) == (True, {})
        release.set()
        assert (await held)["content"][0]["text"] == "held"


@for_each("name", ["cancels_itself", "is_cancelled_by_its_helper"])
async def test_tool_that_cancels_its_task_is_answered_under_other_asgi_servers(name: str) -> None:
    mcp = make_server()
    async with run_wire(mcp, "asgi") as wire:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            for body in bodies:
                return {"type": "http.request", "body": body, "more_body": False}
            await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        bodies = iter([json.dumps(per_request("tools/call", {"name": name, "arguments": {}})).encode()])
        scope = {
            "type": "http", "method": "POST", "path": "/mcp", "query_string": b"", "client": ("127.0.0.1", 1),
            "headers": encode_headers(routing("tools/call", name)),
        }  # fmt: skip
        task = asyncio.create_task(mcp(scope, receive, send))
        await asyncio.wait([task], timeout=WAIT)
        assert task.cancelled()
        assert opaque(json.loads(sent[1]["body"])["result"])
        assert not wire.runtime.dispatcher.calls


async def test_websocket_call_gets_a_response_if_the_tool_cancels_its_task() -> None:
    async with world() as app, app.client() as socket:
        await recv_json(socket)
        for name, tool in TOOLS.items():
            app.server.tool(tool)
            answer = await ask(socket, {"type": "mcp_call", "tool": name})
            assert opaque(answer["result"])
            message = per_request("tools/call", {"name": name, "arguments": {}})
            assert opaque((await ask(socket, message))["result"])


async def test_disconnect_is_a_cancellation_and_not_a_failure() -> None:
    mcp, seen = make_server(), list[str]()

    @mcp.tool
    async def hold() -> str:
        await asyncio.Event().wait()
        return "never"

    async with run_wire(mcp, "lane") as wire:
        wire.runtime.dispatcher.observe = lambda call, seconds, answer: seen.append(
            "" if call.failure is None else call.failure.outcome
        )
        assert wire.running is not None
        peer = await wire.running.connect()
        body = json.dumps(per_request("tools/call", {"name": "hold", "arguments": {}})).encode()
        await peer.send(encode_request("POST", "/mcp", encode_headers(routing("tools/call", "hold")), body))
        await wire.until(lambda: len(wire.runtime.dispatcher.calls) == 1)
        peer.close()
        await wire.until(lambda: not wire.runtime.dispatcher.calls)
        pipe = open_pipe(wire.runtime)
        pipe.send(body)
        await wire.until(lambda: len(wire.runtime.dispatcher.calls) == 1)
        await pipe.close()
        assert (seen, pipe._messages.qsize()) == (["", ""], 0)


async def test_canceled_call_that_fails_gets_no_response() -> None:
    mcp, started = make_server(), asyncio.Event()

    @mcp.tool
    async def clumsy() -> str:
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            raise ToolError("tripped over the cleanup")

    async with mcp.running() as runtime:
        pipe = open_pipe(runtime)
        pipe.send(json.dumps(request("tools/call", {"name": "clumsy"}, 7)).encode())
        await started.wait()
        cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}
        pipe.send(json.dumps(cancel).encode())
        await pipe._connection.settle()
        assert pipe._messages.empty()
        await pipe.close()
