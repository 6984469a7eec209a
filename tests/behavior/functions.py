"""Small functions of the world server, each for one behavior.

Functions write to journals. Clients read them and wait for them with tools, so tests are the same for each transport.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import pydantic

from behavior.boards import GATES, JOURNAL, count_call, notify_waiters, until
from millstream import (
    Audio,
    Cancelled,
    Context,
    Declined,
    Elicit,
    EmbeddedResource,
    Field,
    Image,
    Message,
    ResourceLink,
    Roots,
    Sample,
    SyncContext,
    Text,
    ToolError,
    ToolResult,
)
from millstream._protocol.content import ToolResultBlock, ToolUse
from millstream._server.calls.call import Call
from patience import WAIT

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
WAV = b"RIFF" + bytes(8)


def note(key: str, text: str) -> None:
    """Write to a journal, from the event loop or a thread."""
    JOURNAL[key].append(text)
    notify_waiters()


def journal(key: str) -> list[str]:
    """Return the lines of a journal."""
    return list(JOURNAL[key])


async def awaited(key: str, text: str) -> str:
    """Wait until a journal contains a text."""
    async with asyncio.timeout(WAIT):
        await until(lambda: text in JOURNAL[key])
    return text


def open_gate(key: str) -> str:
    """Open the gate that a function waits for."""
    GATES[key].set()
    notify_waiters()
    return "open"


# What a function returns


@dataclass
class Point:
    x: int
    y: int = 0


class Size(msgspec.Struct):
    width: int
    height: int


class Person(pydantic.BaseModel):
    name: str
    age: int = 0


def text() -> str:
    return "plain"


def picture_bytes() -> bytes:
    return PNG


def other_bytes() -> bytes:
    return b"\x00\x01"


def point() -> Point:
    return Point(1, 2)


def size() -> Size:
    return Size(3, 4)


def person() -> Person:
    return Person(name="Ada", age=36)


def image() -> Image:
    return Image(PNG, "image/png")


def audio() -> Audio:
    return Audio(WAV, "audio/wav")


def link() -> ResourceLink:
    return ResourceLink(uri="note://one", name="one", title="The first", description="A note.")


def embedded() -> EmbeddedResource:
    return EmbeddedResource("note://one", text="inside", mime_type="text/plain")


def mixed() -> list[str | Image | Audio | ResourceLink]:
    return ["first", image(), audio(), link()]


def nothing() -> None:
    return None


def number() -> int:
    return 42


def numbers() -> list[int]:
    return [1, 2, 3]


def mapping() -> dict[str, int]:
    return {"a": 1}


def spelled_out() -> ToolResult:
    return ToolResult(content="done", structured={"n": 1}, meta={"example.com/cost": 2})


# Arguments and errors


def add(a: int, b: Annotated[int, Field(ge=0)] = 0) -> int:
    """Adds."""
    return a + b


def routed(region: Annotated[str, Field(header="Region")]) -> str:
    return region


def fails() -> str:
    raise ToolError("Nothing left in stock.")


def breaks() -> str:
    raise ValueError("the secret")


def lies() -> Point:
    return {"x": "no number"}  # type: ignore[return-value]


async def sleeps() -> str:
    await asyncio.Event().wait()
    return "never"


def blocks_too_long(key: str) -> str:
    note(key, "begun")
    GATES[key].wait(WAIT)
    return "late"


# Progress, logs, streams


async def steps(ctx: Context) -> str:
    for done in (1, 2, 2, 1, 3):
        await ctx.progress(done, 3, f"step {done}")
    return "stepped"


async def logs(ctx: Context) -> str:
    await ctx.debug("a detail")
    await ctx.info({"n": 1})
    await ctx.log("error", "a problem", logger="world")
    return "logged"


async def counts(upto: int) -> AsyncIterator[str]:
    for n in range(1, upto + 1):
        yield f"at {n}"


def counts_in_thread(upto: int) -> Iterator[str]:
    for n in range(1, upto + 1):
        yield f"at {n}"


async def weigh(arguments: dict[str, Any], call: Call) -> list[str | int]:
    """Run as a low-level tool, with arguments that match a schema, and the call."""
    return [arguments["of"], len(arguments["of"]), call.method]


async def waits(key: str, ctx: Context) -> str:
    """Report progress, then wait until the gate opens or the call is canceled."""
    await ctx.progress(1)
    note(key, "begun")
    try:
        await until(GATES[key].is_set)
    except asyncio.CancelledError:
        note(key, "cancelled")
        raise
    note(key, "ended")
    return "waited"


def waits_in_thread(key: str, ctx: SyncContext) -> str:
    note(key, "begun")
    GATES[key].wait(WAIT)
    note(key, "cancelled" if ctx.cancelled else "ended")
    return "waited"


def thread_name() -> bool:
    return threading.current_thread() is threading.main_thread()


async def polled(key: str, ctx: Context) -> str:
    """Drop the connection, so the client has to poll for the rest."""
    await ctx.progress(1)
    dropped = await ctx.close_stream(retry_ms=10)
    note(key, f"dropped {dropped}")
    await until(GATES[key].is_set)
    await ctx.progress(2)
    return "polled"


# Questions


async def asks(kind: Literal["point", "size", "person", "schema"], ctx: Context) -> str:
    """Ask for a value of a type."""
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    types: dict[str, Any] = {"point": Point, "size": Size, "person": Person, "schema": schema}
    try:
        value = await ctx.elicit("Which one?", types[kind])
    except Declined:
        return "declined"
    except Cancelled:
        return "dismissed"
    return repr(value)


def asks_in_thread(ctx: SyncContext) -> str:
    value = ctx.elicit("Which point?", Point)
    return repr(value)


async def insists(ctx: Context) -> str:
    return repr(await ctx.elicit("Which point?", Point))


async def asks_url(ctx: Context) -> str:
    await ctx.elicit_url("Please pay", "https://example.com/pay")
    return "agreed"


async def samples(ctx: Context) -> str:
    answer = await ctx.sample("Say a word", max_tokens=7, system="Be brief", temperature=0.5)
    return f"{answer.model}: {answer.text}"


async def samples_with_tools(ctx: Context) -> str:
    tool = {"name": "weather", "inputSchema": {"type": "object"}}
    answer = await ctx.sample("How is the weather?", max_tokens=9, tools=[tool], tool_choice={"mode": "auto"})
    return repr(answer.stop_reason)


USES = Message("assistant", [ToolUse("a", "weather", {}), ToolUse("b", "tides", {})])
RESULTS = [ToolResultBlock("b", [Text("low")]), ToolResultBlock("a", [Text("sunny")])]
CONVERSATIONS: dict[str, Any] = {
    "balanced": ["How is the weather?", USES, Message("user", RESULTS), "And tomorrow?"],
    "blocks": [Message("user", [Text("one"), Image(PNG, "image/png")]), Message("assistant", [Text("two")]), "three"],
    "content": ["What is this?", Image(PNG, "image/png")],
    "audio": [Message("user", Audio(WAV, "audio/wav"))],
    "without results": ["How is the weather?", USES],
    "one result missing": [USES, Message("user", RESULTS[:1])],
    "results in two messages": [USES, Message("user", RESULTS[:1]), Message("user", RESULTS[1:])],
    "something between": [USES, "wait", Message("user", RESULTS)],
    "a result twice": [USES, Message("user", [*RESULTS, RESULTS[0]])],
    "results of nothing": [Message("user", RESULTS)],
    "results and text": [USES, Message("user", [*RESULTS, Text("and now?")])],
    "uses of the user": [Message("user", [ToolUse("a", "weather", {})]), Message("user", RESULTS[1:])],
    "results of the assistant": [USES, Message("assistant", RESULTS)],
    "a link": [Message("user", ResourceLink(uri="note://one", name="one"))],
}


async def samples_conversation(kind: str, ctx: Context) -> str:
    try:
        return (await ctx.sample(CONVERSATIONS[kind], max_tokens=9)).text
    except ValueError as error:
        return f"refused: {error}"


async def lists_roots(ctx: Context) -> list[str]:
    return [root.uri for root in await ctx.roots()]


async def asks_all(ctx: Context) -> str:
    answers = await ctx.ask(where=Elicit("Where?", Point), word=Sample("A word", max_tokens=5), folders=Roots())
    return f"{answers['where']} {answers['word'].text} {[root.uri for root in answers['folders']]}"


async def asks_twice(key: str, ctx: Context) -> str:
    """Ask two questions, with a side effect between them."""
    first = await ctx.elicit("First?", Point, key="first")
    paid = await ctx.once("pay", lambda: _effect(key))
    second = await ctx.elicit("Second?", Size, key="second")
    return f"{first.x} {paid} {second.width}"


def _effect(key: str) -> int:
    note(key, "paid")
    return len(JOURNAL[key])


def asks_twice_in_thread(key: str, ctx: SyncContext) -> str:
    first = ctx.elicit("First?", Point, key="first")
    paid = ctx.once("pay", lambda: _effect(key))
    second = ctx.elicit("Second?", Size, key="second")
    return f"{first.x} {paid} {second.width}"


async def never_content(key: str, ctx: Context) -> str:
    while True:
        await ctx.elicit(f"Question {count_call(key)}?", Point)


def needs_sampling() -> str:
    return "sampled"


async def who(ctx: Context) -> dict[str, Any]:
    return {"revision": ctx.revision, "client": ctx.client.name, "session": ctx.session is not None}
