"""Recordings in JSON Lines, each with the time, the sender, and the original message.

``{"at": 0.012, "from": "client", "message": {…}}``. The first line of each session contains its start and its server.
Text that isn't a message is in ``text``. A file may contain several sessions.
"""

import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from millstream._app.server_process.errors import CommandError
from millstream._version import __version__

MAX_BYTES = 256 * 1024 * 1024
"""Maximum bytes of a recording. Above it, messages are still forwarded."""


class Writer:
    """Appends a session to a file that only you can read, because messages may contain secrets."""

    def __init__(self, path: Path, server: str, *, max_bytes: int = MAX_BYTES, warn: Callable[[str], None]) -> None:
        """Open the file.

        Args:
            path: the file, created if it doesn't exist.
            server: description of the server for the first line.
            max_bytes: maximum size of the recording.
            warn: called with a message when the recording stops.

        Raises:
            CommandError: the file can't be written.
        """
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            if os.name != "nt" and stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.fchmod(descriptor, 0o600)  # if it already existed
        except OSError as exc:
            raise CommandError(f"{path} can't be written: {exc.strerror}.") from exc
        self._file = os.fdopen(descriptor, "ab")
        self._left = max_bytes
        self._warn = warn
        self._begun = time.monotonic()
        self._write(session={"millstream": __version__, "recorded": round(time.time(), 3), "server": server})

    def line(self, who: str, line: bytes) -> None:
        """Record one line."""
        try:
            message: Any = json.loads(line)
        except (ValueError, RecursionError):
            self.text(who, line.decode("utf-8", "replace"))
        else:
            self._write(**{"from": who, "message": message})

    def text(self, who: str, text: str) -> None:
        """Record text that isn't a message, such as standard error."""
        self._write(**{"from": who, "text": text})

    def _write(self, **entry: Any) -> None:
        if self._left < 0:
            return
        at = round(time.monotonic() - self._begun, 6)
        data = json.dumps({"at": at, **entry}, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        self._left -= len(data)
        if self._left < 0:
            self._warn("The recording has reached its maximum size. Later messages aren't recorded.")
            return
        self._file.write(data)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
