"""``millstream record`` and ``replay``: what was said is written down, can be answered from, and compared with.

Real processes at both ends of the recorder. The rules are our choice.
"""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from websockets import ConnectionClosed, Subprotocol
from websockets.asyncio.server import ServerConnection, serve

from cli.test_faults import run
from client.rude import DONE, discovering, greeting, rude
from client.test_param_headers import behave
from millstream import Client
from millstream._app.serving.errors import CommandError
from millstream._cli.program import program
from millstream._cli.recording.acting import Actor
from millstream._cli.recording.transcript import Writer, exchanges, load
from millstream.client._errors import ConnectionLost, Failure
from patience import WAIT
from processes import ROOT, Shared, free_port, millstream, serving, shared

SHOP = str(ROOT / "tests" / "client" / "shop.py")
REVISIONS = ["2025-06-18", "2026-07-28"]
URLS = {
    "url": "http://127.0.0.1:{}/mcp",
    "sse": "http://127.0.0.1:{}/sse",
    "websocket": "ws://127.0.0.1:{}/ws",
}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "millstream", *words]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with shared(lambda port: millstream(SHOP, port, "--serve", "hub"), tmp_path_factory.mktemp("shop")) as running:
        yield running


async def visit(recorder: list[str], revision: str) -> list[Any]:
    """What a client does for a recording, and what it got."""
    steps: list[tuple[float, float | None]] = []
    async with Client(
        recorder, revision=revision, elicit=lambda question: {"street": "Mill Lane", "copies": 2}
    ) as client:
        order = await client.call("order", isbn="7", copies=2)
        slow = await client.call("slowly", steps=2, progress=lambda value, total, text: steps.append((value, total)))
        asked = await client.call("deliver")
        with pytest.raises(Failure) as caught:
            await client.call("nothing")
        book = await client.read("book://7")
        return [order.text, slow.text, asked.text, str(caught.value), book[0].text, steps]


@pytest.mark.server
@pytest.mark.parametrize(
    ("kind", "revision"),
    [*((kind, revision) for kind in ("program", "url", "websocket") for revision in REVISIONS), ("sse", REVISIONS[0])],
)
async def test_a_recorded_session_can_be_replayed(kind: str, revision: str, tmp_path: Path, server: Shared) -> None:
    """Through the recorder all is as without it. Then the recording answers a client in the server's place, with
    progress and questions; and the server still gives the same answers.
    """
    file = tmp_path / "shop.jsonl"
    place = SHOP if kind == "program" else URLS[kind].format(server.port())
    got = await visit(command("record", str(file), place), revision)
    assert got[5] == [(1, 2), (2, 2)]
    assert await visit(command("replay", str(file)), revision) == got
    code, out, error = await run("replay", str(file), "--against", place, "--json")
    assert (code, error) == (0, "")
    compared = json.loads(out)
    assert compared["differences"] == []
    assert compared["requests"] >= 5
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert lines[0]["session"]["server"] == place
    assert {line["from"] for line in lines[1:]} == {"client", "server"}
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_recording_is_for_its_owner_only_where_the_file_was_there_before(tmp_path: Path) -> None:
    """Messages hold whatever the server knows."""
    file = tmp_path / "shop.jsonl"
    file.touch(0o644)
    Writer(file, "shop.py", told=print).close()
    assert file.stat().st_mode & 0o777 == 0o600


def recording(path: Path, *messages: tuple[str, dict[str, Any]]) -> Path:
    """A recording as `record` makes it."""
    writer = Writer(path, "test", told=print)
    for who, message in messages:
        writer.line(who, json.dumps({"jsonrpc": "2.0", **message}).encode())
    writer.close()
    return path


def call(number: int, copies: int, **params: Any) -> dict[str, Any]:
    arguments = {"isbn": "7", "copies": copies}
    return {"id": number, "method": "tools/call", "params": {"name": "order", "arguments": arguments, **params}}


