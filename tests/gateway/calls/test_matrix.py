import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gateway.matrix import DATES, EXCLUSIONS, FEATURES, TRANSPORTS, Pair, Person, make_person
from gateway.matrix_world import build
from http_peer import serve
from millstream import Server, Settings
from patience import WAIT
from processes import ROOT, TEST_PATH

FOLDER = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reference" / "gateway-operation.md"
PATHS = {"http": "http://127.0.0.1:{}/mcp", "sse": "http://127.0.0.1:{}/sse", "websocket": "ws://127.0.0.1:{}/ws"}
PROCESSES = {"2025-11-25", "2026-07-28"}
"""Revisions of stdio clients outside of nightly tests, because each such client needs its own gateway."""


class Side(NamedTuple):
    """A transport and a revision."""

    transport: str
    revision: str

    @property
    def name(self) -> str:
        return f"{self.transport}{DATES.index(self.revision)}"


SIDES = [Side(transport, date) for transport, dates in TRANSPORTS.items() for date in dates]


def choose_pairs() -> list[tuple[Side, Side]]:
    """Return pairs that contain each pair of revisions and each pair of transports at least once."""
    every = [(down, up) for down in SIDES for up in SIDES if down.transport != "stdio" or down.revision in PROCESSES]
    revisions: set[tuple[str, str]] = set()
    transports: set[tuple[str, str]] = set()
    chosen: list[tuple[Side, Side]] = []
    for gain in (2, 1):  # pairs that add two combinations first
        for down, up in every:
            dates, ways = (down.revision, up.revision), (down.transport, up.transport)
            if (dates not in revisions) + (ways not in transports) >= gain:
                chosen.append((down, up))
                revisions.add(dates)
                transports.add(ways)
    assert len(revisions) == len(DATES) ** 2
    assert len(transports) == len(TRANSPORTS) ** 2
    return chosen


def make_gateway(targets: Iterable[tuple[str, str, Any]]) -> Server:
    """Return a gateway to upstreams given by name, revision, and target."""
    mcp = Server(
        "front", serve="hub", settings=Settings(page_size=1_000, secret_key="a secret of the tests that is long")
    )
    for name, revision, target in targets:
        mcp.upstream(name, target, revision=revision, start_timeout=WAIT, timeout=WAIT)
    return mcp


def make_child_gateway() -> Server:
    """Return the gateway of a stdio client, which runs in its own process."""
    return make_gateway(
        (name, revision, build() if target is None else target)
        for name, revision, target in json.loads(os.environ["MATRIX"])
    )


class Matrix:
    """Upstreams, gateways, and clients, created on first use."""

    def __init__(self, pairs: list[tuple[Side, Side]], stack: AsyncExitStack) -> None:
        self.pairs = pairs
        self._stack = stack
        self._people: dict[Side, Person] = {}
        self._targets: dict[Side, Any] = {}
        self._front: Server
        self._port = 0

    async def open(self) -> None:
        for up in dict.fromkeys(up for _, up in self.pairs):
            self._targets[up] = await self._target(up)
        here = {up for down, up in self.pairs if down.transport != "stdio"}
        self._front = make_gateway((up.name, up.revision, self._targets[up] or build()) for up in here)
        self._port = await self._serve(self._front)

    async def _target(self, up: Side) -> Any:
        """Return the target of an upstream; None for one in the gateway's own process."""
        if up.transport == "memory":
            return None
        if up.transport == "stdio":
            return [sys.executable, "-m", "millstream", "run", str(FOLDER / "matrix_world.py"), "--transport", "stdio"]
        world = build()
        world.definition.parts |= {"hub"}
        return PATHS[up.transport].format(await self._serve(world))

    async def _serve(self, server: Server) -> int:
        await self._stack.enter_async_context(server.running())
        return (await self._stack.enter_async_context(serve(server))).port

    async def person(self, down: Side) -> Person:
        """Return the client of a side."""
        made = self._people.get(down)
        if made is None:
            made = self._people[down] = make_person(self._target_of_client(down), down.revision)
            await self._stack.enter_async_context(made.client)
        return made

    def _target_of_client(self, down: Side) -> Any:
        if down.transport == "memory":
            return self._front
        if down.transport != "stdio":
            return PATHS[down.transport].format(self._port)
        needed = dict.fromkeys(up for each, up in self.pairs if each == down)
        environment = {
            "MATRIX": json.dumps([(up.name, up.revision, self._targets[up]) for up in needed]),
            "PYTHONPATH": TEST_PATH,
        }
        start = "from gateway.calls.test_matrix import make_child_gateway; make_child_gateway().run('stdio')"
        return {"mcpServers": {"front": {"command": sys.executable, "args": ["-c", start], "env": environment}}}


