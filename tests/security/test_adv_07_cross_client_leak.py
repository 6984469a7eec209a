"""Cross-client leaks (CVE-2026-25536, CVE-2023-28858): each reply contains only its own caller's data.

Many clients use the same request ids on their own connections; some disconnect during a call.
"""

import asyncio
import json
import random

import pytest

from cases import for_each
from four_workers import ADMIN_KEY, FOUR, ON_FOUR
from http_peer import Peer, RunningServer
from millstream import Context, Server, Settings
from wire import WAIT, encode_headers, encode_request, per_request, request, routing, run_wire

CLIENTS, CALLS = 30, 40


def make_server() -> tuple[Server, asyncio.Event]:
    """Return a server with the tools of `add_echo`, and their event."""
    mcp = Server("echo", settings=Settings(secret_key="a secret of the tests that is long enough"))
    return mcp, add_echo(mcp)


def add_echo(mcp: Server) -> asyncio.Event:
    """Add an echo tool, and one that never returns; the event releases its calls."""
    stuck = asyncio.Event()

    @mcp.tool
    async def echo(word: str, turns: int, ctx: Context) -> str:
        """Return a word after some iterations of the event loop."""
        for turn in range(turns):
            await asyncio.sleep(0)
            if turn == 2:
                await ctx.progress(turn, message=word)
        return word

    @mcp.tool
    async def never(word: str) -> str:
        """Wait until canceled."""
        await stuck.wait()
        return word

    return stuck


def message(era: str, name: str, number: int, word: str, turns: int) -> bytes:
    """Return one request. All clients use the same ids."""
    arguments = {"word": word, "turns": turns} if name == "echo" else {"word": word}
    params = {"name": name, "arguments": arguments}
    build = per_request if era == "2026-07-28" else request
    body = json.dumps(build("tools/call", params, number)).encode()
    headers = routing("tools/call", name)
    if era != "2026-07-28":
        headers = {key: value for key, value in headers.items() if not key.startswith("mcp-")}
    return encode_request("POST", "/mcp", encode_headers({**headers, "authorization": f"Bearer {ADMIN_KEY}"}), body)


def heard(body: bytes) -> list[dict[str, object]]:
    """Return the messages of a single or streamed reply."""
    if body.startswith(b"{"):
        return [json.loads(body)]
    return [json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {")]


async def client(running: RunningServer, era: str, number: int, dice: random.Random) -> int:
    """Make calls, some pipelined or abandoned; return the number of replies compared."""
    peer: Peer | None = None
    compared = 0
    for turn in range(CALLS):
        peer = peer or await running.connect()
        if dice.random() < 0.15:
            await peer.send(message(era, "never", turn, f"secret-{number}-{turn}", 0))
            peer.writer.transport.abort()
            peer = None
            continue
        words = [f"{number}-{turn}-{part}-{dice.random()}" for part in range(dice.choice([1, 1, 3]))]
        await peer.send(b"".join(message(era, "echo", turn, word, dice.randrange(6)) for word in words))
        for word in words:
            status, _, body = await peer.reply()
            last = heard(body)[-1]
            assert status == 200
            assert last["id"] == turn
            assert last["result"]["content"][0]["text"] == word  # type: ignore[index]
            assert b"secret" not in body
            compared += 1
    return compared


@pytest.mark.many
@pytest.mark.parametrize("way", ["lane", ON_FOUR])
@for_each("era", ["2025-03-26", "2026-07-28"])
async def test_replies_never_reach_another_caller(era: str, way: str) -> None:
    mcp, stuck = make_server()
    async with run_wire(mcp, way) as wire:
        assert wire.running is not None
        dice = random.Random(7)
        clients = (client(wire.running, era, number, random.Random(dice.random())) for number in range(CLIENTS))
        compared = await asyncio.wait_for(asyncio.gather(*clients), 6 * WAIT)
        assert sum(compared) > CLIENTS * CALLS
        if way == FOUR:
            return
        if era == "2025-03-26":
            stuck.set()  # a handshake-era call survives its connection
        await wire.until(lambda: not wire.runtime.dispatcher.calls)
