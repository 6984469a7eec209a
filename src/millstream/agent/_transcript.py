"""Transcripts as JSON Lines: one object per event, with the time (`at`), the `type`, and the event's members.

Text chunks and progress are omitted, because complete answers and results follow. Events never contain keys.
"""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from millstream.agent._errors import AgentError
from millstream.agent._events import Delta, Event, ToolProgress

_PASSING = (Delta, ToolProgress)


class Transcript:
    """The transcript of one conversation."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._saved: set[Path] = set()

    def note(self, event: Event) -> None:
        """Add an event."""
        if not isinstance(event, _PASSING):
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            self._lines.append(msgspec.json.encode({"at": at} | msgspec.to_builtins(event)))

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._lines)

    def save(self, path: str | Path) -> int:
        """Write a file that only you can read, and return the number of lines.

        Raises:
            AgentError: the file can't be written, or already exists and wasn't written by this transcript.
        """
        place = Path(path).expanduser().absolute()
        how = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if place in self._saved else os.O_EXCL)
        try:
            with open(os.open(place, how, 0o600), "wb") as file:  # noqa: PTH123  `Path.open` accepts no mode
                file.write(b"".join(line + b"\n" for line in self._lines))
        except FileExistsError as exc:
            raise AgentError(f"The file {path} already exists. Choose another name.") from exc
        except OSError as exc:
            raise AgentError(f"{path} can't be written: {exc.strerror}.") from exc
        self._saved.add(place)
        return len(self._lines)