@pytest.mark.server
async def test_other_answers_than_then_are_shown(tmp_path: Path) -> None:
    """As a change, with the status 1; members that differ each time can be left out."""
    old = {"content": [{"type": "text", "text": "sold out"}], "structuredContent": {"isbn": "8", "copies": 2}}
    file = recording(tmp_path / "f", ("client", call(1, 2)), ("server", {"id": 1, "result": old}))
    code, out, _ = await run("replay", str(file), "--against", SHOP)
    assert code == 1
    assert '-      "isbn": "8"' in out
    assert '+      "isbn": "7"' in out
    assert "1 requests, 1 with another answer." in out
    code, out, _ = await run("replay", str(file), "--against", SHOP, "--ignore", "isbn", "--ignore", "text")
    assert (code, out.splitlines()[-1]) == (0, "1 requests, 0 with another answer.")


def test_the_same_request_is_answered_in_turn_and_others_with_an_error(tmp_path: Path) -> None:
    """Ids and progress tokens become those of the request at hand."""
    note = {"method": "notifications/progress", "params": {"progressToken": 9, "progress": 1}}
    file = recording(
        tmp_path / "f",
        ("client", call(1, 2, _meta={"progressToken": 9})),
        ("server", note),
        ("server", {"id": 1, "result": {"n": 1}}),
        ("client", call(2, 2)),
        ("server", {"id": 2, "result": {"n": 2}}),
        ("server", {"method": "notifications/tools/list_changed"}),
    )
    actor = Actor(exchanges(load(file)))
    first = actor.replies({**call(70, 2), "params": {**call(70, 2)["params"], "_meta": {"progressToken": "x"}}})
    assert first[0]["params"]["progressToken"] == "x"
    assert (first[1]["id"], first[1]["result"]) == (70, {"n": 1})
    second = actor.replies(call(71, 2))
    assert [each.get("method") for each in second] == [None, "notifications/tools/list_changed"]
    assert actor.replies(call(72, 2))[0]["result"] == {"n": 2}
    assert "no answer to this call of tools/call" in actor.replies(call(73, 5))[0]["error"]["message"]
    assert actor.replies({"id": 1, "method": "x"})[0]["error"]["code"] == -32601


def test_a_recording_stops_at_its_limit_and_says_so(tmp_path: Path) -> None:
    """A server that talks without end doesn't fill the disk; whole lines only."""
    told: list[str] = []
    writer = Writer(tmp_path / "f", "test", max_bytes=500, told=told.append)
    for _ in range(100):
        writer.line("server", b'{"jsonrpc":"2.0","method":"notifications/x"}')
    writer.close()
    assert (tmp_path / "f").stat().st_size <= 500
    assert len(load(tmp_path / "f")) > 2
    assert told == ["The recording is full: the rest isn't written down."]


def test_a_recording_holds_whatever_a_server_says(tmp_path: Path) -> None:
    """A fixed defect: nobody could read one with a text that some call several lines, and what is nested without end
    ended the recorder.
    """
    text = "one\u2028two\u2029three\x85four\x9b31mfive\x0bsix"
    file = recording(tmp_path / "f", ("server", {"method": "notifications/message", "params": {"data": text}}))
    writer = Writer(file, "test", told=print)
    writer.line("server", b"[" * 200_000)
    writer.line("server", json.dumps({"result": {"text": text}}, ensure_ascii=False).encode())
    writer.close()
    first, second = load(file)
    assert (first.message["params"], second.message["result"]) == ({"data": text}, {"text": text})


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), (b"\xff", "isn't text"), (b"{}\n", "Line 1 of"), (b"", "has no messages"),
     (b'{"at":0,"session":{}}\nx\n', "Line 2 of")],
)  # fmt: skip
def test_what_is_no_recording_is_refused(content: bytes | None, words: str, tmp_path: Path) -> None:
    """In one sentence."""
    file = tmp_path / "f"
    if content is not None:
        file.write_bytes(content)
    done = CliRunner().invoke(program("replay"), ["replay", str(file)])
    assert isinstance(done.exception, CommandError)
    assert words in done.exception.what


