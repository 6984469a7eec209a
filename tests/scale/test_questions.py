import asyncio
import json
import time
from typing import Any

import pytest

from bad_input.shop import make_shop
from cases import for_each
from fleet import EventStream, Worker, fleet, open_records_at, settle, until
from millstream import Server
from millstream._server.control import PER_SECOND
from millstream._server.peers import WINDOW, AnswerMessage
from wire import request

PERSON = {"action": "accept", "content": {"name": "Ada"}}


def make_slow() -> Server:
    """A server with a tool that waits for ever, and says when it is canceled."""
    mcp = make_shop()
    mcp.cancelled = asyncio.Event()  # type: ignore[attr-defined]

    @mcp.tool
    async def waits() -> str:
        """Wait."""
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            mcp.cancelled.set()  # type: ignore[attr-defined]
            raise
        return ""

    return mcp


async def ask(worker: Worker, headers: dict[str, str]) -> tuple[EventStream, str]:
    """A call that asks for a name, and the id of its question."""
    stream = EventStream(await worker.post(request("tools/call", {"name": "ask", "arguments": {}}, 7), headers))
    (question,) = await stream.until(1)
    return stream, question["id"]


async def answer(worker: Worker, headers: dict[str, str], question: Any, result: Any = PERSON) -> int:
    """The status that an answer gets."""
    reply = await worker.post({"jsonrpc": "2.0", "id": question, "result": result}, headers)
    await reply.body()
    return reply.status


@for_each("turns", [0, 3])
async def test_answers_reach_calls_on_another_worker(turns: int) -> None:
    async with fleet(make_shop, 3, turns=lambda: turns) as (first, second, third):
        headers = await first.initialize({"elicitation": {}})
        stream, question = await ask(first, headers)
        open_records_at(third, 0)  # it runs for a while
        third.store.operations.clear()
        assert await answer(third, headers, question) == 202
        assert third.store.operations == {"send": 1}
        assert (await stream.end())[-1]["result"]["content"][0]["text"] == "It is Ada."
        assert await answer(second, headers, question) == 202, "it comes too late, which the client cannot know"


async def test_client_errors_reach_calls_on_another_worker() -> None:
    """MCP 2025-11-25, client/elicitation."""
    async with fleet(make_shop) as (first, second):
        headers = await first.initialize({"elicitation": {}})
        stream, question = await ask(first, headers)
        reply = await second.post({"jsonrpc": "2.0", "id": question, "error": {"code": -1, "message": "no"}}, headers)
        assert reply.status == 202
        assert (await stream.end())[-1]["result"]["isError"]


async def test_answers_from_other_sessions_do_not_reach_the_call() -> None:
    async with fleet(make_shop) as (first, second):
        headers = await first.initialize({"elicitation": {}})
        stream, question = await ask(first, headers)
        thief = await second.initialize({"elicitation": {}})
        assert await answer(second, thief, question) == 202
        await settle()
        assert len(stream.messages) == 1
        assert await answer(second, headers, question) == 202
        await stream.end()


async def test_answers_for_missing_workers_are_rejected() -> None:
    async with fleet(make_shop) as (first, second):
        headers = await first.initialize({"elicitation": {}})
        _, question = await ask(first, headers)
        await first.die()
        assert await answer(second, headers, question) == 400
        assert await answer(second, headers, f"{'0' * 12}-{'0' * 32}") == 400, "nor was there ever such a worker"
        assert await answer(second, headers, "mine") == 202, "no id of ours: ignored, as an answer that comes late"


async def test_forwarded_answers_are_capped() -> None:
    async with fleet(make_shop) as (first, second):
        second.runtime.dispatcher.control._allowance.clock = lambda: 1.0
        headers = await first.initialize()
        foreign = f"{first.store.me}-{'0' * 32}"
        statuses = [await answer(second, headers, foreign) for _ in range(PER_SECOND + 5)]
        assert statuses == [202] * PER_SECOND + [503] * 5


