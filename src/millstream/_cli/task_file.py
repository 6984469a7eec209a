"""The user's file of tasks that were started on this machine."""

import os
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from millstream.client._oauth.store import write_private

_MOST = 500
"""Maximum number of tasks in the file. The oldest are removed first."""
_UNLIMITED = 30 * 86400.0
"""Seconds to keep a task without a time to live."""


class StartedTask(Struct):
    """A task that was started on this machine."""

    server: str
    id: str
    tool: str
    started: float
    """Unix time."""
    until: float
    """Unix time after which the server may have deleted it."""


def path_of_tasks() -> Path:
    """Return the path of the file."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "millstream" / "tasks.json"


def read_tasks() -> list[StartedTask]:
    """Return the tasks that may still exist, oldest first, or none if the file can't be read."""
    try:
        found = msgspec.json.decode(path_of_tasks().read_bytes(), type=list[StartedTask])
    except (OSError, ValueError, RecursionError):
        return []
    now = time.time()
    return [each for each in found if each.until > now]


def keep_task(server: str, task_id: str, tool: str, ttl_ms: int | None) -> None:
    """Add a task to the file.

    Raises:
        OSError: the file can't be written.
    """
    now = time.time()
    until = now + (_UNLIMITED if ttl_ms is None else ttl_ms / 1000)
    tasks = [*read_tasks(), StartedTask(server, task_id, tool, now, until)][-_MOST:]
    write_private(path_of_tasks(), msgspec.json.encode(tasks))
