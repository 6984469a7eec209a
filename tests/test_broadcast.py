import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benches import broadcast, fixed_rate
from benches.processes import free_port, start
from benches.targets import TARGETS
from benches.wire import KINDS
from patience import WAIT
from processes import ROOT, SharedServer, run_command, share_server
from programs import require_program

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The load program, compiled by the system's compiler."""
    built = tmp_path_factory.mktemp("load") / "subscribers"
    sources = sorted(str(path) for path in (ROOT / "benches" / "load").glob("*.c"))
    subprocess.run(
        [require_program("cc"), "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(built), *sources],
        check=True,
    )
    return built


@pytest.fixture(scope="module")
def shared_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """The started example."""

    def command(port: int) -> list[str]:
        return run_command("examples/hub.py", port, "--log-level", "warning")

    with share_server(command, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def port(shared_hub: SharedServer) -> int:
    """The port of the example."""
    return shared_hub.port()


def load(program: Path, port: int, *options: str) -> dict[str, Any]:
    """What the program counted."""
    command = [str(program), "--port", str(port), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_event_reaches_every_stream_once_and_in_order(program: Path, port: int) -> None:
    found = load(program, port, "--subscribers", "100", "--events", "50", "--window", "8")
    assert (found["events"], found["deliveries"]) == (50, 5000)


def test_every_event_reaches_every_websocket_once_and_in_order(program: Path, port: int) -> None:
    found = load(program, port, "--ws", "--subscribers", "100", "--events", "50", "--window", "8")
    assert (found["events"], found["deliveries"]) == (50, 5000)


def test_long_events_arrive_complete(program: Path, port: int) -> None:
    found = load(program, port, "--subscribers", "10", "--events", "20", "--size", "200000")
    assert found["deliveries"] == 200


def test_broadcasts_and_calls_do_not_interfere(program: Path, port: int) -> None:
    found = load(program, port, "--subscribers", "100", "--seconds", "1", "--rate", "50", "--calls", "100", "--tool")
    assert (found["calls"], found["deliveries"]) == (100, 100 * found["events"])
    assert 0 < found["events"] <= 50  # what is due when the second is over isn't sent any more


def test_stalled_readers_are_disconnected_with_the_reason_slow(program: Path, port: int) -> None:
    options = ("--subscribers", "20", "--stalled", "1", "--events", "400", "--size", "65536")
    found = load(program, port, *options)
    assert (found["slow"], found["deliveries"]) == (1, 8000)


@pytest.mark.parametrize(
    ("written", "fault"),
    [
        ({1: [1], 2: [], 3: [3]}, "missing"),
        ({1: [1], 2: [2, 2]}, "duplicated"),
        ({1: [1], 2: [2], 3: [1, 3]}, "duplicated"),
        ({1: []}, "lost"),
    ],
    ids=["one left out", "one twice", "one again later", "a stream that ends"],
)
def test_load_program_detects_server_errors(program: Path, written: dict[int, list[int]], fault: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [str(program), "--port", str(listener.getsockname()[1]), "--subscribers", "1", "--events", "4"]
        listener.settimeout(WAIT)
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            stream, _ = listener.accept()
            publisher, _ = listener.accept()
            with stream, publisher, suppress(ConnectionError):
                serve_wrongly(stream, publisher, written)
            output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 1
    assert json.loads(output)[fault] > 0


RECORDED = b"POST /mcp HTTP/1.1\r\nHost: bench\r\nContent-Length: 7\r\n\r\n1000001"


def call_at_a_fixed_rate(program: Path, rate: int, answer: Callable[[socket.socket, int, int], None]) -> dict[str, Any]:
    """What the program reports after a hundred calls of RECORDED on one connection, which `answer` answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WAIT)
        command = [str(program), "--port", str(listener.getsockname()[1]), "--subscribers", "0", "--callers", "1"]
        options = ["--calls", str(rate), "--seconds", str(100 / rate), "--request", RECORDED.decode()]
        with subprocess.Popen([*command, *options], stdout=subprocess.PIPE) as process:
            caller, _ = listener.accept()
            with caller, caller.makefile("rb") as requests, suppress(ConnectionError):
                caller.settimeout(WAIT)
                for number in range(100):
                    answer(caller, number, int(requests.read(len(RECORDED))[-7:] or 0))
                assert requests.read() == b""
            output, _ = process.communicate(timeout=WAIT)
    found: dict[str, Any] = json.loads(output)
    assert process.returncode == (1 if found["wrong"] else 0)
    return found


def reply(caller: socket.socket, total: int) -> None:
    body = b'{"result":{"structuredContent":{"result":%d}}}' % total
    caller.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))


def test_waits_behind_a_slow_reply_count_from_the_time_when_calls_are_due(program: Path) -> None:
    def answer(caller: socket.socket, number: int, call: int) -> None:
        assert call == 1000001 + number
        if number == 0:
            # The other calls become due in this time, a hundredth of it apart.
            caller.settimeout(1)
            with suppress(TimeoutError):
                caller.recv(1)
            caller.settimeout(WAIT)
        reply(caller, call + 1)

    found = call_at_a_fixed_rate(program, 100, answer)
    assert found["calls"] == 100
    assert found["call_max_ms"] >= 990
    assert found["call_p99_ms"] >= 970
    assert found["call_p50_ms"] >= 480


def test_wrong_replies_at_a_fixed_rate_are_detected(program: Path) -> None:
    found = call_at_a_fixed_rate(program, 1000, lambda caller, number, call: reply(caller, call + (number != 50)))
    assert found["wrong"] == 1


def test_waiting_tool_can_be_called_at_a_fixed_rate(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcast, "PROGRAM", program)
    monkeypatch.setattr(broadcast, "pinned", lambda _, command: command)
    target, port = TARGETS["ours-traffic"], free_port()
    server = start(target.command(port), {}, port, tmp_path / "log", core="")
    try:
        found = fixed_rate.send(server, KINDS["wait"], 0.2, 16, 100)
    finally:
        server.stop()
    assert found["calls"] == 20
    assert found["call_p50_ms"] >= 10


@pytest.mark.parametrize(("status", "fine"), [(201, True), (202, True), (400, False)])
def test_events_that_are_not_json_are_posted_unchanged(program: Path, status: int, fine: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        command = [str(program), "--port", port, "--subscribers", "1", "--events", "4", "--raw"]
        listener.settimeout(WAIT)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            stream, _ = listener.accept()
            publisher, _ = listener.accept()
            with stream, publisher, suppress(ConnectionError):
                serve_wrongly(stream, publisher, {1: [1]}, status)
            output, _ = process.communicate(timeout=WAIT)
    assert (process.returncode == 0) == fine
    assert not fine or json.loads(output)["deliveries"] == 4


def serve_wrongly(
    stream: socket.socket, publisher: socket.socket, written: dict[int, list[int]], status: int = 200
) -> None:
    """One subscriber, one publisher, until the publisher leaves; without any events in the table the stream ends."""
    stream.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
    events: dict[int, bytes] = {}
    with publisher.makefile("rb") as requests:
        while requests.readline():
            size = 0
            while (line := requests.readline().lower()) != b"\r\n":
                size = int(line.partition(b":")[2]) if line.startswith(b"content-length:") else size
            body = requests.read(size)
            data = json.loads(body)["data"] if body.startswith(b"{") else body.decode()
            number = int(data[1:11])
            events[number] = b"data: %b\n\n" % data.encode()
            stream.sendall(b"".join(events[each] for each in written.get(number, [number])))
            if number and not any(written.values()):
                stream.shutdown(socket.SHUT_RDWR)
            publisher.sendall(b"HTTP/1.1 %d .\r\ncontent-length: 2\r\n\r\n{}" % status)
