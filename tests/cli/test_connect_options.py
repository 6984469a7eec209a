import asyncio
import sys
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from millstream._cli import connect_options
from millstream.client import Question
from patience import WAIT


@pytest.mark.server
async def test_commands_report_a_server_that_does_not_respond(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: asyncio.Queue[str] = asyncio.Queue()
    monkeypatch.setattr(connect_options, "_SILENCE", 0)
    monkeypatch.setattr(connect_options, "print_line", printed.put_nowait)
    silent = f"{sys.executable} -c 'import sys; sys.stdin.read()'"

    async def use() -> None:
        async with connect_options.ConnectOptions(timeout=WAIT).client(silent):
            pass

    command = asyncio.create_task(use())
    assert silent in await asyncio.wait_for(printed.get(), WAIT)
    command.cancel()
    with suppress(asyncio.CancelledError):
        await command


async def test_questions_of_concurrent_calls_are_asked_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise, the answer to the last prompt would answer the first question."""
    order: list[str] = []
    read = asyncio.Event()

    async def ask(question: Question) -> str:
        order.append(f"{question.message} asked")
        await read.wait()
        order.append(f"{question.message} answered")
        return "decline"

    monkeypatch.setattr(connect_options, "_ask", ask)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: True))
    handler: Any = connect_options.person()
    both = asyncio.gather(handler(Question(message="first")), handler(Question(message="second")))
    await asyncio.sleep(0)
    read.set()
    await both
    assert order == ["first asked", "first answered", "second asked", "second answered"]
