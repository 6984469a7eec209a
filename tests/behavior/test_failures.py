import asyncio
import json
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cases import for_each
from millstream import Context, Declined, Server, Settings, SyncContext, ToolError
from millstream._server.pool import Threads
from wire import LATEST_HANDSHAKE, POST, WAIT, Json, MemoryPipe, Wire, per_request, request, routing, run_wire

FORM = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
WORDS = ["art", "book"]


def first(word: str) -> str:
    return next(known for known in WORDS if word in known)


def first_of_many() -> Any:
    yield "one"
    yield next(iter([]))


def first_resource() -> str:
    return next(iter([]))


def first_prompt(word: str = "") -> str:
    return next(iter([]))


def first_completion(value: str, arguments: dict[str, str]) -> list[str]:
    return [next(iter([]))]


async def waits_for_a_cancelled_task() -> str:
    task = asyncio.get_running_loop().create_task(asyncio.sleep(60))
    task.cancel()
    await task
    return "never"


def exits() -> str:
    sys.exit(1)


async def exits_in_the_loop() -> str:
    sys.exit(1)


async def refused_in_a_group(kind: str) -> str:
    async def fail() -> None:
        raise {"tool": ToolError("fix the city"), "declined": Declined("no, thanks")}[kind]

    async with asyncio.TaskGroup() as outer, asyncio.TaskGroup() as group:
        outer.create_task(asyncio.sleep(0))
        group.create_task(fail())
    return "never"


async def asks_and_fails(ctx: Context) -> str:
    async def fail() -> None:
        raise ToolError("fix the city")

    async with asyncio.TaskGroup() as group:
        group.create_task(ctx.elicit("Which?", FORM))
        group.create_task(fail())
    return "never"


async def fails_twice() -> str:
    async def fail(error: Exception) -> None:
        raise error

    async with asyncio.TaskGroup() as group:
        group.create_task(fail(ToolError("secret one")))
        group.create_task(fail(ValueError("secret two")))
    return "never"


async def asks_in_a_group(ctx: Context) -> int:
    async with asyncio.TaskGroup() as group:
        first = group.create_task(ctx.elicit("First?", FORM))
        second = group.create_task(ctx.elicit("Second?", FORM))
    return int(first.result()["x"]) + int(second.result()["x"])


TOOLS = (
    first, first_of_many, waits_for_a_cancelled_task, exits, exits_in_the_loop, refused_in_a_group, asks_and_fails,
    fails_twice, asks_in_a_group,
)  # fmt: skip


def make_server(**settings: Any) -> Server:
    """Return a server with functions that fail."""
    mcp = Server("failing", settings=Settings(secret_key="k" * 40, **settings))
    for tool in TOOLS:
        mcp.tool(tool)
    mcp.resource("first://word")(first_resource)
    mcp.prompt(first_prompt)
    mcp.complete("first_prompt", argument="word")(first_completion)
    return mcp


async def until(fact: Callable[[], bool]) -> None:
    """Run the event loop until a thread makes a condition true."""
    async with asyncio.timeout(WAIT):
        while not fact():  # noqa: ASYNC110  no event signals it
            await asyncio.sleep(0.002)


@pytest.fixture(params=["asgi", "lane"])
async def wire(request: pytest.FixtureRequest) -> AsyncIterator[Wire]:
    """The server over HTTP."""
    async with run_wire(make_server(), request.param) as found:
        yield found


async def call(wire: Wire, name: str, capabilities: Json | None = None, **params: Any) -> Json:
    """Send a `tools/call` of the newest revision."""
    message = per_request("tools/call", {"name": name, "arguments": {}, **params}, **(capabilities or {}))
    async with asyncio.timeout(WAIT):
        reply = await wire.post(message, {**POST, **routing("tools/call", name)})
    assert reply.status == 200
    found: Json = reply.message["result"]
    return found