@pytest.mark.server
@pytest.mark.parametrize(
    ("words", "said"),
    [(["no-such-program"], "There is no program"), ([sys.executable, "-c", "raise SystemExit('broken')"], "broken")],
)
async def test_a_server_that_does_not_start_is_reported_through_the_recorder(
    words: list[str], said: str, tmp_path: Path
) -> None:
    """What it said reaches the client's side."""
    with pytest.raises(ConnectionLost, match=said):
        async with Client(command("record", str(tmp_path / "f"), "--", *words)):
            pass


@pytest.mark.server
async def test_a_url_that_is_no_server_is_an_answer_of_the_recorder(tmp_path: Path, server: Shared) -> None:
    """The client gets an error for each request, and doesn't wait."""
    url = f"http://127.0.0.1:{server.port()}/nothing"
    with pytest.raises(Failure, match="is not an MCP endpoint"):
        async with Client(command("record", str(tmp_path / "f"), url), revision="2025-11-25"):
            pass


@pytest.mark.server
async def test_the_bridge_to_a_url_fills_in_headers_and_ends_the_session(tmp_path: Path) -> None:
    """What Streamable HTTP wants there, a client on standard input and output doesn't know."""
    async with rude(discovering(behave)) as server:
        async with Client(command("record", str(tmp_path / "f"), server.url)) as client:
            await client.tools()
            assert (await client.call("x", region=" Zürich", count=3)).text == "done"
        last = server.asked[-1].headers
        assert (last["mcp-method"], last["mcp-name"], last["mcp-param-count"]) == ("tools/call", "x", "3")
        assert last["mcp-param-region"] == "=?base64?IFrDvHJpY2g=?="
        assert last["mcp-protocol-version"] == "2026-07-28"
    async with rude(greeting(lambda asked: asked.result(DONE), session="s1")) as server:
        async with Client(command("record", str(tmp_path / "g"), server.url), revision="2025-11-25") as client:
            assert (await client.call("x")).text == "done"
        called = next(asked for asked in server.asked if asked.method == "tools/call")
        assert (called.headers["mcp-session-id"], called.headers["mcp-protocol-version"]) == ("s1", "2025-11-25")
        assert (server.asked[-1].verb, server.asked[-1].headers["mcp-session-id"]) == ("DELETE", "s1")


@pytest.mark.server
async def test_a_server_that_says_more_than_the_client_takes_ends_the_recorder(tmp_path: Path) -> None:
    """A fixed defect: large messages filled memory, and once 10,000 waited, the recorder stood still for ever."""
    stopped = asyncio.Event()

    async def flood(socket: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            for _ in range(80):
                await socket.send("x" * 2**20)
        await socket.wait_closed()
        stopped.set()

    async with serve(flood, "127.0.0.1", 0, subprotocols=[Subprotocol("mcp")], compression=None) as listener:
        url = f"ws://127.0.0.1:{next(iter(listener.sockets)).getsockname()[1]}/ws"
        recorder = await asyncio.create_subprocess_exec(
            *command("record", str(tmp_path / "f"), url), stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        assert recorder.stdout is not None
        assert recorder.stderr is not None
        async with asyncio.timeout(WAIT):
            await stopped.wait()
            while await recorder.stdout.read(2**20):
                pass
            assert b"The client is slower than the server" in await recorder.stderr.read()
            assert await recorder.wait() == 1


@pytest.mark.server
async def test_a_websocket_at_another_path_is_told_where_it_is(server: Shared, tmp_path: Path) -> None:
    """A fixed defect: nothing said that `/mcp` is the path of HTTP alone. Without the hub, a stream opened."""
    remedy = "Check the path: with --serve hub, Millstream has a WebSocket at {}/ws.\n"
    url = f"ws://127.0.0.1:{server.port()}"
    status, _, error = await run("record", str(tmp_path / "r"), f"{url}/mcp")
    said = f"Error: {url}/mcp is not a WebSocket: it answers with status 404."
    assert (status, error) == (3, f"{said} {remedy.format(url)}")
    port = free_port()
    with serving(millstream(SHOP, port), port, tmp_path / "log"):
        url = f"ws://127.0.0.1:{port}"
        status, _, error = await run("list", f"{url}/mcp")
        said = f"Error: {url}/mcp is not a WebSocket: it answers with status 404."
        assert (status, error) == (3, f"{said} {remedy.format(url)}")
