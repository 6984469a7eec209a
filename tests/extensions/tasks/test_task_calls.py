import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from auth_world import ALICE, BOB, make_key_auth
from extensions.tasks.tasks_world import DECLARED, TaskClient, accept, text
from fleet import until
from millstream import Context, ProtocolError, Server, Settings, ToolError
from millstream.protocol import TASKS
from patience import WAIT
from wire import Json, Wire, per_request, request, routing, run_wire


@dataclass
class Name:
    name: str


def make_shop(**options: Any) -> tuple[Server, asyncio.Event, list[str]]:
    """Return a server with task tools, an event that releases `waits`, and the notes of its functions."""
    mcp, release, notes = Server("shop", **options), asyncio.Event(), list[str]()

    @mcp.tool(task="allowed")
    async def waits(word: str, ctx: Context) -> str:
        """Wait, and return the word."""
        notes.append(f"{word} began")
        try:
            await release.wait()
        except asyncio.CancelledError:
            notes.append(f"{word} canceled")
            raise
        notes.append(word)
        return word

    @mcp.tool(task="required")
    async def fails(how: str) -> str:
        """Fail."""
        if how == "tool":
            raise ToolError("There is no such book.")
        if how == "protocol":
            raise ProtocolError(-32001, "No.", {"why": 7})
        raise ValueError("secret")

    _add_asking(mcp, notes)

    @mcp.tool(task="allowed")
    async def reports(how: str, ctx: Context) -> str:
        """Report progress."""
        if how == "progress":
            await ctx.progress(3, 10, "Reading")
        else:
            await ctx.info("12 books found")
        await release.wait()
        return "done"

    return mcp, release, notes


def _add_asking(mcp: Server, notes: list[str]) -> None:
    @mcp.tool(task="allowed")
    async def asks(ctx: Context) -> str:
        """Ask twice."""
        notes.append("began")
        first = await ctx.elicit("Who?", Name, key="who")
        bought = await ctx.once("buy", lambda: notes.append("bought") or len(notes))
        second = await ctx.elicit("And who else?", Name)
        return f"{first.name}, {second.name}, {bought}"

    @mcp.tool(task="required", defer_task=True)
    async def deferred(known: bool, ctx: Context, text: str = "") -> str:
        """Ask if necessary, and then become a task."""
        notes.append("began")
        if known:
            return "at once"
        if text:
            await ctx.start_task()
            return f"{len(text)} characters"
        person = await ctx.elicit("Who?", Name, key="who")
        await ctx.start_task()
        return f"Hello, {person.name}"


def client_of(wire: Wire, **headers: str) -> TaskClient:
    """Return a client of a server."""

    async def ask(method: str, params: Json, fields: dict[str, str]) -> Json:
        reply = await wire.post(request(method, params), {**fields, **headers})
        return dict(reply.message)

    return TaskClient(ask)


@asynccontextmanager
async def shop(**options: Any) -> AsyncIterator[tuple[TaskClient, asyncio.Event, list[str]]]:
    """Run a shop and yield its client."""
    mcp, release, notes = make_shop(**options)
    async with run_wire(mcp, "asgi") as wire:
        yield client_of(wire), release, notes
        release.set()


async def test_call_becomes_a_task_with_a_stored_result() -> None:
    async with shop() as (client, release, _):
        created = await client.call("waits", word="Dune")
        assert {"taskId", "status", "createdAt", "lastUpdatedAt", "ttlMs", "pollIntervalMs"} <= created.keys()
        assert not created.keys() & {"result", "error", "inputRequests", "requestState", "task", "ttl", "pollInterval"}
        assert (created["status"], created["ttlMs"], created["pollIntervalMs"]) == ("working", 3_600_000, 1_000)
        assert (await client.get(created["taskId"]))["status"] == "working"
        release.set()
        done = await client.wait_for_end(created["taskId"])
        assert (done["status"], done["resultType"], text(done)) == ("completed", "complete", "Dune")
        assert await client.get(created["taskId"]) == done


async def test_tasks_that_begin_late_keep_large_arguments() -> None:
    async with shop() as (client, _, _):
        created = await client.call("deferred", known=False, text="x" * 50_000)
        assert text(await client.wait_for_end(created["taskId"])) == "50000 characters"


