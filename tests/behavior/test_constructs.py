"""Tools with usual Python constructs around their questions behave the same in both eras.

What the caller sees and what the function does is in the table, for each way to reach the server.
"""

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from behavior import constructs
from behavior.combinations import mark_param
from http_peer import serve
from millstream import Client, Server, Settings
from patience import WAIT

REVISIONS = ("2025-11-25", "2026-07-28")
ROLLED_BACK = "enter, open, roll back: ToolError, close, failed: No stock., leave"
REPORTS = "1 first, info first, 2 second, warning {'at': 'second'}, 3 third, error third"
READS = ("Which a?, Which inner?, Box?, Last?", "a which a inner which inner box last")
TABLE = {
    "dependencies": (
        "Which?, One?",
        "handle handle handle which one",
        "enter, open, open, body, done, commit, close, commit, close, leave",
    ),
    "rolls_back": ("One?", "No stock.", ROLLED_BACK),
    "rolls_back_sync": ("One?", "No stock.", ROLLED_BACK),
    "breaks": ("One?", "Internal error.", "enter, open, roll back: KeyError, close, leave"),
    "gathers": ("One?, Two?, Three?", "one two three", "enter, start, both, leave"),
    "gathers_late": ("slow, Two?", "slow two", "enter, moved, leave"),
    "groups": ("One?", "one worked", "enter, work, leave"),
    "group_fails": ("slow", "group ended", "enter, The background failed., moved, leave"),
    "group_declined": ("decline, Two?, Next?", "next", "enter, declined, leave"),
    "times_out": ("slow, Next?", "too late, next", "enter, late, moved, leave"),
    "gives_up": ("slow", "too late", "enter, moved, leave"),
    "shields": ("slow", "slow", "enter, moved, leave"),
    "cancels": ("slow, Next?", "next", "enter, moved, leave"),
    "in_time": ("One?, Two?", "onetwo", "enter, leave"),
    "context": ("One?", "one; TAG, inside; TAG; True", "enter, leave"),
    "context_sync": ("One?", "one; TAG, inside; TAG; True", "enter, leave"),
    "reports": ("One?, Two?", "onetwo", "enter, leave", REPORTS),
    "reports_sync": ("One?, Two?", "onetwo", "enter, leave", REPORTS),
    "reports_meanwhile": ("slow", "slow", "enter, moved, leave", "1 meanwhile, info meanwhile, 2 end"),
    "tasks": ("One?, Two?", "onetwo", "enter, start, end, leave"),
    "tasks_sync": ("One?, Two?", "onetwo", "enter, start, end, leave"),
    "reads": (*READS, "enter, start, read a, read box, read inner, leave"),
    "reads_sync": (*READS, "enter, start, read a, read box, read inner, leave"),
    "changes": ("change, change", "changechange", "enter, start, leave"),
    "changes_sync": ("change, change", "changechange", "enter, start, leave"),
    "cleans_up": (
        "One?, decline, Again?",
        "declined again",
        "enter, take one, take two, give two, give one, declined, finally, cleaned, leave",
    ),
    "cleans_up_sync": (
        "One?, decline, Again?",
        "declined again",
        "enter, take one, take two, give two, give one, declined, finally, leave",
    ),
    "asks_in_finally": ("One?, Sure?", "No stock.", "enter, sure, failed: No stock., leave"),
    "asks_in_finally_sync": ("One?, Sure?", "No stock.", "enter, sure, failed: No stock., leave"),
    "declined": ("decline", "The user declined to answer.", "enter, take one, give one, leave"),
    "cancels_sync": ("cancel", "The user dismissed the question.", "enter, take one, give one, leave"),
    "repeats": ("guess, guess, guess", "after 2", "enter, try 0, try 1, try 2, leave"),
    "background": ("One?", "one TAG", "enter, work, leave"),
    "threads": ("One?", "TAG one TAG False", "enter, leave"),
    "many": ("One?, sample, Two?", "one words None two", "enter, pay, leave"),
    "mutates": ("One?", '["a","before","one"]', "enter, leave"),
    "lacks": ("Where?", "where", "enter, leave"),
    "same": ("guess, guess, guess", "0 [1, 2]", "enter, leave"),
    "state": ("One?, Two?", "{'one': 'one'} paid two", "enter, leave"),
    "repeatable": ("One?, Two?", "onetwo", "enter, start, leave"),
    "other_wrapped": ("Before?, One?, One?, After?", "before one after", "enter, body, body, leave"),
    "other_quiet": ("Before?, After?", "before quiet after", "enter, body, leave"),
    "prompt": ("One?, Two?", "About one and two", "start"),
    "shelf": ("Which a?", "a which a", "read a"),
    "box": ("Which inner?, Box?", "inner which inner box", "read box, read inner"),
}
"""Tool -> its questions, its result, its notes, and its progress and log messages."""


