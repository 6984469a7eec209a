"""A call's stream is cut after any event and resumed, repeatedly.

Every event arrives once, in order. The tool reports steps as fast as it can, or between iterations of the event loop.
The client disconnects after some events and reconnects with the last id that it received. MCP 2025-11-25,
basic/transports.
"""

import asyncio
import json
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from millstream import Context, Server, Settings
from property_settings import examples
from wire import Wire, ask_asgi, encode_headers, request


class Event(NamedTuple):
    """One event of a stream."""

    id: str
    data: str


def events_of(stream: bytes) -> list[Event]:
    """Return the complete events with an id."""
    events: list[Event] = []
    for block in stream.decode().split("\n\n")[:-1]:
        values = dict(
            line.split(": ", 1) if ": " in line else (line.rstrip(":"), "")
            for line in block.split("\n")
            if line and line[0] != ":"
        )
        if "id" in values:
            events.append(Event(values["id"], values.get("data", "")))
    return events


def make_server() -> Server:
    """Return a server with a tool that reports its steps."""
    mcp = Server("counter", settings=Settings(secret_key="a secret of the tests that is long enough"))

    @mcp.tool
    async def count(steps: int, turns: int, ctx: Context) -> int:
        """Report every step, with some iterations of the event loop in between."""
        for step in range(steps):
            await ctx.progress(step + 1)
            for _ in range(turns):
                await asyncio.sleep(0)
        return steps

    return mcp


async def listen(wire: Wire, session: dict[str, str], steps: int, turns: int, cuts: list[int]) -> list[Event]:
    """Call a tool, disconnect and resume after given numbers of events, and read to the end."""
    body = json.dumps(request("tools/call", {
        "name": "count", "arguments": {"steps": steps, "turns": turns}, "_meta": {"progressToken": "t"},
    })).encode()  # fmt: skip
    heard: list[Event] = []
    waiting = list(cuts)

    def leave(stream: bytes) -> bool:
        return bool(waiting) and len(events_of(stream)) >= waiting[0]

    method, fields, content = "POST", session, body
    while True:
        reply = await ask_asgi(wire.server, method, "/mcp", encode_headers(fields), content, stop_when=leave)
        assert reply.status == 200, reply
        heard += events_of(reply.body)
        if any('"result"' in event.data for event in heard):
            return heard
        waiting.pop(0)
        method, content = "GET", b""
        fields = {**session, "accept": "text/event-stream", "last-event-id": heard[-1].id}


@pytest.mark.parametrize("revision", ["2025-03-26", "2025-06-18", "2025-11-25"])
@given(steps=st.integers(1, 8), turns=st.integers(0, 4), cuts=st.lists(st.integers(1, 4), max_size=6))
@settings(max_examples=examples(5))
@example(steps=4, turns=0, cuts=[1, 1, 1, 1, 1])
@example(steps=4, turns=3, cuts=[1, 1, 1, 1, 1])
def test_resuming_after_any_event_delivers_each_event_once(
    revision: str, steps: int, turns: int, cuts: list[int]
) -> None:
    async def run() -> list[Event]:
        server = make_server()
        async with server.running() as runtime:
            wire = Wire(server, runtime, None)
            heard = await listen(wire, await wire.initialize(revision), steps, turns, cuts)
            await wire.until(lambda: not runtime.dispatcher.calls and not len(runtime.streams))
            return heard

    heard = asyncio.run(run())
    messages: list[Any] = [json.loads(event.data) for event in heard if event.data]
    assert [message["params"]["progress"] for message in messages[:-1]] == list(range(1, steps + 1))
    assert messages[-1]["result"]["content"][0]["text"] == str(steps)
    assert len({event.id for event in heard}) == len(heard)
    assert (heard[0].data == "") == (revision == "2025-11-25")
    assert all(event.data for event in heard[1:])


@given(steps=st.integers(1, 6))
@settings(max_examples=examples(5))
def test_finished_calls_can_be_read_from_any_event(steps: int) -> None:
    async def run() -> None:
        server = make_server()
        async with server.running() as runtime:
            wire = Wire(server, runtime, None)
            session = await wire.initialize()
            heard = await listen(wire, session, steps, 0, [])
            for place, event in enumerate(heard):
                fields = {**session, "accept": "text/event-stream", "last-event-id": event.id}
                reply = await wire.ask("GET", "/mcp", fields)
                assert events_of(reply.body) == heard[place + 1 :]

    asyncio.run(run())
