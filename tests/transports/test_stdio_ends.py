import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from cases import for_each
from fleet import until
from millstream import Context, Server, Settings
from millstream._app.runtime import Runtime
from millstream._transports.stdio import serve_stdio
from wire import LATEST_HANDSHAKE, WAIT, request

FORM = {"type": "object", "properties": {"x": {"type": "integer"}}}


class Client:
    """The other end of two pipes."""

    def __init__(self, dispatcher: Any) -> None:
        stdin, self._in = os.pipe()
        self._out, stdout = os.pipe()
        self._descriptors = [stdin, stdout, self._out]
        self.stop = asyncio.Event()
        """The server is told to end."""
        serving = serve_stdio(dispatcher, stdin=stdin, stdout=stdout, stop=self.stop)
        self.serving = asyncio.get_running_loop().create_task(serving)

    def send(self, *messages: Any) -> None:
        """Lines to the server."""
        os.write(self._in, b"".join(json.dumps(message).encode() + b"\n" for message in messages))

    def leave(self) -> None:
        """End the input."""
        os.close(self._in)

    async def rest(self, *, whole: bool = True) -> list[Any]:
        """What the server says until it ends by itself; without what isn't `whole`, nothing."""
        async with asyncio.timeout(WAIT):
            await self.serving
        data = os.read(self._out, 65_536)
        for descriptor in self._descriptors:
            os.close(descriptor)
        return [json.loads(line) for line in data.splitlines() if whole]


def opening() -> Any:
    """`initialize` of a client that answers questions."""
    info = {"name": "t", "version": "1"}
    params = {"protocolVersion": LATEST_HANDSHAKE, "capabilities": {"elicitation": {}}, "clientInfo": info}
    return request("initialize", params, 0)


async def test_questions_after_end_of_input_fail_immediately() -> None:
    mcp, gone = Server("asks", settings=Settings(drain_timeout=30)), asyncio.Event()

    @mcp.tool
    async def asks(ctx: Context) -> str:
        await gone.wait()
        await ctx.elicit("Which?", FORM)
        return "never"

    async with mcp.running() as runtime:
        runtime.services.endings.add(gone.set)
        client = Client(runtime.dispatcher)
        client.send(opening(), request("tools/call", {"name": "asks"}, 1))
        client.leave()
        said = {each.get("id"): each for each in await client.rest()}
        runtime.services.endings.discard(gone.set)
    assert said[1]["result"]["isError"] is True


@asynccontextmanager
async def asking_client() -> AsyncIterator[tuple[Runtime, Client]]:
    """A client whose call waits for an answer of its."""
    mcp, asking = Server("asks", settings=Settings(drain_timeout=30)), asyncio.Event()

    @mcp.tool
    async def asks(ctx: Context) -> str:
        asking.set()
        await ctx.elicit("Which?", FORM)
        return "never"

    async with mcp.running() as runtime:
        client = Client(runtime.dispatcher)
        client.send(opening(), request("tools/call", {"name": "asks"}, 1))
        async with asyncio.timeout(WAIT):
            await asking.wait()
        yield runtime, client


async def test_open_questions_fail_at_end_of_input() -> None:
    async with asking_client() as (_, client):
        client.leave()
        said = {each.get("id"): each for each in await client.rest()}
    assert "has disconnected" in said[1]["result"]["content"][0]["text"]


async def test_open_questions_are_withdrawn_on_shutdown() -> None:
    async with asking_client() as (runtime, client):
        await until(lambda: len(runtime.services.questions))
        client.stop.set()
        _, asked, cancelled, answer = await client.rest()
        client.leave()
    assert (cancelled["method"], cancelled["params"]["requestId"]) == ("notifications/cancelled", asked["id"])
    assert "The server is stopping" in answer["result"]["content"][0]["text"]


@for_each(
    ("way", "said"), [("stop", "The server is stopping"), ("leave", "has disconnected"), ("late", "didn't respond")]
)
async def test_concurrent_questions_that_fail_together_report_the_reason(way: str, said: str) -> None:
    timeout = 0.01 if way == "late" else 60
    mcp, over = Server("asks", settings=Settings(drain_timeout=30, input_timeout=timeout)), asyncio.Event()

    @mcp.tool
    async def asks(ctx: Context) -> str:
        try:
            async with asyncio.TaskGroup() as group:
                for name in ("Which?", "When?"):
                    group.create_task(ctx.elicit(name, FORM))
        finally:
            over.set()
        return "never"

    async with mcp.running() as runtime:
        client = Client(runtime.dispatcher)
        client.send(opening(), request("tools/call", {"name": "asks"}, 1))
        await until(lambda: over.is_set() if way == "late" else len(runtime.services.questions) == 2)
        if way == "stop":
            client.stop.set()
        if way != "stop":
            client.leave()
        answers = {each.get("id"): each for each in await client.rest()}
        if way == "stop":
            client.leave()
    result = answers[1]["result"]
    assert result["isError"] is True
    assert said in result["content"][0]["text"]