async def test_clients_without_tasks_get_plain_calls_or_an_error() -> None:
    mcp, release, _ = make_shop()
    release.set()
    async with run_wire(mcp, "asgi") as wire:
        client = client_of(wire)
        called = await client.response("tools/call", {"name": "waits", "arguments": {"word": "Dune"}}, {})
        assert called["result"]["content"][0]["text"] == "Dune"
        refused = await client.response("tools/call", {"name": "fails", "arguments": {"how": "tool"}}, {})
        assert refused["error"]["code"] == -32021
        assert refused["error"]["data"] == {"requiredCapabilities": {"extensions": {TASKS: {}}}}
        for method in ("tasks/get", "tasks/update", "tasks/cancel"):
            refused = await client.response(method, {"taskId": "x", "inputResponses": {}}, {})
            assert refused["error"]["code"] == -32021
        session = await wire.initialize(capabilities=DECLARED)
        reply = await wire.post(request("tools/call", {"name": "waits", "arguments": {"word": "Dune"}}), session)
        assert reply.message["result"]["content"][0]["text"] == "Dune"
        reply = await wire.post(request("tasks/get", {"taskId": "x"}), session)
        assert reply.message["error"]["code"] == -32601


async def test_server_without_task_tools_has_no_tasks() -> None:
    mcp = Server("shop")

    @mcp.tool
    async def plain() -> str:
        """Never become a task."""
        return "plain"

    async with run_wire(mcp, "asgi") as wire:
        client = client_of(wire)
        assert "extensions" not in (await client.result("server/discover", {}))["capabilities"]
        assert (await client.response("tasks/get", {"taskId": "x"}))["error"]["code"] == -32601
        assert (await client.result("tools/call", {"name": "plain", "arguments": {}}))["resultType"] == "complete"


async def test_tool_errors_complete_a_task_and_protocol_errors_fail_it() -> None:
    """Only JSON-RPC errors make a task `failed` (Tasks, Error Handling)."""
    async with shop() as (client, _, _):
        done = await client.wait_for_end((await client.call("fails", how="tool"))["taskId"])
        assert (done["status"], done["result"]["isError"], text(done)) == ("completed", True, "There is no such book.")
        done = await client.wait_for_end((await client.call("fails", how="else"))["taskId"])
        assert done["result"]["isError"]
        assert "secret" not in json.dumps(done)
        done = await client.wait_for_end((await client.call("fails", how="protocol"))["taskId"])
        assert (done["status"], done["statusMessage"]) == ("failed", "No.")
        assert done["error"] == {"code": -32001, "message": "No.", "data": {"why": 7}}
        assert "result" not in done


async def test_invalid_arguments_create_no_task() -> None:
    async with shop() as (client, _, _):
        result = await client.result("tools/call", {"name": "waits", "arguments": {"word": 7}})
        assert (result["resultType"], result["isError"]) == ("complete", True)


async def test_canceled_task_stops_its_function_and_stays_readable() -> None:
    async with shop() as (client, _, notes):
        task_id = (await client.call("waits", word="Dune"))["taskId"]
        await until(lambda: notes == ["Dune began"])
        acknowledged = await client.cancel(task_id)
        assert acknowledged.keys() == {"resultType", "_meta"}
        assert (await client.wait_for_end(task_id))["status"] == "cancelled"
        await until(lambda: notes == ["Dune began", "Dune canceled"])
        assert await client.cancel(task_id) == acknowledged
        assert (await client.get(task_id))["status"] == "cancelled"


async def test_unknown_task_ids_are_rejected() -> None:
    async with shop() as (client, _, _):
        for task_id in ("", "nothing", "x" * 5_000, "../task"):
            for method in ("tasks/get", "tasks/update", "tasks/cancel"):
                response = await client.response(method, {"taskId": task_id, "inputResponses": {}})
                assert response["error"]["code"] in ((-32602,) if task_id else (-32602, -32020))


