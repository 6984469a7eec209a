"""Calls as tasks, for the commands that start them and wait for them."""

import shlex
import sys
from collections.abc import Mapping
from typing import Any

from millstream._cli.signals import unread
from millstream._cli.tables import Progress, print_text
from millstream._cli.task_file import keep_task
from millstream.client._client import Client
from millstream.client._results import Result
from millstream.client._tasks import Task


async def start(client: Client, server: str, tool: str, arguments: Mapping[str, Any]) -> Task:
    """Start a task, keep its id, and print how to come back to it."""
    started = await client.tasks.start(tool, arguments)
    if started.task_id and server.startswith(("http://", "https://", "ws://", "wss://")):
        words = shlex.join(["millstream", "tasks", server, started.task_id])
        print_text(
            f"Task {started.task_id}. Ctrl-C leaves it running; this waits for it again: {words} --wait", sys.stderr
        )
        try:
            keep_task(server, started.task_id, tool, started.ttl_ms)
        except OSError as exc:
            print_text(f"The id can't be kept ({exc.strerror}): write it down.", sys.stderr)
    return started


async def follow(client: Client, task: str | Task) -> Result:
    """Wait for a task, and show its status messages."""
    progress = Progress()
    try:
        with unread() as told:
            return await client.tasks.wait(task, progress=told(progress.step), raise_on_error=False)
    finally:
        progress.close()
