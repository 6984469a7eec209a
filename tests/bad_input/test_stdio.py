import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bad_input.shop import make_shop
from bad_input.test_envelope import IDS, NOT_A_MESSAGE, NOT_JSON, SHALLOW
from cases import for_each
from millstream import Server
from millstream._transports.stdio import serve_stdio
from processes import ROOT
from wire import WAIT, envelope, request

LIMIT = 200_000
PING = b'{"jsonrpc":"2.0","id":"p","method":"ping"}\n'


class Pipes:
    """The client's ends of the pipes."""

    def __init__(self, into: int, reader: asyncio.StreamReader) -> None:
        self._into = into
        self._reader = reader

    async def write(self, data: bytes) -> None:
        """Write everything, in a thread if the pipe is full."""
        view = memoryview(data)
        while view:
            view = view[await asyncio.to_thread(os.write, self._into, view) :]

    async def answer(self) -> Any:
        """Return the next line."""
        line = await asyncio.wait_for(self._reader.readline(), WAIT)
        assert line.endswith(b"\n"), line
        return json.loads(line)

    async def pong(self) -> None:
        """Check that the next line is the reply to `PING`."""
        assert await self.answer() == {"jsonrpc": "2.0", "id": "p", "result": {}}


@pytest.fixture(scope="module")
def small_shop() -> Server:
    """A shop with a small message limit, registered once."""
    return make_shop(max_body=LIMIT)


@pytest.fixture
async def pipes(small_shop: Server) -> AsyncIterator[Pipes]:
    """A server connected through two pipes."""
    stdin, into = os.pipe()
    out, stdout = os.pipe()
    reader = asyncio.StreamReader(limit=2**20)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(out, "rb", buffering=0)
    )
    async with small_shop.running() as runtime:
        serving = asyncio.create_task(serve_stdio(runtime.dispatcher, stdin=stdin, stdout=stdout))
        try:
            yield Pipes(into, reader)
        finally:
            os.close(into)
            await asyncio.wait_for(serving, WAIT)
            transport.close()
            os.close(stdout)
    os.close(stdin)


LINES = {name: body for name, body in NOT_JSON.items() if b"\n" not in body and body.strip(b" \t\r")}


@for_each("name", LINES)
async def test_invalid_json_line_is_a_parse_error_and_keeps_the_process(pipes: Pipes, name: str) -> None:
    await pipes.write(LINES[name] + b"\n" + PING)
    message = await pipes.answer()
    assert (message["error"]["code"], message.get("id", "none")) == (-32700, "none")
    await pipes.pong()


@for_each("name", NOT_A_MESSAGE)
async def test_invalid_message_lines_get_invalid_request(pipes: Pipes, name: str) -> None:
    await pipes.write(json.dumps(NOT_A_MESSAGE[name]).encode() + b"\n" + PING)
    messages = [await pipes.answer(), await pipes.answer()]
    messages.sort(key=lambda message: "result" in message)  # a refused batch is answered by a task of its own
    assert (messages[0]["error"]["code"], messages[0].get("id", "none")) == (-32600, "none")
    assert messages[1] == {"jsonrpc": "2.0", "id": "p", "result": {}}


@for_each("name", SHALLOW)
async def test_brackets_inside_strings_do_not_count_as_nesting(pipes: Pipes, name: str) -> None:
    await pipes.write(SHALLOW[name] + b"\n")
    assert (await pipes.answer())["result"] == {}


@for_each("request_id", IDS, ids=lambda value: repr(value)[:24])
async def test_ids_are_returned_unchanged(pipes: Pipes, request_id: Any) -> None:
    """JSON-RPC 2.0, section 5."""
    await pipes.write(json.dumps(request("ping", id=request_id)).encode() + b"\n")
    answer = await pipes.answer()
    assert (answer["id"], type(answer["id"])) == (request_id, type(request_id))


async def test_lines_may_arrive_in_arbitrary_pieces(pipes: Pipes) -> None:
    line = json.dumps(request("ping", id="é☃😀"), ensure_ascii=False).encode()
    for cut in range(1, len(line)):
        await pipes.write(PING + line[:cut])
        await pipes.pong()
        await pipes.write(line[cut:] + b"\n")
        assert (await pipes.answer())["id"] == "é☃😀"


async def test_crlf_and_blank_lines_are_accepted(pipes: Pipes) -> None:
    await pipes.write(b"\n\r\n  \t\r\n" + PING.replace(b"\n", b"\r\n") + b"\r\n" + b"  " + PING)
    await pipes.pong()
    await pipes.pong()


@for_each("size", [LIMIT + 1, 5 * LIMIT])
async def test_overlong_line_is_one_parse_error(pipes: Pipes, size: int) -> None:
    await pipes.write(b"x" * size)
    message = await pipes.answer()
    assert (message["error"]["code"], message.get("id", "none")) == (-32700, "none")
    await pipes.write(b"x" * 10 + b"\n" + PING)
    await pipes.pong()


async def test_lines_at_the_limit_are_read(pipes: Pipes) -> None:
    await pipes.write(PING[:-1].ljust(LIMIT) + b"\n")
    await pipes.pong()


async def test_invalid_messages_get_the_right_errors_for_their_era(pipes: Pipes) -> None:
    """MCP 2026-07-28, basic/versioning."""
    lines = {
        -32022: request("tools/list", {"_meta": envelope("2099-01-01")}, "c"),
        -32601: request("ping", {"_meta": envelope()}, "d"),
        -32602: request("tools/call", {"name": "nothing"}, "e"),
        -32021: request("tools/call", {"name": "sampler", "_meta": envelope()}, "f"),
    }
    for code, line in lines.items():
        await pipes.write(json.dumps(line).encode() + b"\n")
        answer = await pipes.answer()
        assert (answer["error"]["code"], answer["id"]) == (code, line["id"])
    await pipes.write(PING)
    await pipes.pong()


@pytest.mark.server
def test_every_invalid_line_gets_a_response() -> None:
    lines = [*LINES.values(), *(json.dumps(value).encode() for value in NOT_A_MESSAGE.values())]
    given = b"\n".join([*lines, PING])
    start = "from millstream._cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", start, "run", "examples/greet.py", "--transport", "stdio"],
        input=given, capture_output=True, timeout=WAIT, cwd=ROOT, check=False,
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert len(answers) == len(lines) + 1
    assert sum("result" in answer for answer in answers) == 1
    assert {answer["error"]["code"] for answer in answers if "error" in answer} == {-32700, -32600}
