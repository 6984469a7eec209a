import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cases import for_each
from patience import WAIT
from processes import free_port, run_command, run_server

pytestmark = pytest.mark.server

NOISY = """
import os
import time
from contextlib import asynccontextmanager

from millstream import Server

print("noise of the import")
os.write(1, b"noise past Python\\n")


@asynccontextmanager
async def lifespan(server):
    print("noise of the lifespan")
    yield None
    print("noise of the end")


mcp = Server("noisy", lifespan=lifespan)


@mcp.tool
def speaks() -> str:
    print("noise of a tool")
    return "said"


@mcp.tool
def blocks() -> str:
    time.sleep(60)
    return "never"


@mcp.tool
async def leaves() -> str:
    raise SystemExit(1)


if __name__ == "__main__":
    mcp.run(transport="stdio")
"""


def call(name: str, number: int) -> bytes:
    message = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": {"name": name}}
    return json.dumps(message).encode() + b"\n"


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    """A file that prints at every opportunity."""
    file = tmp_path / "noisy.py"
    file.write_text(NOISY)
    return file


def run(file: Path, given: bytes, **settings: str) -> subprocess.CompletedProcess[bytes]:
    """Run `millstream run FILE --transport stdio` to its end."""
    command = [sys.executable, "-c", "from millstream._cli import main; main()"]
    return subprocess.run(
        [*command, "run", str(file), "--transport", "stdio"],
        input=given, capture_output=True, timeout=WAIT, check=False, env={**os.environ, **settings},
    )  # fmt: skip


@contextmanager
def unread(gone: str) -> Iterator[int]:
    """An output without a reader, or on a full disk."""
    reader, output = os.pipe() if gone == "the reader" else (-1, os.open("/dev/full", os.O_WRONLY))
    if reader >= 0:
        os.close(reader)
    yield output
    os.close(output)


def replies(output: bytes) -> dict[int, Any]:
    return {reply["id"]: reply["result"] for reply in map(json.loads, output.splitlines())}


def test_output_printed_at_import_and_in_the_lifespan_does_not_reach_stdout(noisy: Path) -> None:
    done = run(noisy, call("speaks", 1))
    assert replies(done.stdout)[1]["content"][0]["text"] == "said"
    for noise in ("of the import", "past Python", "of the lifespan", "of a tool", "of the end"):
        assert noise.encode() in done.stderr, noise
    assert done.returncode == 0


def test_output_printed_by_the_program_does_not_reach_stdout(tmp_path: Path) -> None:
    file = tmp_path / "noisy.py"
    file.write_text(NOISY.replace('os.write(1, b"noise past Python\\n")', ""))
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, str(file)],
        input=call("speaks", 1), capture_output=True, timeout=WAIT, check=False, env=buffered,
    )  # fmt: skip
    first = done.stdout.splitlines()[0]
    assert json.loads(first)["id"] == 1
    assert b"noise of the import" in done.stderr
    assert b"noise of a tool" in done.stderr


@for_each("encoding", ["cp1252", "ascii"])
def test_unencodable_printed_text_does_not_fail_a_call(noisy: Path, encoding: str) -> None:
    noisy.write_text(
        NOISY.replace("noise of the import", "\u2713 import").replace("noise of a tool", "\u2713 \U0001f600")
    )
    done = run(noisy, call("speaks", 1), PYTHONIOENCODING=encoding)
    assert replies(done.stdout)[1]["content"][0]["text"] == "said"
    assert rb"\u2713 import" in done.stderr
    assert rb"\u2713 \U0001f600" in done.stderr


def test_exit_in_a_tool_does_not_end_the_server(noisy: Path) -> None:
    done = run(noisy, call("leaves", 1) + call("speaks", 2))
    found = replies(done.stdout)
    assert found[1]["isError"] is True
    assert found[2]["content"][0]["text"] == "said"
    assert done.returncode == 0


@for_each("gone", ["the reader", "the disk"])
def test_servers_exit_quietly_when_their_output_fails(noisy: Path, gone: str) -> None:
    given = call("speaks", 1)
    command = [sys.executable, "-c", "from millstream._cli import main; main()", "run", str(noisy)]
    with (
        unread(gone) as output,
        subprocess.Popen(
            [*command, "--transport", "stdio"], stdin=subprocess.PIPE, stdout=output, stderr=subprocess.PIPE
        ) as process,
    ):
        _, said = process.communicate(given, timeout=WAIT)
    assert b"noise of a tool" in said
    assert b"Traceback" not in said
    assert process.returncode == 0


def test_end_of_input_does_not_wait_for_endless_threads(noisy: Path) -> None:
    done = run(noisy, call("blocks", 1), MILLSTREAM_DRAIN_TIMEOUT="0.2")
    assert json.loads(done.stdout)["error"]["message"] == "The server stopped before the call was complete. Try again."
    assert b"1 thread is still running" in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.returncode == 0


def test_shutdown_does_not_wait_for_endless_threads(
    noisy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLSTREAM_DRAIN_TIMEOUT", "0.2")
    port, log = free_port(), tmp_path / "log"
    with run_server(run_command(str(noisy), port), port, log) as process:
        body = call("blocks", 1).decode().strip()
        url = f"http://127.0.0.1:{port}/mcp"
        ask = f"u.urlopen(u.Request({url!r}, {body!r}.encode(), {{'content-type': 'application/json'}}))"
        client_command = [sys.executable, "-c", f"import urllib.request as u; {ask}"]
        with subprocess.Popen(client_command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
            look = f"json.loads(u.urlopen('http://127.0.0.1:{port}/health').read())['calls']"
            counting = [sys.executable, "-c", f"import json, urllib.request as u\nwhile {look} == 0: pass"]
            subprocess.run(counting, timeout=WAIT, check=True)
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT) in (0, -signal.SIGTERM)
            client.wait(WAIT)
    assert "1 thread is still running" in log.read_text()
    assert "exception calling callback" not in log.read_text()
