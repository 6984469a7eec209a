"""A store shared by the worker processes of another server, such as ``uvicorn --workers 4``, gunicorn, or Hypercorn.

Their parent doesn't manage a store. The first worker that needs one starts a process for it, which exits after the last
worker. The workers find it through the listening socket that they share.
"""

import asyncio
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from millstream._override import override
from millstream._stores.base import Backend
from millstream._stores.local.calls import ELSEWHERE, LONGEST_PATH, VERSION
from millstream._stores.local.server import LocalServer
from millstream._stores.local.store import LocalBackend
from millstream._stores.memory.store import MemoryBackend
from millstream.files import lock_folder

IDLE: Final = 10
"""Seconds without a connected worker after which the store's process exits, even if their parent is running. A restart
takes less."""
_STARTED = 60.0
"""Maximum startup time of the store's process, in seconds."""
_READY: Final = b"ready"
_ACCEPTED = 0.1
"""Seconds for accepting a connection that was made before the last look."""


def shared_socket() -> str:
    """Return the oldest socket that this process and its parent accept connections from, or an empty string.

    One that the parent has inherited is only used if there's no other, because it may belong to something else. The
    sockets of a parent that runs as another user can't be read, so all of ours are used if it has forked this process.
    """
    with suppress(OSError):  # no such file system
        parent, inherited = os.getppid(), set[str]()
        ours = {name for number, name in _descriptors(os.getpid()) if _accepts(number)}
        try:
            ours &= {name for _, name in _descriptors(parent)}
        except PermissionError:
            if _command(parent) != _command(os.getpid()):
                return ""
        with suppress(OSError):
            about = Path(f"/proc/{parent}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
            inherited = {name for _, name in _descriptors(int(about[1]))}
        return min(ours - inherited or ours, key=lambda name: (len(name), name), default="")
    return ""


def _command(process: int) -> bytes:
    return Path(f"/proc/{process}/cmdline").read_bytes()


def _descriptors(process: int) -> Iterator[tuple[int, str]]:
    """Yield the sockets of a process: the descriptor, and the name that's the same in each process."""
    for path in Path(f"/proc/{process}/fd").iterdir():
        with suppress(OSError):  # closed in the meantime
            name = str(path.readlink())
            if name.startswith("socket:"):
                yield int(path.name), name[len("socket:[") : -1]


def _accepts(descriptor: int) -> bool:
    """Return whether a socket has an address and no peer. uvicorn's listens only after the application has started."""
    try:
        each = socket.socket(fileno=os.dup(descriptor))
    except OSError:
        return False  # closed in the meantime
    with each:
        name = each.getsockname()
        if each.type != socket.SOCK_STREAM or not (name[1] if isinstance(name, tuple) else name):
            return False
        try:
            each.getpeername()
        except OSError:
            return True  # the socket isn't connected
    return False


class SiblingBackend(LocalBackend):
    """A store that the processes of a server share. It's started whenever a process needs it and there's none."""

    _presence: socket.socket | None = None
    """Kept for the life of this process, because a stopped server, which may start again, has closed its store."""

    def __init__(self, shared: str, url: str) -> None:
        """Start the store, if none of the other processes has.

        Args:
            shared: What `shared_socket` returned.
            url: URL of the store, with a NUL and a name if there are several at this URL.

        Raises:
            OSError: It can't be started.
        """
        super().__init__("", url)
        self._shared = shared
        self._find()

    def _find(self) -> None:
        before = self._presence
        self._presence, self._address = _join(self._shared)
        if before is not None:
            before.close()

    @override
    async def _connect(self) -> None:
        if self.epoch:  # the store's process may have been killed
            await asyncio.to_thread(self._find)
        await super()._connect()


def _join(shared: str) -> tuple[socket.socket, str]:
    """Return a connection to the store's process, which is started if there's none, and its address.

    Raises:
        OSError: It can't be started.
    """
    # Others can't enter the folder, and this user's programs on other networks can't see it.
    name = f"millstream-shared-{os.geteuid()}"
    folder = Path(tempfile.gettempdir(), name)
    if len(os.fsencode(folder)) > LONGEST_PATH:
        folder = Path(ELSEWHERE, name)
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077:
        raise PermissionError(f"{folder} isn't a folder that only this user can access.")
    path = folder / f"{shared}.{VERSION}"
    with lock_folder(folder):
        try:
            return _connect(path), str(path)
        except (FileNotFoundError, ConnectionRefusedError):
            path.unlink(missing_ok=True)  # left by a killed process
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1024)
            process = subprocess.Popen(  # noqa: S603  it's this module
                [sys.executable or "", "-P", "-m", __name__, str(listener.fileno()), str(path), str(os.getppid())],
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the server
            )
        assert process.stdout is not None  # noqa: S101  it's a pipe
        with process.stdout as output:
            ready, _, _ = select.select([output], [], [], _STARTED)
            if ready and os.read(output.fileno(), len(_READY)) == _READY:
                return _connect(path), str(path)
        process.kill()
        path.unlink(missing_ok=True)
        raise ChildProcessError("The store's process didn't start.")  # Millstream may not be importable there


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def _make_backend(url: str) -> Backend:
    if url.startswith("memory://"):
        return MemoryBackend()
    from millstream._stores.sqlite.file import locate  # noqa: PLC0415  loads SQLite only where it's used
    from millstream._stores.sqlite.store import SqliteBackend  # noqa: PLC0415  as above

    return SqliteBackend(locate(url))


async def _keep(listener: socket.socket, path: Path, parent: int) -> None:
    """Keep the store until no process has been connected for a while, or at all once their parent has ended."""
    server = LocalServer(_make_backend)
    loop, ending, quiet = asyncio.get_running_loop(), asyncio.Event(), 0
    for number in (signal.SIGTERM, signal.SIGINT):  # systemd signals all processes, but the workers still have to stop
        loop.add_signal_handler(number, ending.set)
    await server.start(listener)
    with suppress(OSError):  # the process that waits for this was killed
        os.write(1, _READY)

    def end(watched: int) -> None:
        loop.remove_reader(watched)
        ending.set()

    with suppress(OSError):  # the process has ended, or the system is too old
        watched = os.pidfd_open(parent)
        loop.add_reader(watched, end, watched)
    served = True
    while served:
        while server.peers or quiet < (1 if ending.is_set() else IDLE):
            if ending.is_set():
                await asyncio.sleep(_ACCEPTED)
            else:
                with suppress(TimeoutError):
                    await asyncio.wait_for(ending.wait(), 1)
            quiet = 0 if server.peers else quiet + 1
        with lock_folder(path.parent):
            await asyncio.sleep(_ACCEPTED)
            served = bool(server.peers)
            if not served:
                await asyncio.to_thread(path.unlink, missing_ok=True)
    await server.close()


if __name__ == "__main__":
    asyncio.run(_keep(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])))
