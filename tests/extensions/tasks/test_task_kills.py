import asyncio
import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from extensions.tasks.tasks_world import TaskClient
from wire import Json, request
from workers_world import Client, run_workers, until_async

pytestmark = pytest.mark.server
PROGRAM = """
import asyncio, os
from pathlib import Path
from millstream import Server

HERE = Path(__file__).parent
mcp = Server("shop")


def note(name, *words):
    with (HERE / name).open("a") as file:
        file.write(" ".join(map(str, words)) + "\\n")


async def work(number):
    note("began", os.getpid(), number)
    while not (HERE / "go").exists():
        await asyncio.sleep(0.05)
    note("ended", os.getpid(), number)
    return number


@mcp.tool(task="required")
async def once(number: int) -> int:
    return await work(number)


@mcp.tool(task="required", task_retry=True)
async def again(number: int) -> int:
    return await work(number)
"""


def client_on(port: int) -> TaskClient:
    """Return a client whose requests reach any worker, each on a separate connection."""

    async def ask(method: str, params: Json, fields: dict[str, str]) -> Json:
        while True:
            client = Client(port)
            try:
                reply = await client.request(json.dumps(request(method, params)).encode(), headers=fields)
                return dict(json.loads(reply.body))
            except (OSError, EOFError):
                if method == "tools/call":  # the call may have begun
                    raise
            finally:
                await client.close()

    return TaskClient(ask)


def read_notes(folder: Path, name: str) -> list[tuple[int, int]]:
    """Return the process id and number in each line of a file."""
    file = folder / name
    return (
        [(int(pid), int(number)) for pid, number in map(str.split, file.read_text().splitlines())]
        if file.exists()
        else []
    )


async def kill_workers(folder: Path, tasks: int, kills: int, count: int = 3) -> None:
    """Start both kinds of tasks, kill workers, and check the outcome of each task."""
    environment = {**os.environ, "MILLSTREAM_MAX_TASKS_PER_CALLER": "5000"}
    with run_workers(folder, count, program=PROGRAM, env=environment) as served:
        client = client_on(served.port)
        limit = asyncio.Semaphore(20)

        async def call(number: int) -> str:
            async with limit:
                return str((await client.call("again" if number % 2 else "once", number=number))["taskId"])

        ids = await asyncio.gather(*map(call, range(tasks)))
        await until_async(lambda: {number for _, number in read_notes(folder, "began")} == set(range(tasks)))
        killed: set[int] = set()
        for _ in range(kills):
            victim = next(pid for pid, _ in read_notes(folder, "began") if pid not in killed)
            killed.add(victim)
            lost = {number for pid, number in read_notes(folder, "began") if pid == victim and number % 2}
            os.kill(victim, signal.SIGKILL)
            await until_async(
                lambda lost=lost: lost <= {number for pid, number in read_notes(folder, "began") if pid not in killed}
            )
        (folder / "go").touch()

        async def end(task_id: str) -> Json:
            async with limit:
                return await client.wait_for_end(task_id)

        ends = await asyncio.gather(*map(end, ids))
        began = Counter(number for _, number in read_notes(folder, "began"))
        ended = Counter(number for _, number in read_notes(folder, "ended"))
        first = {number: pid for pid, number in reversed(read_notes(folder, "began"))}
        for number, task in enumerate(ends):
            lost_worker = first[number] in killed
            if number % 2:
                assert (task["status"], ended[number]) == ("completed", 1), (number, task)
            else:
                assert began[number] == 1, number
                assert task["status"] == ("failed" if lost_worker else "completed"), (number, task)
        assert any(first[number] in killed for number in range(0, tasks, 2))


async def test_tasks_fail_or_restart_when_their_worker_is_killed(tmp_path: Path) -> None:
    await kill_workers(tmp_path, tasks=40, kills=1)


@pytest.mark.nightly
async def test_a_thousand_tasks_survive_two_killed_workers(tmp_path: Path) -> None:
    await kill_workers(tmp_path, tasks=1_000, kills=2, count=4)
