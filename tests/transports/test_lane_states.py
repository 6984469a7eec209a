"""What a connection reads, as a table, against what connections do."""

import ast
import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from guard_peer import GuardApp, echo
from http_peer import HEAD, request
from millstream._config import Settings
from millstream._http import lane
from millstream._http.lane import load_lane, states
from millstream._http.lane.guarded import MAX_PIPELINE
from millstream._http.lane.reply import BODY_TIMEOUT, HEADER_TIMEOUT
from millstream._http.message import Request, Response
from strategies import cuts
from wire import KeptTransport

LIMITS = Settings(max_body=100, max_unfinished=150)
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
HALF = HEAD + b"Content-Length: 10\r\n\r\nhalf"
PAIRS = {(before, after) for moves in states.MOVES.values() for before, after in moves.items()}


class Observed:
    """A connection that notes each move of its phase."""

    seen: Counter[tuple[int, int]]

    def __init__(self, *, over_cap: bool = False) -> None:
        observed, self.seen = self, Counter()
        base: Any = load_lane().protocol
        slot = base.phase

        class Watched(base):  # type: ignore[misc]
            __slots__ = ()

            @property
            def phase(self) -> int:
                """The slot of the class that is watched."""
                return int(slot.__get__(self))

            @phase.setter
            def phase(self, after: int) -> None:
                if hasattr(self, "since"):  # not the first one
                    observed.seen[slot.__get__(self), after] += 1
                slot.__set__(self, after)

        async def wait(_request: Request) -> Response:
            await self.go.wait()
            return Response(b"waited")

        self.go = asyncio.Event()
        app = GuardApp({("POST", "/echo"): echo, ("POST", "/asgi"): echo, ("POST", "/wait"): wait}, LIMITS)
        app.__millstream_lane__.by_line[b"POST /echo HTTP/1.1"] = (echo, "POST", "/echo")
        config = uvicorn.Config(app, http=Watched, log_config=None, access_log=False)
        config.load()
        state = ServerState()
        state.connections = {object() for _ in range(LIMITS.max_connections)} if over_cap else set()  # type: ignore[misc]
        self.protocol: Any = Watched(config=config, server_state=state, app_state={})
        self.transport = KeptTransport()
        if over_cap:
            self.protocol.guard._spares = {self.protocol} | {
                Watched(config=config, server_state=state, app_state={}) for _ in range(16)
            }
        self.protocol.connection_made(self.transport)

    async def feed(self, *pieces: bytes) -> int:
        """Read pieces, each in its own turn, and give the phase."""
        for piece in pieces:
            self.protocol.data_received(piece)
            for _ in range(4):
                await asyncio.sleep(0)
        return int(self.protocol.phase)

    async def end(self) -> set[tuple[int, int]]:
        """Lose the connection, and give every move there was."""
        self.go.set()
        for _ in range(4):
            await asyncio.sleep(0)
        self.protocol.connection_lost(None)
        for _ in range(8):
            await asyncio.sleep(0)
        return set(self.seen)


def test_every_state_is_reached_from_the_first_and_leads_to_the_last() -> None:
    """Our choice: no state is a name only, and no connection can be stuck in one."""
    for start, ways in ((states.NEW, PAIRS), (states.CLOSED, {(after, before) for before, after in PAIRS})):
        reached = {start}
        while more := {after for before, after in ways if before in reached} - reached:
            reached |= more
        assert reached == set(range(len(states.NAMES)))


def test_nothing_reads_on_behind_a_refusal() -> None:
    """RFC 9112 §9.6: what comes behind the last reply is not processed."""
    assert {after for before, after in PAIRS if before >= states.REFUSED} == {states.REFUSED, states.CLOSED}
    assert {after for before, after in PAIRS if before == states.CLOSED} == {states.CLOSED}


def test_every_change_of_the_phase_looks_it_up_in_the_table() -> None:
    """Otherwise the table would be a comment. Only the first state of a connection is given."""
    tables = {name for name, value in vars(states).items() if any(value is moves for moves in states.MOVES.values())}
    given_directly = []
    for path in Path(lane.__file__ or "").parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assign) and any(
                isinstance(target, ast.Attribute) and target.attr == "phase" for target in node.targets
            ):
                value = node.value
                if not (isinstance(value, ast.Subscript) and getattr(value.value, "id", "") in tables):
                    given_directly.append(ast.unparse(node))
    assert given_directly == ["self.phase = NEW"]


