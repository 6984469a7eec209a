"""The private folder in which a parent's socket lies, and the removal of those whose parents were killed."""

import errno
import os
import socket
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final
from zlib import crc32

_PREFIX: Final = f"millstream-{crc32(socket.gethostname().encode()):08x}-"
"""On a shared folder, a machine only knows its own listeners."""
_NAME: Final = "store"
_LONGEST_PATH: Final = 100
"""A little less than what systems take for the path of a socket."""
_OLD: Final = 60.0
"""Seconds after which an unused socket is no longer one that is about to be used."""
_ELSEWHERE: Final = "/tmp"  # noqa: S108  nobody but this user can enter what is made there


def private_socket() -> Path:
    """Return a path for a socket in a new folder that only this user can access."""
    folder = tempfile.mkdtemp(prefix=_PREFIX)  # mode 0700
    if len(os.fsencode(folder)) > _LONGEST_PATH:
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix=_PREFIX, dir=_ELSEWHERE)
    return Path(folder) / _NAME


def sweep() -> None:
    """Remove the remains of killed parents: folders of this user that contain only an unused socket."""
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
        peer.setblocking(False)  # one that stands still may have no room for another connection
        return peer.connect_ex(str(path)) != errno.ECONNREFUSED
