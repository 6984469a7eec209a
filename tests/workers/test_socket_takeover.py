import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from cases import for_each
from millstream._app.server_process.worker_process import SocketTakeover, WorkerState, stands_in
from patience import WAIT
from workers_world import PROGRAM, call, kill, pids_by_new_connections, run_workers

SLOW_TO_START = """
if (HERE / "held").exists():
    import time
    (HERE / "starting").touch()
    while (HERE / "held").exists():
        time.sleep(0.02)
"""


def worker_states(*states: str) -> list[WorkerState]:
    return [WorkerState(number, 100 + number, state, 0) for number, state in enumerate(states, 1)]


@for_each(
    ("states", "expected"),
    [
        (("ready", "ready", "ready"), [None, None, None]),
        (("ready", "starting", "ready"), [None, 3, None]),
        (("starting", "ready", "leaving"), [2, None, 2]),
        (("starting", "starting", "starting"), [None, None, None]),
        (("ready", "gone", "gone"), [None, 1, 1]),
    ],
)
def test_workers_agree_on_one_replacement(states: tuple[str, ...], expected: list[int | None]) -> None:
    assert [stands_in(place, worker_states(*states)) for place in (1, 2, 3)] == expected


async def test_socket_takeover_follows_messages() -> None:
    log: list[str] = []
    sockets = {2: [socket.socket()], 3: [socket.socket()]}

    async def accept(listener: socket.socket) -> Callable[[], None]:
        place = next(number for number, each in sockets.items() if listener in each)
        await asyncio.sleep(0)
        log.append(f"+{place}")
        return lambda: log.append(f"-{place}")

    standing = SocketTakeover(1, sockets)
    standing.look(worker_states("ready", "gone", "ready"))
    assert log == [], "it serves nobody yet"
    standing.begin(accept)
    standing.look(worker_states("ready", "gone", "gone"))
    standing.look(worker_states("ready", "ready", "gone"))
    for _ in range(9):
        await asyncio.sleep(0)
    assert log[-1:] == ["+3"]
    standing.look(worker_states("ready", "ready", "ready"))
    for _ in range(9):
        await asyncio.sleep(0)
    assert sorted(log) in (["+3", "-3"], ["+2", "+3", "-2", "-3"])
    standing.end()
    standing.look(worker_states("ready", "gone", "gone"))
    await asyncio.sleep(0)
    assert log[-1][0] == "-"
    standing.close()
    assert {each.fileno() for listeners in sockets.values() for each in listeners} == {-1}


@pytest.mark.server
@pytest.mark.skipif(os.name != "posix", reason="one process serves where sockets cannot be handed on")
async def test_connections_to_a_dead_worker_are_taken_over(tmp_path: Path) -> None:
    with run_workers(tmp_path, 3, program=PROGRAM + SLOW_TO_START) as served:
        (tmp_path / "held").touch()
        dead = served.pids[1]
        kill(dead)
        while not (tmp_path / "starting").exists():  # noqa: ASYNC110  another process makes it
            await asyncio.sleep(0.02)
        async with asyncio.timeout(WAIT):
            found = await pids_by_new_connections(served.port, 60)
        assert set(found) == set(served.pids) - {dead}
        (tmp_path / "held").unlink()
        served.wait_for_line("is ready")
        async with asyncio.timeout(WAIT):
            while len(await pids_by_new_connections(served.port, 30)) < 3:
                pass
        assert call("who")
