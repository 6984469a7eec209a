"""Questions that nobody waits for any more, and the clients that are told so."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from millstream._server.questions.open import OpenQuestions


async def test_a_call_that_is_cancelled_twice_still_takes_its_question_back() -> None:
    """A fixed defect: the second cancellation stopped the message about the first, and the dialog stayed open."""
    workers: Any = SimpleNamespace(me="0123456789ab")
    questions = OpenQuestions(max_open=9, max_per_owner=9, timeout=60, workers=workers)
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