async def test_cancellations_with_huge_ids_are_not_sent_to_all_workers() -> None:
    async with fleet(make_shop) as (first, second):
        headers = await first.initialize()
        second.store.operations.clear()
        for id, sent in (("x" * 2_000, 0), ("x", 1)):
            note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}}
            assert (await second.post(note, headers)).status == 202
            assert second.store.operations["publish"] == sent


async def test_cancellations_reach_calls_on_another_worker() -> None:
    async with fleet(make_slow, 3) as (first, second, third):
        headers = await first.initialize()
        running = asyncio.create_task(
            first.post(request("tools/call", {"name": "waits", "arguments": {}}, 2**70), headers)
        )
        await until(lambda: first.runtime.dispatcher.calls)
        note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 2**70}}
        stranger = await second.initialize()
        assert (await second.post(note, stranger)).status == 202
        await settle()
        assert first.runtime.dispatcher.calls, "it is not the stranger's"
        assert (await third.post(note, headers)).status == 202
        await first.server.cancelled.wait()  # type: ignore[attr-defined]
        await running


async def test_deleting_a_session_cancels_its_calls_on_every_worker() -> None:
    async with fleet(make_slow, 3) as workers:
        headers = await workers[0].initialize()
        running = [
            asyncio.create_task(each.post(request("tools/call", {"name": "waits", "arguments": {}}), headers))
            for each in workers
        ]
        await until(lambda: all(each.runtime.dispatcher.calls for each in workers))
        stream = await workers[1].get(headers)
        assert await workers[2].delete(headers) == 204
        for each in workers:
            await each.server.cancelled.wait()  # type: ignore[attr-defined]
        await stream.end()
        await asyncio.gather(*running)


async def test_unauthenticated_worker_messages_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    async with fleet(make_shop) as (first, second):
        headers = await first.initialize({"elicitation": {}})
        stream, question = await ask(first, headers)
        session = next(iter(first.runtime.dispatcher.control.by_id))[0]
        forged = AnswerMessage(session, question, json.dumps(PERSON).encode(), b"")
        peers = second.runtime.services.peers
        keys, peers._keys = peers._keys, [b"another key"]
        assert await peers.send(first.store.me, forged)
        await settle()
        assert len(stream.messages) == 1
        assert "signature" in caplog.text
        peers._keys = keys
        assert await peers.send(first.store.me, forged)
        assert (await stream.end())[-1]["result"]["content"][0]["text"] == "It is Ada."


async def test_worker_messages_are_processed_once() -> None:
    async with fleet(make_shop) as (first, second):
        taken: list[AnswerMessage] = []
        first.runtime.services.peers.on(AnswerMessage, lambda message, worker: taken.append(message))
        letters: list[bytes] = []
        first.store.topics.add("workers", letters.append)
        assert await second.runtime.services.peers.send(first.store.me, AnswerMessage("s", "q", b"1", b""))
        await settle()
        (letter,) = letters
        await second.store.bus.send(first.store.me, "workers", letter)
        await settle()
        assert len(taken) == 1
        assert await second.runtime.services.peers.send(first.store.me, AnswerMessage("s", "q", b"1", b""))
        await settle()
        assert len(taken) == 2, "sent again is another message"
        first.runtime.services.peers._processed.clear()
        now = second.store.core.time() + WINDOW + 1
        first.store.time = lambda: now  # type: ignore[method-assign]
        await second.store.bus.send(first.store.me, "workers", letter)
        await settle()
        assert len(taken) == 2


async def test_questions_from_renamed_workers_fail_their_call() -> None:
    async with fleet(make_shop) as (first, second):
        headers = await first.initialize({"elicitation": {}})
        stream, question = await ask(first, headers)
        first.store.sleep()
        assert await answer(second, headers, question) == 400
        first.store.wake()
        messages = await stream.end()
        assert "Try again" in messages[-1]["result"]["content"][0]["text"]


async def test_workers_communicate_after_the_store_clock_is_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fleet(make_shop) as (first, second):
        headers = await first.initialize({"elicitation": {}})
        stream, question = await ask(first, headers)
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() - 10_000)
        assert await answer(second, headers, question) == 202
        assert (await stream.end())[-1]["result"]["content"][0]["text"] == "It is Ada."