class Person:
    """Makes calls and answers their questions, and notes what the client sees."""

    def __init__(self, target: Any, revision: str) -> None:
        self.client = Client(
            target,
            revision=revision,
            elicit=self.answer,
            sample=self.sample,
            on_log=lambda log: self.messages.append(f"{log.level} {log.data}"),
            timeout=WAIT,
        )
        self.tag = ""
        self.questions: list[str] = []
        self.messages: list[str] = []
        self.guesses = itertools.count()

    async def answer(self, question: Any) -> Any:
        """Answer with the question."""
        text = question.message.partition(" ")[0] if question.message.startswith("change") else question.message
        self.questions.append(text)
        if text == "slow":
            await self.client.call("go", of=self.tag)
            while "moved" not in await self.notes():
                pass
        if text in ("decline", "cancel"):
            return text
        return {"value": next(self.guesses) if text == "guess" else text.lower().strip("?")}

    async def sample(self, params: Any) -> str:
        """Answer for the model."""
        self.questions.append("sample")
        return "words"

    async def notes(self) -> list[str]:
        """Return what the function has done."""
        found = (await self.client.call("journal", of=self.tag)).data
        return list(found["result"] if isinstance(found, dict) else found)

    async def observe(self, tool: str) -> tuple[str, ...]:
        """Return what a call does, as in the table."""
        self.tag, self.questions, self.messages, self.guesses = secrets.token_hex(8), [], [], itertools.count()
        text = await self.call(tool)
        seen = (", ".join(self.questions), text, ", ".join(await self.notes()), ", ".join(self.messages))
        return tuple(each.replace(self.tag, "TAG") for each in seen)

    async def call(self, tool: str) -> str:
        """Return the text of a tool, a prompt, or a resource."""
        client, tag = self.client, self.tag
        if tool == "prompt":
            return str((await client.prompt("topic", tag=tag)).messages[0].content.text)
        if tool in ("shelf", "box"):
            return str((await client.read(f"{tool}://{tag}{'/a' if tool == 'shelf' else ''}"))[0].text)
        result = await client.call(
            tool,
            {"tag": tag, **({"items": ["a"]} if tool == "mutates" else {})},
            raise_on_error=False,
            task=tool.startswith("tasks"),
            progress=lambda value, _, message: self.messages.append(f"{value:g} {message}"),
        )
        return result.text.partition(" The server's log")[0]


@asynccontextmanager
async def reach(way: str) -> AsyncIterator[Any]:
    """Yield the target of a client for a way to the server."""
    if way == "stdio":
        yield str(Path(constructs.__file__))
        return
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(constructs.mcp.running())
        if way == "memory":
            yield constructs.mcp
            return
        running = await stack.enter_async_context(serve(constructs.mcp, lane=way != "asgi"))
        url = f"http://127.0.0.1:{running.port}/mcp"
        if way.startswith("gateway"):
            gate = Server("gate", settings=Settings(secret_key="g" * 40))
            gate.upstream("constructs", url, prefix="", revision=way.removeprefix("gateway to "))
            await stack.enter_async_context(gate.running())
            running = await stack.enter_async_context(serve(gate))
            url = f"http://127.0.0.1:{running.port}/mcp"
        yield url


WAYS = ["memory", "lane", "asgi", "stdio", *(f"gateway to {each}" for each in REVISIONS)]


@pytest.mark.parametrize("way", [mark_param(each, each) for each in WAYS])
async def test_constructs_behave_the_same_in_both_eras(way: str) -> None:
    wrong = []
    async with reach(way) as target:
        for revision in REVISIONS:
            person = Person(target, revision)
            async with asyncio.timeout(WAIT), person.client:
                for tool, row in TABLE.items():
                    if (seen := await person.observe(tool)) != (*row, "")[:4]:
                        wrong.append((tool, revision, seen, row))
    assert not wrong
