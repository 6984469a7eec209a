"""What may go wrong while all workers are being replaced: one dies meanwhile, or the new program doesn't come up."""

import json
import signal
from pathlib import Path

import pytest

from workers_world import PROGRAM, Client, Served, call, kill, until_async, workers

pytestmark = pytest.mark.server

WAITING = """
    (HERE / f"began {os.getpid()}").touch()
    while (HERE / "waits").exists():
        await asyncio.sleep(0.01)
    yield
"""
GATED = PROGRAM.replace("    yield\n", WAITING.lstrip("\n"))
"""Its workers don't serve as long as a file is there."""


async def seats(served: Served) -> list[dict[str, object]]:
    """The workers, as one of them tells."""
    client = Client(served.port)
    found = json.loads((await client.request(path="/health")).body)["workers"]
    await client.close()
    return list(found)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_worker_that_ends_while_its_successor_starts_has_only_that_one(tmp_path: Path, number: int) -> None:
    """Fixed defect: another one followed, too, and from then on a place had two processes."""
    with workers(tmp_path, 2, program=GATED) as served:
        before = served.children()
        (tmp_path / "waits").touch()
        served.process.send_signal(signal.SIGHUP)
        await until_async(
            lambda: any((tmp_path / f"began {pid}").exists() for pid in set(served.children()) - set(before))
        )
        kill(served.pids[0], number)
        await until_async(lambda: served.pids[0] not in served.children())
        (tmp_path / "waits").unlink()
        served.wait_until_said("Every worker is new")
        await until_async(lambda: not set(before) & set(served.children()))
        told = await seats(served)
        assert sorted(seat["worker"] for seat in told) == [1, 2]
        assert {seat["pid"] for seat in told} == set(served.children())


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
