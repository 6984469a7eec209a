import asyncio
import os
import socket
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from cases import for_each
from millstream import Server
from millstream._app.server_process import CommandError, over_http, worker_process
from millstream._app.server_process import supervisor as watching
from millstream._app.server_process.supervisor import Supervisor, make_workers
from millstream._app.server_process.worker_process import (
    LONGEST,
    Drain,
    Force,
    Hello,
    MessageChannel,
    SupervisedWorker,
    WorkerState,
    WorkerStates,
    how,
    open_sockets,
    own_command,
)
from patience import WAIT

HELLO = Hello(worker=1, workers=2, host="127.0.0.1", port=8000, listeners=[5], run=1, key="k" * 32)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A pair of sockets."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_backoff_grows_in_crash_loops() -> None:
    worker = SupervisedWorker(1, [], own=False)
    waits = [worker.record_death() for _ in range(1_100)]
    assert waits[:10] == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, LONGEST, LONGEST, LONGEST]
    assert waits[-1] == LONGEST


def test_supervisor_messages_are_reassembled(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    sent = [HELLO, Drain(replaced=True), Force(), WorkerStates([WorkerState(1, 10, "ready", 0)])]
    for message in sent:
        MessageChannel(ours).send(message)
    data = theirs.recv(65_536)
    line, heard = MessageChannel(theirs), []
    for byte in data:
        ours.send(bytes([byte]))
        heard += line.read() or []
    assert heard == sent


def test_closed_and_invalid_supervisor_channels_end(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    line = MessageChannel(theirs)
    theirs.setblocking(False)
    assert line.read() == []
    ours.send(b"what?\n")
    assert line.read() is None
    ours.close()
    assert line.read() is None
    line.send(Drain())  # the other end is closed, and nothing is raised


@pytest.mark.parametrize("given", ["250:1", "0:1", ""], ids=["closed", "another file", "nothing"])
def test_processes_without_the_socket_are_not_workers(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(worker_process.VARIABLE, given)
    assert worker_process.claim() is None
    assert worker_process.VARIABLE not in os.environ


def test_restart_command_uses_the_original_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    main = ModuleType("__main__")
    main.__file__ = str(tmp_path / "shop.py")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "shop.py", "--fast"])
    assert own_command() == [sys.executable, "-X", "dev", str(tmp_path / "shop.py"), "--fast"]
    main.__spec__ = SimpleNamespace(name="shop.__main__")  # type: ignore[assignment]
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "shop"])
    assert own_command() == [sys.executable, "-m", "shop"]


def test_interactive_programs_cannot_have_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    monkeypatch.setattr(sys, "orig_argv", ["python"])
    with pytest.raises(CommandError, match="can be started again") as raised:
        own_command()
    assert "file" in raised.value.fix


def test_workers_have_sockets_on_the_same_port() -> None:
    sockets = open_sockets("127.0.0.1", 0, 3)
    try:
        assert len({each.getsockname() for each in sockets}) == 1
        # A socket whose port the kernel has picked forgets it when it stops listening; these don't.
        for each in sockets:
            each.listen()
            each.shutdown(socket.SHUT_RD)
            each.listen()
        assert len({each.getsockname() for each in sockets}) == 1
    finally:
        for each in sockets:
            each.close()


def test_process_exits_are_described() -> None:
    assert [how(3), how(-9), how(-64)] == ["ended with status 3", "was killed by SIGKILL", "was killed by SIGRTMAX"]
    assert how(-250) == "was killed by signal 250"


def test_only_python_files_of_the_program_are_watched(tmp_path: Path) -> None:
    for name in ("shop.py", "prices/books.py", "notes.txt", ".venv/a.py", "env/lib/b.py", "node_modules/c.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "env" / "pyvenv.cfg").touch()
    found = {str(Path(each).relative_to(tmp_path)) for each in watching.look(tmp_path)}
    assert found == {"shop.py", "prices/books.py"}


async def test_edits_before_the_first_scan_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("1")
    changes = watching.changes(tmp_path)
    (tmp_path / "shop.py").write_text("12")
    await asyncio.wait_for(anext(changes), WAIT)


async def test_several_quick_edits_count_as_one_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([{"a": (1, 1)}, {"a": (2, 1)}, {"a": (2, 1), "b": (1, 1)}, *[{"a": (2, 1), "b": (2, 2)}] * 50])
    monkeypatch.setattr(watching, "PAUSE", 0)

    def look(_: Path) -> watching.Seen:
        for seen in looks:
            return seen
        raise EOFError

    monkeypatch.setattr(watching, "look", look)
    changes = watching.changes(tmp_path)
    await asyncio.wait_for(anext(changes), WAIT)
    with pytest.raises(EOFError):
        await asyncio.wait_for(anext(changes), WAIT)


@for_each(("transport", "workers"), [("stdio", 2), ("http", 0), (None, -1)])
def test_invalid_worker_counts_are_rejected(transport: str | None, workers: int) -> None:
    with pytest.raises(ValueError, match=f"workers={workers}"):
        Server("shop").run(transport, workers=workers)


def test_one_process_serves_without_socket_passing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("os.name", "nt")
        assert not over_http.is_supervisor(4)
    assert "one process serves" in caplog.text
    assert not over_http.is_supervisor(1)


def test_missing_store_location_is_explained() -> None:
    @asynccontextmanager
    async def store() -> AsyncGenerator[str, None]:
        raise OSError(28, "No space left on device")
        yield ""

    with socket.create_server(("127.0.0.1", 0)) as listener:
        workers = make_workers([listener], 2, passed=False)
        supervisor = Supervisor([], workers, host="127.0.0.1", run_number=1, store=store)
        with pytest.raises(CommandError, match="can't create a socket") as raised:
            asyncio.run(supervisor.run())
    assert "TMPDIR" in raised.value.fix


def test_workers_share_passed_sockets_and_own_opened_ones() -> None:
    with socket.socket() as one, socket.socket() as two:
        assert [(worker.listeners, worker.own) for worker in make_workers([one, two], 2, passed=False)] == [
            ([one], True),
            ([two], True),
        ]
        for workers in (make_workers([one, two], 2, passed=True), make_workers([one, two], 3, passed=False)):
            assert {worker.own for worker in workers} == {False}
            assert all(list(worker.listeners) == [one, two] for worker in workers)
