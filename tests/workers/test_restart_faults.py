import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from patience import WAIT
from workers_world import PROGRAM, Client, Program, call, kill, run_workers, until_async

STARTS = 5
"""Starts that may fail one after another."""

pytestmark = [pytest.mark.server, pytest.mark.nightly]

WAITING = """
    number = 1
    while (HERE / f"began {number}").exists():
        number += 1
    (HERE / f"began {number}").write_text(str(os.getpid()))
    while (HERE / f"hold {number}").exists():
        await asyncio.sleep(0.01)
    yield
"""
HELD = PROGRAM.replace("    yield\n", WAITING.lstrip("\n"))
"""Its processes count themselves when they start. One whose number is held doesn't serve yet."""


def hold(folder: Path, number: int) -> None:
    """The process with this number waits until the file is gone."""
    (folder / f"hold {number}").touch()


async def begun(folder: Path, number: int) -> int:
    """The process with this number, once it starts."""
    file = folder / f"began {number}"
    await until_async(lambda: file.exists() and file.read_text() != "")
    return int(file.read_text())


async def until_two_serve(served: Program) -> None:
    """Wait until each place has one process, which serves, and there's no other."""
    async with asyncio.timeout(WAIT):
        while True:
            told = await worker_states(served)
            well = [(worker["worker"], worker["state"]) for worker in told] == [(1, "ready"), (2, "ready")]
            if well and {worker["pid"] for worker in told} == set(served.children()):
                return
            await asyncio.sleep(0.05)


async def worker_states(served: Program) -> list[dict[str, object]]:
    """The workers, as one of them tells."""
    client = Client(served.port)
    found = json.loads((await client.request(path="/health")).body)["workers"]
    await client.close()
    return list(found)


@pytest.fixture
def restarting(tmp_path: Path) -> Iterator[Program]:
    """Two workers, and a restart whose first new process, the third of all, doesn't serve before `hold 3` is gone."""
    with run_workers(tmp_path, 2, program=HELD) as served:
        hold(tmp_path, 3)
        served.process.send_signal(signal.SIGHUP)
        yield served


async def all_become_new(served: Program) -> None:
    """The restart comes to its end."""
    served.wait_for_line("The new version is serving")
    await until_two_serve(served)
    assert served.count_lines("The restart failed") == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_worker_exit_during_replacement_starts_no_second_successor(
    restarting: Program, tmp_path: Path, number: int
) -> None:
    await begun(tmp_path, 3)
    kill(restarting.pids[0], number)
    await until_async(lambda: restarting.pids[0] not in restarting.children())
    (tmp_path / "hold 3").unlink()
    await all_become_new(restarting)


async def test_failed_successors_are_replaced(restarting: Program, tmp_path: Path) -> None:
    kill(await begun(tmp_path, 3))
    await all_become_new(restarting)


async def test_successors_failing_before_all_are_ready_are_replaced(restarting: Program, tmp_path: Path) -> None:
    hold(tmp_path, 4)
    successor = await begun(tmp_path, 3)
    (tmp_path / "hold 3").unlink()
    await begun(tmp_path, 4)
    hold(tmp_path, 5)
    kill(successor)
    await until_async(lambda: successor not in restarting.children())
    (tmp_path / "hold 4").unlink()
    await begun(tmp_path, 5)
    assert set(restarting.pids) <= set(restarting.children()), "those that are to be replaced still serve"
    (tmp_path / "hold 5").unlink()
    await all_become_new(restarting)


async def test_repeatedly_killed_successors_keep_the_old_workers(restarting: Program, tmp_path: Path) -> None:
    for number in range(3, 3 + STARTS):
        hold(tmp_path, number + 1)
        kill(await begun(tmp_path, number))
    restarting.wait_for_line("The restart failed")
    assert set(restarting.pids) == set(restarting.children())


async def test_early_replacements_are_replaced_again(restarting: Program, tmp_path: Path) -> None:
    await begun(tmp_path, 3)
    kill(restarting.pids[1])
    restarting.wait_for_line("is ready")
    (tmp_path / "hold 3").unlink()
    await all_become_new(restarting)


async def test_failed_restarts_are_not_repeated(tmp_path: Path) -> None:
    with run_workers(tmp_path, 2) as served:
        (tmp_path / "broken").touch()
        kill(served.pids[1])
        served.wait_for_line("starting another in 1 s")
        served.process.send_signal(signal.SIGHUP)
        served.wait_for_line("keep serving")
        (tmp_path / "broken").unlink()
        served.wait_for_line("is ready")
        assert [worker["worker"] for worker in await worker_states(served)] == [1, 2]
        assert served.count_lines("is missing") == 0


async def test_hanging_version_is_replaced_by_the_next(tmp_path: Path) -> None:
    with run_workers(tmp_path, 1, "--reload") as served:
        (tmp_path / "shop.py").write_text(PROGRAM + "\nimport time\n(HERE / 'hangs').touch()\ntime.sleep(86400)\n")
        await until_async((tmp_path / "hangs").exists)
        (tmp_path / "shop.py").write_text(PROGRAM.replace("VERSION = 1", "VERSION = 2"))
        served.wait_for_line("The new version is serving")
        client = Client(served.port)
        assert (await client.request(call("version"))).value == 2
        await client.close()
        await until_async(lambda: len(served.children()) == 1)