def opaque(result: Json) -> bool:
    """Check that an error contains only an incident."""
    return result.get("isError") is True and "incident" in result["content"][0]["text"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("first", {"word": "zz"}),
        ("first_of_many", {}),
        ("waits_for_a_cancelled_task", {}),
        ("exits", {}),
        ("exits_in_the_loop", {}),
        ("fails_twice", {}),
    ],
)
async def test_any_exception_in_a_tool_gets_a_response(
    wire: Wire, name: str, arguments: Json, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        result = await call(wire, name, arguments=arguments)
        assert opaque(result), result
        assert "secret" not in str(result)
    assert "StopIteration interacts badly" not in caplog.text
    assert not wire.runtime.dispatcher.calls


@for_each(
    ("method", "params"),
    [
        ("resources/read", {"uri": "first://word"}),
        ("prompts/get", {"name": "first_prompt"}),
        (
            "completion/complete",
            {"ref": {"type": "ref/prompt", "name": "first_prompt"}, "argument": {"name": "word", "value": ""}},
        ),
    ],
)
async def test_tool_that_raises_stop_iteration_gets_a_response(wire: Wire, method: str, params: Json) -> None:
    name = str(params.get("uri") or params.get("name") or "")
    async with asyncio.timeout(WAIT):
        reply = await wire.post(per_request(method, params), {**POST, **routing(method, name)})
    assert reply.message["error"]["code"] == -32603


async def test_batch_completes_when_a_tool_awaits_a_canceled_task() -> None:
    async with run_wire(make_server(), "lane") as wire:
        headers = await wire.initialize("2025-03-26")
        bad = request("tools/call", {"name": "waits_for_a_cancelled_task"}, 1)
        async with asyncio.timeout(WAIT):
            reply = await wire.post([bad, request("ping", None, 2)], headers)
    answers = {each["id"]: each["result"] for each in reply.message}
    assert answers[1]["isError"] is True
    assert answers[2] == {}


async def test_connection_transports_answer_canceled_tools() -> None:
    async with make_server().running() as runtime:
        pipe = MemoryPipe(runtime.dispatcher)
        for name in ("waits_for_a_cancelled_task", "exits", "asks_in_a_group"):
            message = per_request("tools/call", {"name": name, "arguments": {}}, elicitation={})
            pipe.send(json.dumps(message).encode())
            async with asyncio.timeout(WAIT):
                assert "result" in json.loads(await pipe.receive())
        await pipe.close()


@for_each(("kind", "text"), [("tool", "fix the city"), ("declined", "no, thanks")])
async def test_single_failure_in_a_task_group_is_unwrapped(wire: Wire, kind: str, text: str) -> None:
    result = await call(wire, "refused_in_a_group", arguments={"kind": kind})
    assert result["isError"] is True
    assert result["content"][0]["text"] == text


async def test_questions_from_a_task_group_share_one_round(wire: Wire) -> None:
    asked = await call(wire, "asks_in_a_group", {"elicitation": {}})
    assert asked["resultType"] == "input_required"
    messages = {key: each["params"]["message"] for key, each in asked["inputRequests"].items()}
    assert sorted(messages.values()) == ["First?", "Second?"]
    answers = {key: {"action": "accept", "content": {"x": len(text)}} for key, text in messages.items()}
    done = await call(
        wire, "asks_in_a_group", {"elicitation": {}}, inputResponses=answers, requestState=asked["requestState"]
    )
    assert done["structuredContent"] == len("First?") + len("Second?")


async def test_failure_takes_precedence_over_a_question(wire: Wire) -> None:
    result = await call(wire, "asks_and_fails", {"elicitation": {}})
    assert result["content"][0]["text"] == "fix the city"


@for_each("way", ["cancelled", "timeout"])
async def test_thread_waiting_for_an_answer_ends_with_its_call(way: str) -> None:
    mcp = make_server(max_threads=1, input_timeout=600 if way == "cancelled" else 0.05)
    ended = threading.Semaphore(0)

    @mcp.tool
    def asks(ctx: SyncContext) -> str:
        try:
            ctx.elicit("Which?", FORM)
        finally:
            ended.release()
        return "never"

    async with mcp.running() as runtime:
        pipe = MemoryPipe(runtime.dispatcher)
        opening = {"protocolVersion": LATEST_HANDSHAKE, "capabilities": {"elicitation": {}}}
        client = {"clientInfo": {"name": "t", "version": "1"}}
        pipe.send(json.dumps(request("initialize", {**opening, **client}, "init")).encode())
        await pipe.receive()
        for number in range(2):
            pipe.send(json.dumps(request("tools/call", {"name": "asks"}, number)).encode())
            async with asyncio.timeout(WAIT):
                while "elicitation/create" not in (told := (await pipe.receive()).decode()):
                    assert re.search("respond|busy", told)
                    pipe.send(json.dumps(request("tools/call", {"name": "asks"}, number)).encode())
                if way == "cancelled":
                    gone = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": number}}
                    pipe.send(json.dumps(gone).encode())
                taken_back = json.loads(await pipe.receive())
                assert taken_back["method"] == "notifications/cancelled"
                assert taken_back["params"]["requestId"] == json.loads(told)["id"]
                if way == "timeout":
                    assert "respond" in str(json.loads(await pipe.receive()))
                assert await asyncio.to_thread(ended.acquire, timeout=WAIT)
            await until(lambda: not runtime.services.threads.full and not len(runtime.services.questions))
        await pipe.close()


async def test_slots_are_released_when_the_function_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._server.pool.WAIT_TIMEOUT", 0.0)
    threads, begun, gate = Threads(1), threading.Event(), threading.Event()

    def works() -> None:
        begun.set()
        gate.wait(WAIT)

    waiting = asyncio.get_running_loop().create_task(threads.run(works))
    assert await asyncio.to_thread(begun.wait, WAIT)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    with pytest.raises(ToolError, match="busy"):
        await threads.run(int)
    gate.set()
    await until(lambda: not threads.full)
    assert await threads.run(int) == 0
    threads.close()


def test_function_that_outlives_its_server_logs_no_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun, gate = threading.Event(), threading.Event()
    workers: list[threading.Thread] = []

    def works() -> None:
        workers.append(threading.current_thread())
        begun.set()
        gate.wait(WAIT)

    async def main() -> None:
        threads = Threads(2)
        task = asyncio.get_running_loop().create_task(threads.run(works))
        assert await asyncio.to_thread(begun.wait, WAIT)
        threads.close()
        task.cancel()

    asyncio.run(main())
    assert "1 thread is still running code" in caplog.text
    gate.set()
    (worker,) = workers
    worker.join(WAIT)
    assert not worker.is_alive()
    assert worker.daemon
    assert "Event loop is closed" not in caplog.text
