"""`python -m benches.soak MINUTES`: all good and bad client behavior, for as long as you like.

Clients of both eras call tools, cancel, disconnect, and send garbage. Subscribers connect, resume, and disconnect.
Attackers try to leave something behind (`attackers.py`), and a publisher runs all the time. The report has the slope of
memory, and the tasks, file descriptors, and streams that remain after all clients have disconnected. Exits with 1 if
one exceeds its printed bound.
"""

import argparse
import asyncio
import itertools
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from benches.attackers import attacks
from benches.broadcast import PROGRAM, load, started
from benches.endurance import FILL, slope
from benches.processes import Running, raise_file_limit
from benches.soak_peer import Peer, Wrong
from benches.wire import COMMON

EACH = 4
"""Number of clients of each kind."""
MOST_SLOPE = 10.0
"""Maximum growth in MiB per ten minutes, after the first third of the run."""
LEFT_FDS = 2
SECONDS_TO_SETTLE = 15.0
EVENTS = 50
"""Publications per second."""
IDS = itertools.count(1)


async def calls_newest(peer: Peer) -> None:
    """Make a single call in revision 2026-07-28."""
    number = next(IDS)
    found = await peer.call("add_numbers", {"a": number, "b": 1}, number)
    if found["result"]["structuredContent"] not in (number + 1, {"result": number + 1}):
        raise Wrong(f"a wrong sum: {found}")


async def calls_in_session(peer: Peer) -> None:
    """Initialize, call, and sometimes delete the session, in revision 2025-11-25."""
    session = await peer.initialize()
    for number in range(5):
        found = await peer.call("multiply_numbers", {"a": number, "b": 2}, next(IDS), session)
        if found["result"]["structuredContent"] != {"result": number * 2}:
            raise Wrong(f"a wrong product: {found}")
    if random.random() < 0.5:
        await peer.ask("DELETE", "/mcp", f"mcp-session-id: {session}\r\nmcp-protocol-version: 2025-11-25\r\n", b"")


async def cancels(peer: Peer) -> None:
    """Start a long call, then close the connection (newest revision) or cancel the call by a notification (session)."""
    number, arguments = next(IDS), {"steps": 100, "seconds": 60}
    if random.random() < 0.5:
        await peer.break_off("long_task", arguments, number)
        return
    session = await peer.initialize()
    head = f"{COMMON}mcp-session-id: {session}\r\nmcp-protocol-version: 2025-11-25\r\n"
    call = asyncio.create_task(peer.break_off("long_task", arguments, number, session, seconds=0.5))
    await asyncio.sleep(0.1)
    note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": number}}
    status, _ = await peer.ask("POST", "/mcp", head, json.dumps(note).encode())
    await call
    if status != 202:
        raise Wrong(f"a cancel was answered with {status}")


GARBAGE = (
    b"\x00\x01\x02\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"POST /mcp HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    b"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 99999999999\r\n\r\n",
    b"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{",
)
BAD_BODIES = (b"", b"{", b"[]", b'{"jsonrpc":"2.0","id":1,"method":"no/such"}', b'"\xff"', b"[" * 5000)


async def bad_input(peer: Peer) -> None:
    """Send input that isn't HTTP, JSON, or a request. Each gets a response or is closed, and harms no other client."""
    if random.random() < 0.5:
        await peer.throw(random.choice(GARBAGE))
        return
    path, body = random.choice(("/mcp", "/publish")), random.choice(BAD_BODIES)
    status, answer = await peer.ask("POST", path, COMMON, body)
    if not 400 <= status < 500 and b'"error"' not in answer:
        raise Wrong(f"{path} {body[:80]!r} was answered with {status} {answer!r}")


async def subscribes(peer: Peer) -> None:
    """Listen for a while, disconnect, reconnect with the last id, and miss no event."""
    number = random.randrange(1000)
    path = f"/events?client_id=soak-{number}&name=soak" if number % 2 else "/events"
    first, last_id = await peer.listen(path, "", random.uniform(0.1, 1.0))
    await asyncio.sleep(random.uniform(0, 0.2))
    then, _ = await peer.listen(path, last_id, random.uniform(0.1, 1.0))
    numbers = first + then
    if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise Wrong(f"events out of order: {numbers}")


