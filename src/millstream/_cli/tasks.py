"""The user's file of tasks that were started on this machine.

Calls as tasks, for `millstream call --task` and `millstream tasks`.
"""

import os
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from millstream._cli.signals import stop_without_reader
from millstream._cli.tables import Progress, print_text
from millstream._files import write_private
from millstream.client._client import Client
from millstream.client._results import Result
from millstream.client._tasks import Task

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
        OSError: The file can't be written.
    """
    now = time.time()
    until = now + (_UNLIMITED if ttl_ms is None else ttl_ms / 1000)
    tasks = [*read_tasks(), StartedTask(server, task_id, tool, now, until)][-_MOST:]
    write_private(path_of_tasks(), msgspec.json.encode(tasks))


async def start(client: Client, server: str, tool: str, arguments: Mapping[str, Any]) -> Task:
    """Start a task, save its id, and print the command that waits for it."""
    started = await client.tasks.start(tool, arguments)
    if started.task_id and server.startswith(("http://", "https://", "ws://", "wss://")):
        words = shlex.join(["millstream", "tasks", server, started.task_id])
        print_text(
            f"Started task {started.task_id}. It continues after Ctrl-C. To wait for it again: {words} --wait",
            sys.stderr,
        )
        try:
            keep_task(server, started.task_id, tool, started.ttl_ms)
        except OSError as exc:
            print_text(f"The id can't be saved ({exc.strerror}). Note it yourself.", sys.stderr)
    return started


async def follow(client: Client, task: str | Task) -> Result:
    """Wait for a task, and show its status messages."""
    progress = Progress()
    try:
        with stop_without_reader() as wrap:
            return await client.tasks.wait(task, progress=wrap(progress.step), raise_on_error=False)
    finally:
        progress.close()
