import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from millstream._stores import backend_for
from millstream._stores.local import calls
from millstream._stores.local.server import LocalServer
from patience import WAIT

OLD = time.time() - 3600


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The parent directory of the folders."""
    place = tmp_path_factory.mktemp("f")
    monkeypatch.setattr("tempfile.tempdir", str(place))
    monkeypatch.setattr(calls, "ELSEWHERE", str(place))
    return place


def left_behind(*, age: float = 3600, beside: Path | None = None) -> Path:
    """Create a socket without a listener, in a folder of its own or beside another one."""
    path = calls.private_socket() if beside is None else beside.with_name("0123456789ab")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    os.utime(path, (time.time() - age,) * 2)
    return path


def start_and_close() -> None:
    """Start a parent and close it properly."""

    async def run() -> None:
        server = LocalServer(backend_for)
        await server.start()
        await server.close()

    asyncio.run(run())


def test_leftovers_from_a_killed_parent_are_removed(place: Path) -> None:
    program = """
import asyncio, os, signal
from millstream._stores import backend_for
from millstream._stores.local.server import LocalServer

async def main():
    await LocalServer(backend_for).start()
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    environment = {**os.environ, "TMPDIR": str(place)}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, timeout=WAIT, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = place.iterdir()
    os.utime(left / "store", (OLD, OLD))
    start_and_close()
    assert not list(place.iterdir())


def test_worker_sockets_left_by_a_killed_parent_are_removed(place: Path) -> None:
    left_behind(beside=left_behind())
    new = left_behind(beside=left_behind(), age=0)
    start_and_close()
    assert list(place.iterdir()) == [new.parent]


def test_active_sockets_are_not_removed(place: Path) -> None:
    path = left_behind()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        os.utime(path, (OLD, OLD))
        first.connect(str(path))
        start_and_close()
        start_and_close()
        assert path.exists()


def test_unrelated_files_are_not_removed(place: Path) -> None:
    new = left_behind(age=0)
    more = left_behind()
    (more.parent / "notes").touch()
    plain = calls.private_socket()
    plain.touch()
    empty = calls.private_socket().parent
    other = left_behind()
    other = other.parent.rename(place / "millstream-other") / other.name
    (place / left_behind().parent.name).rename(moved := place / "elsewhere")
    (place / (other.parent.name.replace("other", "link"))).symlink_to(moved)
    (link := place / f"{calls._PREFIX}link").symlink_to(moved)
    start_and_close()
    assert all(each.exists() for each in (new, more, plain, empty, other, moved / "store", link))