KINDS: tuple[Callable[[Peer], Awaitable[None]], ...] = (
    calls_newest, calls_in_session, cancels, bad_input, subscribes, attacks,
)  # fmt: skip


async def repeat(kind: Callable[[Peer], Awaitable[None]], peer: Peer, until: float, done: Counter[str]) -> None:
    """Repeat one kind of client."""
    while time.monotonic() < until:
        async with asyncio.timeout(30):
            await kind(peer)
        done[kind.__name__] += 1
        await asyncio.sleep(0.01)


async def publishes(peer: Peer, until: float, done: Counter[str]) -> None:
    """Publish numbered events at a fixed rate."""
    while time.monotonic() < until:
        done["published"] += 1
        await peer.ask("POST", "/publish", COMMON, json.dumps({"data": str(done["published"])}).encode())
        await asyncio.sleep(1 / EVENTS)


async def watch(server: Running, until: float, samples: list[tuple[float, float]], done: Counter[str]) -> None:
    """Sample memory each second, and print a line each minute."""
    begun = time.monotonic()
    while time.monotonic() < until:
        samples.append((time.monotonic(), server.memory()))
        if len(samples) % 60 == 0:
            print(f"{(time.monotonic() - begun) / 60:.0f} min: {samples[-1][1]:.1f} MiB, {dict(done)}", flush=True)
        await asyncio.sleep(1)


async def settle(peer: Peer, before: dict[str, float]) -> dict[str, float]:
    """Return the server's figures, once they're within bounds, or after a timeout."""
    stop = time.monotonic() + SECONDS_TO_SETTLE
    while True:
        await asyncio.sleep(0.5)
        found = await peer.figures()
        if time.monotonic() > stop or all(found[name] <= before[name] + more for name, more in LEFT.items()):
            return found


LEFT = {"tasks": EACH * len(KINDS) * 2, "fds": LEFT_FDS, "calls": 0, "streams": 0, "subscribers": 0}
"""Maximum of what may remain."""


async def soak(server: Running, seconds: float) -> bool:
    """Run, report, and return whether everything stayed within its bound."""
    peer, done = Peer(server.port), Counter[str]()
    await asyncio.gather(*(kind(peer) for kind in KINDS))
    before = await settle(peer, dict.fromkeys(LEFT, 0.0))
    until, samples = time.monotonic() + seconds, list[tuple[float, float]]()
    async with asyncio.TaskGroup() as group:
        group.create_task(watch(server, until, samples, done))
        group.create_task(publishes(peer, until, done))
        for kind in KINDS * EACH:
            group.create_task(repeat(kind, peer, until, done))
    after = await settle(peer, before)
    growth = slope(samples[len(samples) // 3 :]) * 600
    print(f"done: {dict(done)}")
    print(
        f"memory: {samples[0][1]:.1f} MiB at first, {samples[-1][1]:.1f} at last, {growth:+.2f} MiB in 10 min", end=""
    )
    print(f" (at most {MOST_SLOPE:g})")
    for name, more in LEFT.items():
        print(f"{name}: {before[name]:.0f} before, {after[name]:.0f} after (at most {before[name] + more:.0f})")
    return growth <= MOST_SLOPE and all(after[name] <= before[name] + more for name, more in LEFT.items())


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benches.soak", description=__doc__)
    parser.add_argument("minutes", type=float)
    minutes: float = parser.parse_args().minutes
    if not PROGRAM.exists():
        sys.exit("Not ready: compile the load program with `make .bench/subscribers`.")
    raise_file_limit()
    with tempfile.TemporaryDirectory() as folder, started("ours-soak", Path(folder) / "log") as server:
        load(server, 1, 0, ["--events", str(FILL)], lambda: None)
        kept = asyncio.run(soak(server, minutes * 60))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
