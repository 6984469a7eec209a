import asyncio
import gc
import json
from collections.abc import Iterator
from typing import Any

import pytest

from cases import for_each
from millstream import Server
from millstream._protocol.errors import ProtocolError
from millstream._protocol.jsonrpc import MAX_ID, Envelope
from millstream._server.calls.call import Call
from patience import WAIT
from wire import POST, encode_headers, encode_request, per_request, routing, run_wire
from wire import request as request_of

SIZE = 1_000_003
"""Bytes: nothing else has this size."""


@pytest.fixture(scope="module", autouse=True)
def _nothing_of_other_tests() -> None:  # pyright: ignore[reportUnusedFunction]
    """What is here already is no subject of these tests: neither the collector nor `gc.get_objects` goes through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only what counts references frees objects."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def _until(fact: Any) -> None:
    async with asyncio.timeout(WAIT):
        while not fact():  # noqa: ASYNC110  counts tell nobody
            await asyncio.sleep(0.002)


def alive(kind: type) -> int:
    """How many objects of a kind there are."""
    return sum(isinstance(each, kind) for each in gc.get_objects())


REFUSED: dict[str, Any] = {
    "unknown tool": request_of("tools/call", {"name": "none", "arguments": {}}),
    "bad arguments": request_of("tools/call", {"name": "add", "arguments": {"a": "x"}}),
    "bad cursor": request_of("tools/list", {"cursor": "x"}),
    "subscription to nothing": per_request("subscriptions/listen", {"notifications": 3}),
}


@pytest.mark.usefixtures("no_collector")
@for_each("message", REFUSED.values(), ids=REFUSED)
async def test_rejected_calls_are_not_kept_in_memory(message: dict[str, Any]) -> None:
    server = Server("refusing")

    @server.tool
    def add(a: int) -> int:
        """Never called."""
        return a

    headers = routing(message["method"]) if "_meta" in message["params"] else POST
    async with run_wire(server, "lane") as wire:
        gc.collect()
        before = alive(Call)  # of other tests of this process
        for _ in range(3):
            assert (await wire.post(message, headers)).message["error"]["code"] == -32602
        assert alive(Call) <= before


async def test_open_subscriptions_do_not_keep_their_request() -> None:
    server = Server("streams")
    server.tool(len)
    message = per_request("subscriptions/listen", {"notifications": {"toolsListChanged": True}}, 7)
    about = {"io.modelcontextprotocol/clientInfo": {"name": "n" * SIZE, "version": "v" * SIZE}}
    message["params"]["_meta"] |= {"progressToken": "t" * MAX_ID, "x": "x" * SIZE, **about}
    headers = routing("subscriptions/listen")
    async with run_wire(server, "lane") as wire:
        assert wire.running is not None
        peer = await wire.running.connect()
        body = json.dumps(message).encode()
        await peer.send(encode_request("POST", "/mcp", encode_headers(headers), body))
        await peer.head()
        await peer.chunk()
        (call,) = wire.runtime.dispatcher.calls
        held = [*call.__struct_fields__]
        assert sum(len(getattr(call, name)) for name in held if isinstance(getattr(call, name), str | bytes)) < 1000
        assert len(call.client.name) + len(call.client.version) <= 512
        assert call.origin.body == b""  # type: ignore[union-attr, attr-defined]
        frames = [
            len(value.params) if isinstance(value, Envelope) else len(value)
            for task in asyncio.all_tasks()
            for frame in _frames(task)
            if frame.f_code.co_filename != __file__
            for value in frame.f_locals.values()
            if isinstance(value, bytes | str | Envelope)
        ]
        assert max(frames) < SIZE


def _frames(task: asyncio.Task[Any]) -> Iterator[Any]:
    """The frames of a task and of all that it awaits."""
    awaited: Any = task.get_coro()
    while getattr(awaited, "cr_frame", None) is not None:
        yield awaited.cr_frame
        awaited = awaited.cr_await


def nobody(book: int) -> str:
    """Fail."""
    raise ProtocolError(-32602, "No such book")


@pytest.mark.usefixtures("no_collector")
@for_each(
    ("method", "params"),
    [
        ("no/such", {}),
        ("tools/call", {"name": "unknown", "arguments": {}}),
        ("tools/call", {"name": "nobody", "arguments": {"book": "x"}}),
        ("tools/call", {"name": "nobody", "arguments": {"book": 1}}),
        ("resources/read", {"uri": "x://y"}),
        ("prompts/get", {"name": "unknown"}),
    ],
)
async def test_rejections_do_not_keep_their_call(method: str, params: dict[str, Any]) -> None:
    server = Server("refusals")
    server.tool(thread=False)(nobody)
    server.resource("z://z")(page)
    server.prompt(page)
    async with run_wire(server, "asgi") as wire:
        session = await wire.initialize()
        before = alive(Call) + alive(ProtocolError)
        for _ in range(3):
            await wire.post(request_of(method, params), session)
            await wire.post(per_request(method, params), {**POST, **routing(method, next(iter(params.values()), ""))})
        await _until(lambda: alive(Call) + alive(ProtocolError) == before)


def page() -> str:
    return ""
