import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import http_peer
from patience import WAIT
from transcripts.replay import Channel, HttpChannel, MessageChannel, play
from transcripts.teller import build
from wire import open_pipe

FOLDER = Path(__file__).resolve().parent / "transcripts"
ROOT = FOLDER.parent.parent
SETTINGS = {"http-sessionless": {"sessions": False}, "http-json": {"json_only": True}}
WAYS = {"messages": ("memory", "stdio")}
FILES = {file: file.read_text("utf-8") for file in sorted(FOLDER.glob("*/*.txt"))}
CASES = [
    pytest.param(
        file, way, id=f"{file.parent.name}-{file.stem}-{way}", marks=[pytest.mark.server] if way == "stdio" else []
    )
    for file in FILES
    for way in WAYS.get(file.stem, ("lane", "asgi"))
]


@asynccontextmanager
async def memory() -> AsyncIterator[Callable[[], Channel]]:
    """A server in this process."""
    async with build().running() as runtime:
        pipe = open_pipe(runtime)
        yield lambda: MessageChannel(pipe.send, pipe.receive)
        await pipe.close()


@asynccontextmanager
async def stdio() -> AsyncIterator[Callable[[], Channel]]:
    """A server in a process of its own, which ends when its stdin does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from millstream._cli import main; main()", "run", "tests/transcripts/teller.py:mcp",
        "--transport", "stdio", cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    written, read = process.stdin, process.stdout
    try:
        yield lambda: MessageChannel(lambda message: written.write(message + b"\n"), read.readline)
        written.close()
        async with asyncio.timeout(WAIT):
            assert await read.read() == b""
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def http(kind: str, *, lane: bool) -> AsyncIterator[Callable[[], Channel]]:
    """A server behind sockets, by either way."""
    server = build(**SETTINGS.get(kind, {}))
    async with server.running(), http_peer.serve(server, lane=lane) as running:
        yield lambda: HttpChannel(running)


def keep(file: Path, played: str) -> None:
    """Make what was said the golden text."""
    file.write_text(played, "utf-8")


@pytest.mark.parametrize(("file", "way"), CASES)
async def test_client_and_server_messages_match_the_transcript(
    file: Path, way: str, request: pytest.FixtureRequest
) -> None:
    script = FILES[file]
    servers = {"memory": memory, "stdio": stdio}
    opened = servers[way]() if way in servers else http(file.stem, lane=way == "lane")
    async with opened as connect:
        played = await play(script, connect)
    if request.config.getoption("--update") and way in ("memory", "lane"):
        keep(file, played)
    else:
        assert played.splitlines() == script.splitlines()


def test_every_revision_has_transcripts() -> None:
    plain, streamable = ["messages", "sse"], ["http", "http-json", "http-sessionless"]
    expected = {
        "2024-11-05": plain,
        "2025-03-26": streamable + plain,
        "2025-06-18": streamable + plain,
        "2025-11-25": streamable + plain,
        "2026-07-28": ["http", "http-json", "messages"],
    }
    found = {date: sorted(file.stem for file in FILES if file.parent.name == date) for date in expected}
    assert found == expected