async def test_tasks_are_unknown_to_other_principals() -> None:
    mcp, release, _ = make_shop(auth=make_key_auth())
    async with run_wire(mcp, "asgi") as wire:
        ada = client_of(wire, authorization=f"Bearer {ALICE}")
        bob = client_of(wire, authorization=f"Bearer {BOB}")
        task_id = (await ada.call("waits", word="Dune"))["taskId"]
        for method in ("tasks/get", "tasks/update", "tasks/cancel"):
            theirs = await bob.response(method, {"taskId": task_id, "inputResponses": {}})
            unknown = await bob.response(method, {"taskId": "nothing", "inputResponses": {}})
            assert theirs == unknown
        release.set()
        assert text(await ada.wait_for_end(task_id)) == "Dune"


async def test_questions_are_answered_through_the_task() -> None:
    async with shop() as (client, _, notes):
        task_id = (await client.call("asks"))["taskId"]
        (key,) = asked = await client.wait_for_questions(task_id)
        assert (key, asked[key]["method"]) == ("who", "elicitation/create")
        assert (await client.update(task_id, nonsense={})).keys() == {"resultType", "_meta"}
        assert (await client.get(task_id))["status"] == "input_required"
        await client.update(task_id, who=accept(name="Ada"))
        task = await client.wait_until(task_id, lambda task: "who" not in task.get("inputRequests", {"who": 1}))
        (other,) = task["inputRequests"]
        await client.update(task_id, who=accept(name="Eve"))
        await client.update(task_id, **{other: accept(name="Bob")})
        assert text(await client.wait_for_end(task_id)) == "Ada, Bob, 2"
        assert notes == ["began", "bought"]


async def test_malformed_answers_are_rejected_and_the_task_keeps_waiting() -> None:
    async with shop() as (client, _, _):
        task_id = (await client.call("asks"))["taskId"]
        await client.wait_for_questions(task_id)
        response = await client.response("tasks/update", {"taskId": task_id, "inputResponses": {"who": 7}})
        assert response["error"]["code"] == -32602
        assert (await client.get(task_id))["status"] == "input_required"
        await client.cancel(task_id)
        assert (await client.get(task_id)).keys() >= {"status"} - {"inputRequests"}


async def test_progress_and_log_messages_become_the_status_message() -> None:
    async with shop() as (client, release, _):
        for how, shown in (("progress", "Reading (3 of 10)"), ("log", "12 books found")):
            task_id = (await client.call("reports", how=how))["taskId"]
            await client.wait_until(task_id, lambda task, shown=shown: task.get("statusMessage") == shown)  # type: ignore[misc]
        release.set()
        assert "statusMessage" not in await client.wait_for_end(task_id)


async def test_deferred_task_asks_during_the_call_and_starts_once() -> None:
    async with shop() as (client, _, notes):
        result = await client.result("tools/call", {"name": "deferred", "arguments": {"known": True}})
        assert result["content"][0]["text"] == "at once"
        params: Json = {"name": "deferred", "arguments": {"known": False}}
        asked = await client.result("tools/call", params)
        assert asked["resultType"] == "input_required"
        answers = {"inputResponses": {"who": accept(name="Ada")}, "requestState": asked["requestState"]}
        created = await client.result("tools/call", {**params, **answers})
        assert created["resultType"] == "task"
        assert text(await client.wait_for_end(created["taskId"])) == "Hello, Ada"
        assert notes == ["began"] * 2


async def test_canceled_task_ends_its_waiting_function() -> None:
    mcp, ended = Server("shop"), asyncio.Event()

    @mcp.tool(task="required")
    async def asks(ctx: Context) -> None:
        try:
            await ctx.elicit("Who?", Name)
        finally:
            ended.set()

    async with run_wire(mcp, "asgi") as wire:
        client = client_of(wire)
        task_id = (await client.call("asks"))["taskId"]
        await client.wait_for_questions(task_id)
        await client.cancel(task_id)
        async with asyncio.timeout(WAIT):
            await ended.wait()
        assert len(wire.runtime.services.parked) == 0


