"""Calls as tasks, for `millstream call --task` and `millstream tasks`."""

import shlex
import sys
from collections.abc import Mapping
from typing import Any

from millstream._cli.signals import stop_without_reader
from millstream._cli.tables import Progress, print_text
from millstream._cli.task_file import keep_task
from millstream.client._client import Client
from millstream.client._results import Result
from millstream.client._tasks import Task


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
