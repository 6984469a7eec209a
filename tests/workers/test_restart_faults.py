"""What may go wrong while all workers are being replaced: one dies meanwhile, or the new program doesn't come up."""

import asyncio
import json
import signal
from pathlib import Path

import pytest

from patience import WAIT
from workers_world import PROGRAM, Client, Served, call, kill, until_async, workers

pytestmark = pytest.mark.server

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


def hold(folder: Path, number: int) -> Path:
    """The process with this number waits until the file is gone."""
    (file := folder / f"hold {number}").touch()
    return file


async def begun(folder: Path, number: int) -> int:
    """The process with this number, once it starts."""
    file = folder / f"began {number}"
    await until_async(lambda: file.exists() and file.read_text() != "")
    return int(file.read_text())


async def until_two_serve(served: Served) -> None:
    """Wait until each place has one process, which serves, and there's no other."""
    async with asyncio.timeout(WAIT):
        while True:
            told = await seats(served)
            well = [(seat["worker"], seat["state"]) for seat in told] == [(1, "ready"), (2, "ready")]
            if well and {seat["pid"] for seat in told} == set(served.children()):
                return
            await asyncio.sleep(0.05)


async def seats(served: Served) -> list[dict[str, object]]:
    """The workers, as one of them tells."""
    client = Client(served.port)
    found = json.loads((await client.request(path="/health")).body)["workers"]
    await client.close()
    return list(found)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_worker_that_ends_while_its_successor_starts_has_only_that_one(tmp_path: Path, number: int) -> None:
    """Fixed defect: another one followed, too, and from then on a place had two processes."""
    with workers(tmp_path, 2, program=HELD) as served:
        held = hold(tmp_path, 3)
        served.process.send_signal(signal.SIGHUP)
        await begun(tmp_path, 3)
        kill(served.pids[0], number)
        await until_async(lambda: served.pids[0] not in served.children())
        held.unlink()
        served.wait_until_said("Every worker is new")
        await until_two_serve(served)


async def test_a_successor_that_dies_before_it_has_taken_over_is_followed_by_another(tmp_path: Path) -> None:
    """The one that it was to replace goes all the same."""
    with workers(tmp_path, 2, program=HELD) as served:
        held = hold(tmp_path, 4)
        served.process.send_signal(signal.SIGHUP)
        successor = await begun(tmp_path, 3)
        await begun(tmp_path, 4)
        kill(successor)
        await until_async(lambda: successor not in served.children())
        held.unlink()
        served.wait_until_said("Every worker is new")
        await until_two_serve(served)


async def test_a_worker_that_is_replaced_before_its_turn_is_replaced_again_and_nobody_stays(tmp_path: Path) -> None:
    """Fixed defect: the one that a death had brought meanwhile served on beside its successor."""
    with workers(tmp_path, 2, program=HELD) as served:
        held = hold(tmp_path, 3)
        served.process.send_signal(signal.SIGHUP)
        await begun(tmp_path, 3)
        kill(served.pids[1])
        served.wait_until_said("is ready")
        held.unlink()
        served.wait_until_said("Every worker is new")
        await until_two_serve(served)


async def test_a_restart_that_fails_looks_for_nobody_a_second_time(tmp_path: Path) -> None:
    """Fixed defect: where somebody was being looked for already, two came in the end."""
    with workers(tmp_path, 2) as served:
        (tmp_path / "broken").touch()
        kill(served.pids[1])
        served.wait_until_said("starting another in 1 s")
        served.process.send_signal(signal.SIGHUP)
        served.wait_until_said("go on")
        (tmp_path / "broken").unlink()
        served.wait_until_said("is ready")
        assert [seat["worker"] for seat in await seats(served)] == [1, 2]
        assert served.said("is missing") == 0


async def test_a_version_that_hangs_at_its_start_gives_way_to_the_next(tmp_path: Path) -> None:
    """Fixed defect: the restart waited for it for ever, and whoever had mended the program saw no change."""
    with workers(tmp_path, 1, "--reload") as served:
        (tmp_path / "shop.py").write_text(PROGRAM + "\nimport time\n(HERE / 'hangs').touch()\ntime.sleep(86400)\n")
        await until_async((tmp_path / "hangs").exists)
        (tmp_path / "shop.py").write_text(PROGRAM.replace("VERSION = 1", "VERSION = 2"))
        served.wait_until_said("Every worker is new")
        client = Client(served.port)
        assert (await client.request(call("version"))).value == 2
        await client.close()
        await until_async(lambda: len(served.children()) == 1)
