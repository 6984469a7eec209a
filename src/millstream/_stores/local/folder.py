"""Private folders for parents' sockets, and the cleanup of folders left by killed parents."""

import errno
import os
import socket
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from zlib import crc32

_PREFIX = f"millstream-{crc32(socket.gethostname().encode()):08x}-"
"""A prefix with a hash of the host name. On a shared file system, a machine can probe only its own sockets."""
_NAME = "store"
_LONGEST_PATH = 100
"""Maximum bytes of a socket path, slightly below the limit of common systems."""
_OLD = 60.0
"""Seconds after which an unused socket is treated as abandoned."""
_ELSEWHERE = "/tmp"  # noqa: S108  nobody but this user can enter what is made there


def private_socket() -> Path:
    """Return a path for a socket in a new folder that only this user can access."""
    folder = tempfile.mkdtemp(prefix=_PREFIX)  # mode 0700
    if len(os.fsencode(folder)) > _LONGEST_PATH:
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix=_PREFIX, dir=_ELSEWHERE)
    return Path(folder) / _NAME


def sweep() -> None:
    """Remove folders of killed parents: those of this user that contain only an unused socket."""
    for place in {tempfile.gettempdir(), _ELSEWHERE}:
        with suppress(OSError), os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith(_PREFIX):
                    with suppress(OSError):
                        _remove_dead(Path(entry.path))


def _remove_dead(folder: Path) -> None:
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or [*folder.iterdir()] != [folder / _NAME]:
        return
    path = folder / _NAME
    about = path.lstat()
    if stat.S_ISSOCK(about.st_mode) and time.time() - about.st_mtime > _OLD and not _listens(path):
        path.unlink()
        folder.rmdir()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.setblocking(False)  # the backlog of a stalled parent may be full
        return peer.connect_ex(str(path)) != errno.ECONNREFUSED
