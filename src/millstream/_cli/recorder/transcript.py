"""Recordings in JSON Lines, each with the time, the sender, and the original message.

``{"at": 0.012, "from": "client", "message": {…}}``. The first line of each session contains its start and its server.
Text that isn't a message is in ``text``. A file may contain several sessions.
"""

import json
import os
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from millstream._app.server_process.errors import CommandError
from millstream._protocol.json_schema import is_array, is_object, members, value_at
from millstream._version import __version__

MAX_BYTES = 256 * 1024 * 1024
"""Maximum bytes of a recording. Above it, messages are still forwarded."""


class RecordedMessage(Struct, frozen=True):
    """One message of a recording."""

    who: str
    """``client`` or ``server``."""
    message: Mapping[str, Any]
    number: int
    """Line number in the file."""


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
        about = {"millstream": __version__, "recorded": round(time.time(), 3), "server": server}
        self._write({"at": 0.0, "session": about})

    def line(self, who: str, line: bytes) -> None:
        """Record one line."""
        at = round(time.monotonic() - self._begun, 6)
        try:
            message: Any = json.loads(line)
        except (ValueError, RecursionError):
            self._write({"at": at, "from": who, "text": line.decode("utf-8", "replace")})
        else:
            self._write({"at": at, "from": who, "message": message})

    def text(self, who: str, text: str) -> None:
        """Record text that isn't a message, such as standard error."""
        self._write({"at": round(time.monotonic() - self._begun, 6), "from": who, "text": text})

    def _write(self, entry: Mapping[str, Any]) -> None:
        data = json.dumps(entry, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        if self._left < 0:
            return
        self._left -= len(data)
        if self._left < 0:
            self._warn("The recording has reached its maximum size. Later messages aren't recorded.")
            return
        self._file.write(data)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def load(path: Path) -> list[RecordedMessage]:
    """Return the messages of a recording, with batches split up.

    Raises:
        CommandError: the file doesn't exist, or a line is malformed.
    """
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as exc:
        raise CommandError(f"{path} isn't a recording: it isn't UTF-8 text.") from exc
    except OSError as exc:
        raise CommandError(f"{path} can't be read: {exc.strerror}.", fix="Create one with millstream record.") from exc
    found: list[RecordedMessage] = []
    for number, line in enumerate(text.split("\n"), 1):  # messages may contain other line separators
        if line.strip():
            found += _read(line, number, path)
    if not found:
        raise CommandError(f"{path} has no messages.", fix="Record a session first: millstream record FILE SERVER")
    return found


def _read(line: str, number: int, path: Path) -> list[RecordedMessage]:
    try:
        entry: Any = json.loads(line)
    except ValueError:
        entry = None
    fields = members(entry)
    if not {"from", "session"} & fields.keys():
        raise CommandError(
            f"Line {number} of {path} isn't a line of a recording.",
            why='Lines look like {"at": 0.1, "from": "client", "message": {}}.',
            fix="Use a file created by millstream record.",
        )
    found: Any = fields.get("message")
    who = str(fields.get("from"))
    return [RecordedMessage(who, each, number) for each in (found if is_array(found) else [found]) if is_object(each)]


class Exchange(Struct):
    """A request of the client, and the server's messages that followed it."""

    request: Mapping[str, Any]
    replies: list[Mapping[str, Any]]
    """The messages in order, including the response if there was one."""
    used: bool = False

    @property
    def answer(self) -> Mapping[str, Any] | None:
        """The response to the request."""
        wanted = self.request.get("id")
        return next((each for each in self.replies if is_answer(each) and each.get("id") == wanted), None)


def exchanges(messages: list[RecordedMessage]) -> list[Exchange]:
    """Return the requests of a recording, with the messages that followed each."""
    found: list[Exchange] = []
    open_: list[Exchange] = []
    for each in messages:
        message = each.message
        if each.who == "client" and "method" in message and "id" in message:
            open_.append(Exchange(message, []))
            found.append(open_[-1])
        elif each.who == "server":
            owner = _owner(message, open_) or (found[-1] if found else None)
            if owner is not None:
                owner.replies.append(message)
                if is_answer(message) and owner in open_:
                    open_.remove(owner)
    return found


def _owner(message: Mapping[str, Any], open_: list[Exchange]) -> Exchange | None:
    """Return the pending request that a message of the server belongs to."""
    if is_answer(message):
        return next((each for each in open_ if each.request.get("id") == message.get("id")), None)
    token = params_of(message).get("progressToken")
    if token is not None:
        return next((each for each in open_ if progress_token(each.request) == token), None)
    return open_[-1] if open_ else None


def is_answer(message: Mapping[str, Any]) -> bool:
    """Return whether a message is a response."""
    return "method" not in message and ("result" in message or "error" in message)


def progress_token(request: Mapping[str, Any]) -> Any:
    """Return the progress token of a request."""
    return value_at(request, ("params", "_meta", "progressToken"))


def params_of(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a message."""
    return members(message.get("params"))


_OF_ROUNDS = ("_meta", "requestState", "inputResponses")


def plain_params(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that don't differ between connections."""
    return {name: value for name, value in params_of(message).items() if name not in _OF_ROUNDS}
