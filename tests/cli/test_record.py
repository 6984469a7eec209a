import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.test_faults import run
from client.misbehaving_servers import DONE, misbehaving, with_discovery, with_handshake
from client.test_calls import behave
from millstream import Client
from millstream._cli.record import Writer
from millstream.client import ConnectionLost, ServerError
from patience import WAIT
from processes import ROOT, SharedServer, run_command, share_server

SHOP = str(ROOT / "tests" / "client" / "shop.py")
REVISIONS = ["2025-06-18", "2026-07-28"]
URLS = {
    "url": "http://127.0.0.1:{}/mcp",
}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "millstream", *words]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    with share_server(
        lambda port: run_command(SHOP, port, "--serve", "hub"), tmp_path_factory.mktemp("shop")
    ) as running:
        yield running


async def visit(recorder: list[str], revision: str) -> list[Any]:
    """Act as a client of a recording, and return the responses."""
    steps: list[tuple[float, float | None]] = []
    async with Client(
        recorder, revision=revision, elicit=lambda question: {"street": "Mill Lane", "copies": 2}
    ) as client:
        order = await client.call("order", isbn="7", copies=2)
        slow = await client.call("slowly", steps=2, progress=lambda value, total, text: steps.append((value, total)))
        asked = await client.call("deliver")
        with pytest.raises(ServerError) as caught:
            await client.call("nothing")
        book = await client.read("book://7")
        return [order.text, slow.text, asked.text, str(caught.value), book[0].text, steps]


@pytest.mark.server
@pytest.mark.parametrize(
    ("kind", "revision"),
    [(kind, revision) for kind in ("program", "url") for revision in REVISIONS],
)
async def test_recordings_contain_every_message_in_a_session(
    kind: str, revision: str, tmp_path: Path, server: SharedServer
) -> None:
    file = tmp_path / "shop.jsonl"
    place = SHOP if kind == "program" else URLS[kind].format(server.port())
    got = await visit(command("record", str(file), place), revision)
    assert got[5] == [(1, 2), (2, 2)]
    assert (json.loads(got[0]), got[4]) == ({"isbn": "7", "copies": 2}, "Book 7")
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert lines[0]["session"]["server"] == place
    assert {line["from"] for line in lines[1:]} == {"client", "server"}
    requests = [
        line["message"]["method"]
        for line in lines[1:]
        if line["from"] == "client" and {"id", "method"} <= line["message"].keys()
    ]
    assert requests.count("tools/call") >= 4
    assert requests[-1] == "resources/read"
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
    assert file.stat().st_mode & 0o777 == 0o600


def test_recordings_are_readable_only_by_their_owner(tmp_path: Path) -> None:
    file = tmp_path / "shop.jsonl"
    file.touch(0o644)
    Writer(file, "shop.py", warn=print).close()
    assert file.stat().st_mode & 0o777 == 0o600


def recording(path: Path, *messages: tuple[str, dict[str, Any]]) -> Path:
    """Create a recording with `record`."""
    writer = Writer(path, "test", warn=print)
    for who, message in messages:
        writer.line(who, json.dumps({"jsonrpc": "2.0", **message}).encode())
    writer.close()
    return path


def test_recordings_stop_at_their_limit_with_a_notice(tmp_path: Path) -> None:
    told: list[str] = []
    writer = Writer(tmp_path / "f", "test", max_bytes=500, warn=told.append)
    for _ in range(100):
        writer.line("server", b'{"jsonrpc":"2.0","method":"notifications/x"}')
    writer.close()
    assert (tmp_path / "f").stat().st_size <= 500
    assert len((tmp_path / "f").read_bytes().splitlines()) > 2
    assert told == ["The recording has reached its maximum size. Later messages aren't recorded."]


def test_recordings_accept_any_server_output(tmp_path: Path) -> None:
    text = "one\u2028two\u2029three\x85four\x9b31mfive\x0bsix"
    file = recording(tmp_path / "f", ("server", {"method": "notifications/message", "params": {"data": text}}))
    writer = Writer(file, "test", warn=print)
    writer.line("server", b"[" * 200_000)
    writer.line("server", json.dumps({"result": {"text": text}}, ensure_ascii=False).encode())
    writer.close()
    first, deep, second = [
        json.loads(line) for line in file.read_text("utf-8").split("\n")[1:-1] if '"session"' not in line
    ]
    assert (first["message"]["params"], second["message"]["result"]) == ({"data": text}, {"text": text})
    assert deep["text"] == "[" * 200_000


@pytest.mark.server
@pytest.mark.parametrize(
    ("words", "said"),
    [(["no-such-program"], "There is no program"), ([sys.executable, "-c", "raise SystemExit('broken')"], "broken")],
)
async def test_recorder_reports_servers_that_do_not_start(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConnectionLost, match=said):
        async with Client(command("record", str(tmp_path / "f"), "--", *words)):
            pass


@pytest.mark.server
async def test_recorder_reports_urls_that_are_not_servers(tmp_path: Path, server: SharedServer) -> None:
    url = f"http://127.0.0.1:{server.port()}/nothing"
    with pytest.raises(ServerError, match="isn't an MCP endpoint"):
        async with Client(command("record", str(tmp_path / "f"), url), revision="2025-11-25"):
            pass


@pytest.mark.server
async def test_url_recorder_adds_headers_and_ends_the_session(tmp_path: Path) -> None:
    async with misbehaving(with_discovery(behave)) as server:
        async with Client(command("record", str(tmp_path / "f"), server.url)) as client:
            await client.tools()
            assert (await client.call("x", region=" Zürich", count=3)).text == "done"
        last = server.requests[-1].headers
        assert (last["mcp-method"], last["mcp-name"], last["mcp-param-count"]) == ("tools/call", "x", "3")
        assert last["mcp-param-region"] == "=?base64?IFrDvHJpY2g=?="
        assert last["mcp-protocol-version"] == "2026-07-28"
    async with misbehaving(with_handshake(lambda asked: asked.result(DONE), session="s1")) as server:
        async with Client(command("record", str(tmp_path / "g"), server.url), revision="2025-11-25") as client:
            assert (await client.call("x")).text == "done"
        called = next(asked for asked in server.requests if asked.method == "tools/call")
        assert (called.headers["mcp-session-id"], called.headers["mcp-protocol-version"]) == ("s1", "2025-11-25")
        assert (server.requests[-1].verb, server.requests[-1].headers["mcp-session-id"]) == ("DELETE", "s1")


async def test_recorder_rejects_other_http_transports(tmp_path: Path) -> None:
    status, _, error = await run("record", str(tmp_path / "r"), "ws://127.0.0.1:9/ws")
    assert status != 0
    assert "Use an http:// or https:// URL." in error


@pytest.mark.server
async def test_recorded_stderr_cannot_control_the_terminal(tmp_path: Path) -> None:
    words = [sys.executable, "-c", r"import sys; sys.stderr.write('\x1b[2Jbroken\n'); sys.exit(1)"]
    recorder = await asyncio.create_subprocess_exec(
        *command("record", str(tmp_path / "r"), "--", *words), stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    async with asyncio.timeout(WAIT):
        _, error = await recorder.communicate()
    assert b"broken" in error
    assert b"\x1b" not in error
    assert "broken" in (tmp_path / "r").read_text("utf-8")