@for_each("way", ["stop", "leave"])
async def test_calls_that_outlast_the_grace_time_get_an_error(way: str) -> None:
    mcp, running = Server("waits", settings=Settings(drain_timeout=0.01)), asyncio.Event()

    @mcp.tool
    async def waits() -> str:
        running.set()
        await asyncio.Event().wait()
        return "never"

    async with mcp.running() as runtime:
        client = Client(runtime.dispatcher)
        client.send(request("tools/call", {"name": "waits"}, 1))
        async with asyncio.timeout(WAIT):
            await running.wait()
        client.stop.set() if way == "stop" else client.leave()
        (answer,) = await client.rest()
    assert (answer["id"], answer["error"]["code"]) == (1, -32000)
    assert answer["error"]["message"] == "The server stopped before the call was complete. Try again."


async def test_unread_output_does_not_block_shutdown() -> None:
    mcp, running = Server("waits", settings=Settings(drain_timeout=0.01)), asyncio.Event()

    @mcp.tool
    async def waits() -> str:
        running.set()
        await asyncio.Event().wait()
        return "never"

    @mcp.tool
    async def text() -> str:
        return "x" * 1_000_000

    async with mcp.running() as runtime:
        client = Client(runtime.dispatcher)
        client.send(*(request("tools/call", {"name": name}, n) for n, name in enumerate(["waits", "text"])))
        async with asyncio.timeout(WAIT):
            await running.wait()
        await until(lambda: len(runtime.dispatcher.calls) == 1)
        client.stop.set()
        assert await client.rest(whole=False) == []
        assert not runtime.dispatcher.calls
        client.leave()


async def test_nothing_is_read_from_clients_that_do_not_read() -> None:
    mcp = Server("echo", settings=Settings(stream_buffer=64 * 1024))
    ping = json.dumps(request("ping", {}, 1)).encode() + b"\n"
    async with mcp.running() as runtime:
        client = Client(runtime.dispatcher)
        os.set_blocking(client._in, False)
        sent, standstill = 0, 0
        while standstill < 200 and sent < 64 * 1024 * 1024:
            try:
                sent += os.write(client._in, (ping * 1001)[sent % len(ping) :])
                standstill = 0
            except BlockingIOError:
                standstill += 1
            await asyncio.sleep(0)
        assert sent < 8 * 1024 * 1024
        assert len(runtime.dispatcher.calls) < 100_000
        os.set_blocking(client._out, False)
        client.leave()
        answers = ended = 0
        async with asyncio.timeout(WAIT):
            while not ended:
                await asyncio.sleep(0)
                ended = client.serving.done()  # before the pipe is emptied
                with contextlib.suppress(BlockingIOError):
                    while data := os.read(client._out, 65_536):
                        answers += data.count(b"\n")
        assert answers >= sent // len(ping)
        for descriptor in client._descriptors:
            os.close(descriptor)


async def test_input_and_output_may_be_one_socket() -> None:
    """As inetd, systemd with `Accept=yes`, and `socat EXEC` start a program."""
    peer, one = socket.socketpair()
    peer.setblocking(False)
    stdin, stdout = os.dup(one.fileno()), os.dup(one.fileno())
    loop = asyncio.get_running_loop()
    mcp = Server("books")

    @mcp.tool
    def long(size: int) -> str:
        return "x" * size

    async with mcp.running() as runtime, asyncio.timeout(WAIT):
        serving = loop.create_task(serve_stdio(runtime.dispatcher, stdin=stdin, stdout=stdout))
        call = request("tools/call", {"name": "long", "arguments": {"size": 2_000_000}}, 1)
        received = b""
        for sent in (opening(), call):
            await loop.sock_sendall(peer, json.dumps(sent).encode() + b"\n")
            while not received.endswith(b"\n"):
                received += await loop.sock_recv(peer, 65_536)
            reply, received = json.loads(received), b""
            assert reply["id"] == sent["id"]
        peer.shutdown(socket.SHUT_WR)
        await serving
    assert len(reply["result"]["content"][0]["text"]) == 2_000_000
    for each in (peer, one):
        each.close()
    for descriptor in (stdin, stdout):
        os.close(descriptor)
