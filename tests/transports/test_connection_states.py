import ast
import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard_peer import echo, make_endpoints
from http_peer import HEAD, request
from millstream._config import Settings
from millstream._http import server
from millstream._http.message import Handler, HttpLimits, Response
from millstream._http.server import Endpoints
from millstream._http.server import connection as exchange
from millstream._http.server.connection import (
    ANSWERING,
    BODY,
    BODY_TIMEOUT,
    CLOSED,
    CONTINUE,
    DONE,
    EXPECTED,
    FAST_BODY,
    HEADER_TIMEOUT,
    IDLE,
    MAX_PIPELINE,
    NEW,
    SILENT,
    Event,
    ServerConnection,
    ServerExchange,
    Upgrade,
)
from millstream._http.server.connection import HEAD as IN_HEAD
from millstream._protocol.principal import Share
from property_settings import examples
from strategies import cuts

LIMITS = Settings(max_body=100, max_incoming_bytes=150)
H2C = b"GET /exact HTTP/1.1\r\n" + HEAD + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
HALF = HEAD + b"Content-Length: 10\r\n\r\nhalf"
POST = b"POST /echo HTTP/1.1\r\n"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\n" + HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


READING = ("new", "idle", "head", "body", "expected", "fast body", "done")
REPLYING = ("silent", "answering", "closed")
READING_MOVES = {
    "begins": exchange.BEGINS,
    "is taken": exchange.TAKEN,
    "asks": exchange.ASKS,
    "is permitted": exchange.PERMITTED,
    "is read whole": exchange.READ_WHOLE,
    "is read in part": exchange.READ_IN_PART,
    "ignores an upgrade": exchange.IGNORES_UPGRADE,
    "ends": exchange.ENDS,
    "stops": exchange.STOPS,
}
REPLYING_MOVES = {"begins": exchange.BEGINS_REPLY, "completes": exchange.COMPLETES, "closes": exchange.CLOSES}


def pairs(moves: dict[str, dict[int, int]]) -> set[tuple[int, int]]:
    """(before, after) of every move in a table."""
    return {(before, after) for table in moves.values() for before, after in table.items()}


class Shared:
    """What the connections of a server share."""

    limits = HttpLimits.of(LIMITS)
    clock = 0.0
    leaving = False

    def __init__(self) -> None:
        self.unfinished = Share(self.limits.max_incoming_bytes)
        self.unfinished.fit(self.limits.max_body)


async def no_socket(socket: Any) -> None:
    """An application that is never called."""


def table() -> Endpoints:
    """One hot path, one that is not, and WebSockets."""
    routes: dict[tuple[str, str], Handler] = {("POST", "/echo"): echo, ("POST", "/exact"): echo}
    found = make_endpoints(routes, LIMITS, websocket=no_socket)
    found.policy.good.add(b"127.0.0.1")
    return found


class Watched(ServerConnection):
    """A connection that notes each move. Nothing answers its requests by itself."""

    seen: Counter[tuple[int, int]]
    replied: Counter[tuple[int, int]]

    def __init__(self, shared: Shared | None = None) -> None:
        object.__setattr__(self, "seen", Counter())
        object.__setattr__(self, "replied", Counter())
        super().__init__(table(), shared or Shared(), peer="127.0.0.1", scheme="http")
        self.seen.clear()
        self.replied.clear()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("reading", "replying"):
            (self.seen if name == "reading" else self.replied)[getattr(self, name, value), value] += 1
        object.__setattr__(self, name, value)

    def feed(self, *pieces: bytes) -> list[Event]:
        """The events of pieces, up to the first that has to be completed."""
        events: list[Event] = []
        for piece in pieces:
            event = self.receive(piece)
            while event is not None:
                events.append(event)
                event = self.next_event()
        return events

    def answer(self, *pieces: bytes) -> list[Event]:
        """The events of pieces, each request being completed at once."""
        events, found = list[Event](), self.feed(*pieces)
        while found:
            events += found
            for each in found:
                if isinstance(each, ServerExchange):
                    self.complete(each)
            found = [] if (event := self.next_event()) is None else [event]
        return events


