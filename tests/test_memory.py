import json
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from patience import WAIT
from processes import ROOT, free_port, run_command, run_server
from wire import LATEST_HANDSHAKE, POST, encode_headers, encode_request, request

pytestmark = [pytest.mark.server, pytest.mark.nightly]

SESSIONS = 10_000
WARM_UP = 3_000
AT_ONCE = 50
"""Requests on their way together: the server lets 64 wait on a connection."""
MIB = 1024 * 1024
TOLERANCE = MIB
PARAMS = {
    "protocolVersion": LATEST_HANDSHAKE,
    "capabilities": {"sampling": {}},
    "clientInfo": {"name": "t", "version": "1"},
}
INITIALIZE = encode_request("POST", "/mcp", encode_headers(POST), json.dumps(request("initialize", PARAMS)).encode())
INITIALIZED = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'
SESSION = re.compile(rb"mcp-session-id: (\S+)\r\n")
RESET = struct.pack("ii", 1, 0)
"""Linger for no time: closing leaves no port waiting behind."""


class Process:
    """The server under test."""

    def __init__(self, pid: int, port: int) -> None:
        self._pid = pid
        self._port = port

    def memory(self) -> int:
        """Resident bytes of the process."""
        pages = int(Path(f"/proc/{self._pid}/statm").read_text("ascii").split()[1])
        return pages * 4096

    def connect(self) -> socket.socket:
        """A connection that vanishes when it is closed."""
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=WAIT)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        return connection

    def health(self) -> dict[str, int]:
        """What the server says that it holds."""
        with self.connect() as connection:
            connection.sendall(encode_request("GET", "/health", [(b"host", b"127.0.0.1")], b""))
            reply = read_until(connection, b"}")
        return dict(json.loads(reply.split(b"\r\n\r\n", 1)[1]))


def read_until(connection: socket.socket, end: bytes, times: int = 1) -> bytes:
    """Read until a text has come so often."""
    data = b""
    while data.count(end) < times:
        piece = connection.recv(65536)
        assert piece, data
        data += piece
    return data


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    """A server of its own for each test."""
    port = free_port()
    with run_server(run_command(str(ROOT / "examples" / "greet.py"), port), port, tmp_path / "log") as popen:
        yield Process(popen.pid, port)


def open_sessions(process: Process, count: int) -> list[bytes]:
    """Whole handshakes on one connection, some at a time; the ids of the sessions."""
    sessions: list[bytes] = []
    with process.connect() as connection:
        while len(sessions) < count:
            connection.sendall(INITIALIZE * AT_ONCE)
            opened = SESSION.findall(read_until(connection, b'"result":', AT_ONCE))
            assert len(opened) == AT_ONCE
            fields = encode_headers(POST)
            connection.sendall(b"".join(
                encode_request("POST", "/mcp", [*fields, (b"mcp-session-id", one)], INITIALIZED) for one in opened
            ))  # fmt: skip
            read_until(connection, b"HTTP/1.1 202", AT_ONCE)
            sessions += opened
    assert len(set(sessions)) == count
    return sessions


def open_streams(process: Process, sessions: list[bytes]) -> None:
    """A stream for each session, some at a time, and every one closed again."""
    fields = [(b"host", b"127.0.0.1"), (b"accept", b"text/event-stream")]
    for start in range(0, len(sessions), AT_ONCE):
        connections = [process.connect() for _ in sessions[start : start + AT_ONCE]]
        for connection, session in zip(connections, sessions[start:], strict=False):
            connection.sendall(encode_request("GET", "/mcp", [*fields, (b"mcp-session-id", session)], b""))
        for connection in connections:
            assert b" 200 OK" in read_until(connection, b"id: ")
            connection.close()
    deadline = time.monotonic() + WAIT
    while process.health()["streams"]:
        assert time.monotonic() < deadline, "the server holds streams that nobody reads"


def least_growth(process: Process, work: Callable[[], object]) -> int:
    """Bytes that some work leaves behind each time: what it keeps comes again, an arena of the allocator doesn't."""
    growths: list[int] = []
    while len(growths) < 3 and min(growths, default=TOLERANCE) >= TOLERANCE:
        before = process.memory()
        work()
        growths.append(process.memory() - before)
    return min(growths)


def test_ten_thousand_idle_sessions_take_under_one_mebibyte(process: Process) -> None:
    open_sessions(process, WARM_UP)
    assert least_growth(process, lambda: open_sessions(process, SESSIONS)) < TOLERANCE


def test_ten_thousand_closed_streams_leave_no_memory(process: Process) -> None:
    sessions = open_sessions(process, SESSIONS)
    open_streams(process, sessions[:WARM_UP])
    assert least_growth(process, lambda: open_streams(process, sessions)) < TOLERANCE