async def test_task_limit_applies_until_a_task_ends() -> None:
    for settings in (Settings(max_tasks=2), Settings(max_tasks_per_caller=2)):
        async with shop(settings=settings) as (client, release, _):
            tasks = [await client.call("waits", word=word) for word in ("one", "two")]
            params = {"name": "waits", "arguments": {"word": "three"}}
            refused = await client.response("tools/call", params)
            assert refused["error"]["code"] == -31429
            assert "2" in refused["error"]["message"]
            release.set()
            for task in tasks:
                await client.wait_for_end(task["taskId"])
            response = await client.retry_until_accepted("tools/call", params)
            assert response["result"]["resultType"] == "task"


async def test_tasks_count_as_concurrent_calls_to_their_tool() -> None:
    mcp, release = Server("shop"), asyncio.Event()

    @mcp.tool(task="allowed", concurrency=1)
    async def waits(asking: bool, ctx: Context) -> str:
        if asking:
            await ctx.elicit("Who?", Name, key="who")
        await release.wait()
        return "done"

    async with run_wire(mcp, "asgi") as wire:
        client = client_of(wire)
        asking = (await client.call("waits", asking=True))["taskId"]
        await client.wait_for_questions(asking)
        another: Json = {"name": "waits", "arguments": {"asking": False}}
        waiting = (await client.retry_until_accepted("tools/call", another))["result"]["taskId"]
        for _ in range(3):
            await asyncio.sleep(0)
            refused = await client.response("tools/call", another)
            assert refused["error"]["data"]["code"] == "rate_limited"
        answer: Json = {"taskId": asking, "inputResponses": {"who": accept(name="Ada")}}
        refused = await client.response("tasks/update", answer)
        assert "Too many concurrent calls" in refused["error"]["message"]
        release.set()
        await client.wait_for_end(waiting)
        await client.retry_until_accepted("tasks/update", answer)
        assert text(await client.wait_for_end(asking)) == "done"


async def test_tasks_end_when_they_expire() -> None:
    mcp = Server("shop")
    stopped = asyncio.Event()

    @mcp.tool(task="required", task_ttl=0.05)
    async def waits() -> None:
        """Wait forever."""
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with run_wire(mcp, "asgi") as wire:
        client = client_of(wire)
        created = await client.call("waits")
        assert created["ttlMs"] == 50
        async with asyncio.timeout(WAIT):
            await stopped.wait()
        response = await client.retry_until_accepted("tasks/get", {"taskId": created["taskId"]}, refused=True)
        assert response["error"]["code"] == -32602


async def test_subscription_streams_task_states() -> None:
    mcp, release, _ = make_shop()
    async with run_wire(mcp, "lane") as wire:
        client = client_of(wire)
        task_id = (await client.call("waits", word="Dune"))["taskId"]
        assert wire.running is not None
        peer = await wire.running.connect()
        params = {"notifications": {"taskIds": [task_id, "nothing"]}}
        message = per_request("subscriptions/listen", params, "s", **DECLARED)
        await peer.send(_post(message, routing("subscriptions/listen")))
        heard = _messages(peer)
        acknowledged = await anext(heard)
        assert acknowledged["params"]["notifications"]["taskIds"] == [task_id]
        assert (await anext(heard))["params"]["status"] == "working"
        release.set()
        async for notification in heard:
            if notification["params"]["status"] != "working":
                break
        assert notification["method"] == "notifications/tasks"
        done = await client.get(task_id)
        assert {**notification["params"], "_meta": 0, "resultType": "complete"} == {**done, "_meta": 0}
        peer.close()
        refused = await wire.post(per_request("subscriptions/listen", params), routing("subscriptions/listen"))
        assert refused.message["error"]["code"] == -32021


def _post(message: Json, fields: dict[str, str]) -> bytes:
    body = json.dumps(message).encode()
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST /mcp HTTP/1.1\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body


async def _messages(peer: Any) -> AsyncIterator[Json]:
    while True:
        async with asyncio.timeout(WAIT):
            line = await peer.reader.readline()
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])


def test_task_options_are_checked_at_registration() -> None:
    mcp = Server("shop")
    for options, said in (
        ({"task": "always"}, "'allowed' or 'required'"),
        ({"task": "allowed", "task_ttl": 0}, "task_ttl"),
        ({"task_retry": True}, "require task='allowed'"),
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            mcp.tool(**options)(_plain)  # type: ignore[arg-type]


def _plain() -> None:
    """Do nothing."""
