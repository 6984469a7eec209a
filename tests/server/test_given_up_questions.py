import asyncio
import gc
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from cases import for_each
from millstream import ToolError
from millstream._protocol.jsonrpc import read
from millstream._server.calls.pending_questions import PendingQuestions


async def test_call_canceled_twice_withdraws_its_question() -> None:
    workers: Any = SimpleNamespace(me="0123456789ab")
    questions = PendingQuestions(max_open=18, timeout=60, workers=workers)
    sent: list[bytes] = []

    async def send(message: bytes) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        sent.append(message)

    asking = asyncio.create_task(questions.ask(send, "elicitation/create", {}, owner="me", scope="s"))
    for _ in range(10):
        await asyncio.sleep(0)
    for _ in range(3):
        asking.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await asking
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(sent) == 2
    assert b'"notifications/cancelled"' in sent[1]
    assert len(questions) == 0


class OpenQuestion:
    """A question on a reply channel that can be blocked."""

    def __init__(self, timeout: float = 60) -> None:
        workers: Any = SimpleNamespace(me="0123456789ab")
        self.questions = PendingQuestions(max_open=18, timeout=timeout, workers=workers)
        self.ids: set[str] = set()
        self.sent: list[Any] = []
        self.goes = asyncio.Event()
        self.goes.set()
        self.when_sent: Callable[[], object] = lambda: None
        self.task = asyncio.create_task(
            self.questions.ask(self.send, "elicitation/create", {}, owner="me", scope="s", asked=self.ids)
        )

    async def send(self, message: bytes) -> None:
        """Count a message to the client, then deliver it."""
        self.sent.append(json.loads(message))
        self.when_sent()
        await self.goes.wait()

    def answer(self) -> bool:
        """Send the client's answer, and return whether it was accepted."""
        answer = {"jsonrpc": "2.0", "id": self.sent[0]["id"], "result": {"action": "accept"}}
        return self.questions.answer(read(json.dumps(answer).encode()), "s")

    async def settle(self) -> list[str]:
        """Finish all work, and return the messages to the client after the question."""
        self.goes.set()
        await turns()
        assert not self.ids
        assert len(self.questions) == 0
        return [each["method"] for each in self.sent[1:]]


async def turns() -> None:
    """Let the event loop finish its pending work."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_answer_that_arrives_at_the_deadline_is_accepted() -> None:
    one, taken = OpenQuestion(timeout=0), list[bool]()
    one.when_sent = lambda: asyncio.get_running_loop().call_soon(lambda: taken.append(one.answer()))
    assert json.loads(await one.task) == {"action": "accept"}
    assert taken == [True]
    assert await one.settle() == []


@for_each("telling", [True, False], ids=["while it is told", "before it is told"])
@for_each("way", ["cancelled", "late"])
async def test_question_is_withdrawn_once_when_its_call_ends(telling: bool, way: str) -> None:
    one = OpenQuestion(timeout=0 if way == "late" else 60)
    await asyncio.sleep(0)
    one.goes.clear()
    if way == "cancelled":
        one.task.cancel()
    if telling:
        await turns()
        assert len(one.sent) == 2
    ending = asyncio.create_task(one.questions.take_back(one.ids, one.send))
    await turns()
    assert await one.settle() == ["notifications/cancelled"]
    assert ending.done()
    with pytest.raises(ToolError if way == "late" else asyncio.CancelledError):
        await one.task


async def test_unsent_question_is_withdrawn_once_when_the_server_stops() -> None:
    one = OpenQuestion()
    one.goes.clear()
    await turns()
    one.task.cancel()
    await turns()
    one.questions.withdraw("s")
    assert not one.answer()
    assert await one.settle() == ["notifications/cancelled"]


@for_each("way", ["end", "withdraw", "fail"])
async def test_failed_unsent_question_leaves_no_log_line(way: str) -> None:
    logged: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: logged.append(context))
    one = OpenQuestion()
    one.goes.clear()
    await turns()
    questions = one.questions
    questions.fail(one.ids) if way == "fail" else getattr(questions, way)("s")
    one.task.cancel()
    await one.settle()
    assert one.task.cancelled()
    del one, questions
    gc.collect()
    assert logged == []