def test_every_state_is_reachable_and_can_end() -> None:
    for moves, first, last, names in (
        (READING_MOVES, NEW, DONE, READING),
        (REPLYING_MOVES, SILENT, CLOSED, REPLYING),
    ):
        forward = pairs(moves)
        for start, ways in ((first, forward), (last, {(after, before) for before, after in forward})):
            reached = {start}
            while more := {after for before, after in ways if before in reached} - reached:
                reached |= more
            assert reached == set(range(len(names)))


def test_no_state_reads_after_the_connection_ends() -> None:
    """RFC 9112 §9.6."""
    assert {after for before, after in pairs(READING_MOVES) if before == DONE} == {DONE}
    assert {after for before, after in pairs(REPLYING_MOVES) if before == CLOSED} == {CLOSED}


def test_state_changes_go_through_the_tables() -> None:
    tables = {name for name, value in vars(exchange).items() if isinstance(value, dict)}
    given_directly = []
    for path in Path(server.__file__ or "").parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assign) and any(
                isinstance(target, ast.Attribute) and target.attr in ("reading", "replying") for target in node.targets
            ):
                value = node.value
                names = {each.id for each in ast.walk(value) if isinstance(each, ast.Name)}
                if not (isinstance(value, ast.Subscript) and names & tables):
                    given_directly.append(ast.unparse(node))
    assert given_directly == ["self.reading = NEW", "self.replying = SILENT"]


