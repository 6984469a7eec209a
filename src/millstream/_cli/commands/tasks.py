"""``millstream tasks``: show, wait for, or cancel tasks started with ``millstream call --task``."""

import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from millstream._cli.commands.offers import print_result
from millstream._cli.connect_options import (
    DEFAULTS,
    FAILED,
    ConnectOptions,
    Target,
    person,
    with_client,
)
from millstream._cli.errors import UsageError
from millstream._cli.options import Json
from millstream._cli.tables import print_json, print_rows, print_text
from millstream._cli.tasks import follow, read_tasks
from millstream._protocol.errors import INVALID_PARAMS
from millstream.client._client import Client
from millstream.client._errors import ServerError
from millstream.client._tasks import Task


def tasks(
    target: Target,
    task: Annotated[str, Parameter(name="TASK", help="The id of a task.")] = "",
    /,
    *,
    wait: Annotated[bool, Parameter(help="Wait until the task ends.")] = False,
    cancel: Annotated[bool, Parameter(help="Cancel the task.")] = False,
    options: ConnectOptions = DEFAULTS,
    json: Json = False,
) -> None:
    """List the tasks that were started on this machine, or show, wait for, or cancel one.

    `millstream call --task` starts them. With an id, it prints the state of that task, or its result
    once it's completed. The exit status is 1 if the tool reports an error.

    **Examples**

    - `millstream tasks https://example.com/mcp`

    - `millstream tasks https://example.com/mcp ID --wait`
    """
    if not task and (wait or cancel):
        raise UsageError("--wait and --cancel require a task: millstream tasks SERVER ID")

    async def work(client: Client) -> int:
        if not task:
            await _show_all(client, target, as_json=json)
            return 0
        if cancel:
            await client.tasks.cancel(task)
            print_text(f"Canceled {task}.", sys.stderr)
            return 0
        if wait:
            return print_result(await follow(client, task), as_json=json)
        return _show(await client.tasks.get(task), as_json=json)

    with_client(target, options, work, elicit=person())


async def _show_all(client: Client, server: str, *, as_json: bool) -> None:
    rows: list[list[str]] = []
    found: list[Task] = []
    for each in read_tasks():
        if each.server != server:
            continue
        try:
            now = await client.tasks.get(each.id)
        except ServerError as exc:
            if exc.code != INVALID_PARAMS:
                raise
            continue  # the server has deleted it
        found.append(now)
        started = datetime.fromtimestamp(each.started, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        rows.append([each.id, each.tool, now.status, started, now.status_message])
    if as_json:
        print_json([_plain(each) for each in found])
    elif not rows:
        print_text(
            "No task of this server was started on this machine. Start one with `millstream call SERVER TOOL --task`.",
            sys.stderr,
        )
    else:
        print_rows(rows, ["TASK", "TOOL", "STATUS", "STARTED", "MESSAGE"])


def _show(task: Task, *, as_json: bool) -> int:
    if task.over and not as_json:
        return print_result(task.outcome(), as_json=False)
    if as_json:
        print_json(_plain(task))
    else:
        print_text(f"{task.status}: {task.status_message}" if task.status_message else task.status)
    return FAILED if task.status in ("failed", "cancelled") else 0


def _plain(task: Task) -> Any:
    return msgspec.json.decode(msgspec.json.encode(task))