async def test_connections_make_every_move_of_the_table_and_no_other() -> None:  # noqa: PLR0915  one for each move
    """One conversation for each; the table has no entry that nothing takes."""
    seen: set[tuple[int, int]] = set()
    usual, parsed, asgi = request(body=b"x"), request(body=b"x", extra=b"X-Odd:1\r\n"), request(path="/asgi", body=b"x")
    post = b"POST /echo HTTP/1.1\r\n"
    asks = post + HEAD + b"Content-Length: 10\r\nExpect: 100-continue\r\n\r\n"

    async def converse(*pieces: bytes, phase: int, refuse: Response | None = None, over_cap: bool = False) -> None:
        connection = Observed(over_cap=over_cap)
        assert states.NAMES[await connection.feed(*pieces)] == states.NAMES[phase], pieces
        if refuse is not None:
            connection.protocol.refuse(refuse)
        seen.update(await connection.end())

    await converse(phase=states.NEW)
    await converse(phase=states.NEW, refuse=HEADER_TIMEOUT)
    await converse(over_cap=True, phase=states.CLOSED)
    # Usual heads are known once their Host is.
    await converse(usual, usual, phase=states.IDLE)
    await converse(usual, phase=states.IDLE, refuse=HEADER_TIMEOUT)
    await converse(usual, post + HALF, phase=states.USUAL_BODY)
    await converse(usual, post + HALF, b"123456", phase=states.IDLE)
    await converse(usual, post + HALF, phase=states.USUAL_BODY, refuse=BODY_TIMEOUT)
    fresh = Observed()
    fresh.protocol.usual.policy.good.add(b"127.0.0.1")
    await fresh.feed(usual)
    seen.update(await fresh.end())
    fresh = Observed()
    fresh.protocol.usual.policy.good.add(b"127.0.0.1")
    await fresh.feed(post + HALF)
    seen.update(await fresh.end())
    # By the parser, for the lane and for ASGI.
    for whole, first in ((parsed, post), (asgi, b"POST /asgi HTTP/1.1\r\n")):
        body = states.BODY if whole is parsed else states.ASGI_BODY
        await converse(whole, whole, phase=states.IDLE)
        await converse(first, phase=states.HEAD)
        await converse(first, phase=states.HEAD, refuse=HEADER_TIMEOUT)
        await converse(first + b"X-Odd:1\r\n" + HALF, phase=body)
        await converse(first + HEAD + CHUNKED + b"zz", phase=states.CLOSED)
    await converse(asks, phase=states.BODY)
    # Behind a call that still runs.
    waits = request(path="/wait", body=b"w")
    for last in (b"", b"0123456789"):
        await converse(waits, asks + last, phase=states.IDLE if last else states.EXPECTED)
    await converse(waits, asks, phase=states.EXPECTED, refuse=BODY_TIMEOUT)
    connection = Observed()
    assert await connection.feed(waits, asks) == states.EXPECTED
    connection.protocol.connection_lost(None)
    seen.update(await connection.end())
    await converse(waits, b"NOT HTTP\r\n\r\n" + parsed, phase=states.REFUSED)
    connection = Observed()
    assert await connection.feed(waits, b"NOT HTTP\r\n\r\n") == states.REFUSED
    connection.protocol.connection_lost(None)
    seen.update(await connection.end())
    await converse(waits + parsed * (MAX_PIPELINE + 2), phase=states.CLOSED)
    long = b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n"
    await converse(waits, long + parsed, phase=states.REFUSED)
    await converse(long + parsed, phase=states.CLOSED)
    assert {tuple(states.NAMES[phase] for phase in pair) for pair in seen ^ PAIRS} == set()


PIECES = [
    request(body=b"x"), request(body=b"x", extra=b"X-Odd:1\r\n"), request(path="/asgi", body=b"x"),
    request(path="/wait"), b"POST /echo HTTP/1.1\r\n" + HALF, b"POST /asgi HTTP/1.1\r\n" + HALF, b"012345",
    b"POST /echo HTTP/1.1\r\n" + HEAD + CHUNKED, b"1\r\na\r\n", b"0\r\n\r\n", b"zz\r\n", b"\r\n", b"x" * 101,
    b"POST /echo HTTP/1.1\r\n" + HEAD + b"Content-Length: 6\r\nExpect: 100-continue\r\n\r\n",
    b"GET /asgi HTTP/1.1\r\n" + HEAD + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join).flatmap(cuts), st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_conversation_leaves_the_table(pieces: list[bytes], refused: bool) -> None:
    """A move that is not there would be a KeyError in a parser callback, which is answered with 500."""

    async def converse() -> None:
        connection = Observed()
        await connection.feed(*[piece for piece in pieces if piece])
        if refused:
            connection.protocol.refuse(HEADER_TIMEOUT)
        guard = connection.protocol.guard
        assert await connection.end() <= PAIRS
        assert guard.unfinished.held == 0
        assert b" 500 " not in b"".join(connection.transport.written)

    asyncio.run(converse())


@pytest.mark.parametrize("path", ["/echo", "/asgi"])
@pytest.mark.parametrize("chunk", [b"zz\r\n", b"1\r\n" + b"a" * 9])
async def test_a_bad_chunk_behind_expect_is_a_plain_refusal_and_no_traceback(
    path: str, chunk: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Fixed: uvicorn's cycle wrote ``100 Continue`` behind the refusal, and 1.5 KB of traceback into the log."""
    connection = Observed()
    head = b"POST %b HTTP/1.1\r\n" % path.encode() + HEAD + b"Expect: 100-continue\r\n" + CHUNKED
    await connection.feed(head + chunk)
    written = b"".join(connection.transport.written)
    await connection.end()
    assert written.endswith(b"This is not HTTP.\n")
    assert b"100 Continue" not in written.partition(b" 400 ")[2]
    assert caplog.text == ""