def test_connections_make_exactly_the_transitions_in_the_tables() -> None:
    seen: set[tuple[int, int]] = set()
    replied: set[tuple[int, int]] = set()
    fast, parsed, exact = (
        request(body=b"x"),
        request(body=b"x", extra=b"X-Odd:1\r\n"),
        request(path="/exact", body=b"x"),
    )
    asks = POST + HEAD + b"Content-Length: 10\r\nExpect: 100-continue\r\n\r\n"

    def converse(*pieces: bytes, reading: int, refuse: Response | None = None, first: bytes = b"") -> None:
        connection = Watched()
        if first:
            connection.answer(first)
        connection.feed(*pieces)
        assert READING[connection.reading] == READING[reading], pieces
        if refuse is not None:
            connection.refuse(refuse)
            connection.next_event()
        connection.lose()
        seen.update(connection.seen)
        replied.update(connection.replied)

    for refusal in (None, HEADER_TIMEOUT):
        converse(reading=NEW, refuse=refusal)
        converse(first=fast, reading=IDLE, refuse=refusal)
        converse(fast, first=fast, reading=IDLE, refuse=refusal)
        converse(POST + HALF, reading=FAST_BODY, refuse=refusal)
        converse(POST + HALF, first=fast, reading=FAST_BODY, refuse=refusal)
        converse(POST + HALF, b"123456", reading=IDLE, refuse=refusal)
        converse(POST, reading=IN_HEAD, refuse=refusal)
        converse(POST, first=parsed, reading=IN_HEAD, refuse=refusal)
        converse(POST + b"X-Odd:1\r\n" + HALF, reading=BODY, refuse=refusal)
        converse(asks, reading=BODY, refuse=BODY_TIMEOUT)
        converse(fast, asks, reading=EXPECTED, refuse=refusal)
    converse(fast, asks, b"0123456789", reading=IDLE)
    for whole in (parsed, exact):
        converse(whole, reading=IDLE)
    for bad in (HEAD + CHUNKED + b"zz", b"Bad Header\r\n\r\n"):
        converse(POST + bad, reading=DONE)
    converse(fast, b"NOT HTTP\r\n\r\n" + parsed, reading=DONE, refuse=HEADER_TIMEOUT)
    converse(UPGRADE + b"frames", reading=DONE)
    converse(H2C, reading=IDLE)
    converse(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n" + parsed, reading=DONE)
    lost = Watched()
    (running,) = lost.feed(fast)
    assert isinstance(running, ServerExchange)
    lost.lose()
    lost.complete(running)
    replied.update(lost.replied)
    again = Watched()
    again.answer(fast)
    again.lose()
    replied.update(again.replied)
    assert {tuple(READING[state] for state in pair) for pair in seen ^ pairs(READING_MOVES)} == set()
    assert {tuple(REPLYING[state] for state in pair) for pair in replied ^ pairs(REPLYING_MOVES)} == set()


def test_requests_are_returned_one_at_a_time_in_order() -> None:
    """RFC 9112 §9.3.2."""
    connection = Watched()
    (first,) = connection.feed(request(body=b"1", extra=b"X-Odd:1\r\n") + request(body=b"2") + request(body=b"3"))
    assert isinstance(first, ServerExchange)
    assert (first.body, connection.next_event()) == (b"1", None)
    bodies = []
    while isinstance(first, ServerExchange):
        bodies.append(first.body)
        connection.complete(first)
        first = connection.next_event()  # type: ignore[assignment]
    assert bodies == [b"1", b"2", b"3"]


def test_continue_is_sent_when_no_reply_is_pending() -> None:
    """RFC 9110 §10.1.1."""
    asks = POST + HEAD + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    assert Watched().feed(asks) == [CONTINUE]
    connection = Watched()
    (running,) = connection.feed(request(body=b"x"), asks)
    assert isinstance(running, ServerExchange)
    connection.complete(running)
    assert connection.next_event() is CONTINUE
    assert [type(each) for each in connection.feed(b"{}")] == [ServerExchange]


def test_upgrade_event_includes_early_frames() -> None:
    (event,) = Watched().feed(UPGRADE + b"\x81\x80")
    assert isinstance(event, Upgrade)
    request = event.request
    assert (request.method, request.path, next(iter(request.raw_headers))) == ("GET", "/ws", (b"host", b"127.0.0.1"))
    assert event.ahead == b"\x81\x80"


def test_full_pipeline_is_answered_before_the_connection_closes() -> None:
    connection = Watched()
    events = connection.answer(request(body=b"x", extra=b"X-Odd:1\r\n") * (MAX_PIPELINE + 5))
    assert [type(each) for each in events] == [ServerExchange] * (MAX_PIPELINE + 1)
    assert [each.keep_alive for each in events if isinstance(each, ServerExchange)] == [True] * MAX_PIPELINE + [False]


PIECES = [
    request(body=b"x"), request(body=b"x", extra=b"X-Odd:1\r\n"), request(path="/exact", body=b"x"),
    POST + HALF, b"POST /exact HTTP/1.1\r\n" + HALF, b"012345",
    POST + HEAD + CHUNKED, b"1\r\na\r\n", b"0\r\n\r\n", b"zz\r\n", b"\r\n", b"x" * 101,
    POST + HEAD + b"Content-Length: 6\r\nExpect: 100-continue\r\n\r\n", UPGRADE,
    H2C,
]  # fmt: skip


@given(
    st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join).flatmap(cuts),
    st.lists(st.booleans(), min_size=40, max_size=40),
)
@settings(max_examples=examples(13), deadline=None)
def test_random_conversations_stay_in_the_tables(pieces: list[bytes], completes: list[bool]) -> None:
    shared = Shared()
    connection = Watched(shared)
    running: ServerExchange | None = None
    for piece, at_once in zip(pieces, completes, strict=False):
        if connection.replying == CLOSED:
            break
        for event in connection.feed(piece) if piece else []:
            assert not (isinstance(event, Response) and event.status == 500)
            running = event if isinstance(event, ServerExchange) else running
        if running is not None and at_once and connection.replying == ANSWERING:
            connection.complete(running)
            running = None
            event = connection.next_event()
            running = event if isinstance(event, ServerExchange) else None
    connection.lose()
    assert set(connection.seen) <= pairs(READING_MOVES)
    assert set(connection.replied) <= pairs(REPLYING_MOVES)
    assert shared.unfinished.used == 0


@pytest.mark.parametrize("path", ["/echo", "/exact"])
@pytest.mark.parametrize("chunk", [b"zz\r\n", b"1\r\n" + b"a" * 9])
async def test_invalid_chunk_after_expect_is_rejected_without_a_traceback(
    path: str, chunk: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    events = Watched().feed(
        b"POST %b HTTP/1.1\r\n" % path.encode() + HEAD + b"Expect: 100-continue\r\n" + CHUNKED + chunk
    )
    await asyncio.sleep(0)
    assert [type(each) for each in events] == [Response]
    assert isinstance(events[0], Response)
    assert events[0].body == b"The request isn't valid HTTP.\n"
    assert caplog.text == ""