@asynccontextmanager
async def run_matrix(pairs: list[tuple[Side, Side]]) -> AsyncIterator[Matrix]:
    async with AsyncExitStack() as stack:
        made = Matrix(pairs, stack)
        await made.open()
        yield made


async def try_all(pairs: list[tuple[Side, Side]]) -> None:
    """Test every feature with every pair, and report all failures."""
    failures: list[str] = []
    # A canceled call may go on in a shared process, which then may ask no other session. So cancellation comes last.
    names = sorted(FEATURES, key=lambda name: name == "cancellation")
    async with run_matrix(pairs) as made:
        for name in names:
            for number, (down, up) in enumerate(pairs):
                pair = Pair(await made.person(down), up.name, down.revision, up.revision, f"{number}")
                try:
                    async with asyncio.timeout(WAIT):
                        await FEATURES[name](pair)
                except Exception as exc:  # the report lists the failures of all pairs
                    failures.append(f"{down.name} -> {up.name}: {name}: {type(exc).__name__}: {str(exc)[:300]}")
    assert not failures, "\n".join([f"{len(failures)} failures", *failures])


@pytest.mark.server
async def test_every_feature_works_between_all_pairs_of_revisions() -> None:
    await try_all(choose_pairs())


@pytest.mark.server
@pytest.mark.nightly
async def test_every_feature_works_in_all_combinations() -> None:
    await try_all([(down, up) for down in SIDES for up in SIDES])


def render_section() -> str:
    """Return the section of the reference page."""
    lead = (
        "A client of any revision can use an upstream of any revision, over every transport that the two revisions "
        "support. Each cell lists the features that a client of the revision on the left doesn't get from an upstream "
        "of the revision at the top, with the numbers of the notes that follow the table. For example, a client that "
        "uses 2025-11-25 gets everything from an upstream that uses 2026-07-28, except structured results that aren't "
        "objects (6)."
    )
    lines = [
        lead,
        "",
        "| client ↓ upstream → | " + " | ".join(DATES) + " |",
        "|---|" + "---|" * len(DATES),
    ]
    for down in DATES:
        cells = []
        for up in DATES:
            numbers = [str(n) for n, each in enumerate(EXCLUSIONS, 1) if min(down, up) < each.since]
            cells.append(", ".join(numbers) or "everything")
        lines.append(f"| {down} | " + " | ".join(cells) + " |")
    lines += ["", *(f"{number}. {each.reason}." for number, each in enumerate(EXCLUSIONS, 1)), ""]
    lines += [
        "### Transports",
        "",
        "Each revision has these transports, and we test each with a client and an upstream:",
        "",
    ]
    lines += ["| | " + " | ".join(DATES) + " |", "|---|" + "---|" * len(DATES)]
    names = {
        "stdio": "stdio",
        "http": "Streamable HTTP",
        "sse": "HTTP+SSE",
        "websocket": "WebSocket",
        "memory": "in memory",
    }
    for transport, dates in TRANSPORTS.items():
        lines.append(f"| {names[transport]} | " + " | ".join("yes" if date in dates else "–" for date in DATES) + " |")
    lines += ["", "### Features", "", f"Each of these is tested with every pair of revisions: {'; '.join(FEATURES)}."]
    return "\n".join(lines) + "\n"


def test_reference_section_is_current(request: pytest.FixtureRequest) -> None:
    before, title, rest = PAGE.read_text("utf-8").partition("\n## What passes the gateway\n\n")
    section, next_title, after = rest.partition("\n## ")
    if request.config.getoption("--update"):
        section = render_section()
        PAGE.write_text(before + title + section + next_title + after, "utf-8")
    assert section == render_section()
