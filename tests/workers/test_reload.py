import json
import os
import py_compile
import signal
from collections import Counter
from pathlib import Path

import pytest

from workers_world import PROGRAM, Client, Load, call, kill, pids_by_new_connections, run_workers, until_async

pytestmark = pytest.mark.server


async def test_reload_serves_changed_files_without_failures(tmp_path: Path) -> None:
    with run_workers(tmp_path, 1, "--reload") as served:
        load = Load(served.port, 4, [call("version"), call("slow", seconds=0.05)])
        for number in (2, 3):
            (tmp_path / "shop.py").write_text(PROGRAM.replace("VERSION = 1", f"VERSION = {number}"))
            await until_async(lambda n=number: served.count_lines("The new version is serving") == n - 1)  # type: ignore[misc]
            client = Client(served.port)
            assert (await client.request(call("version"))).value == number
            await client.close()
        await load.stop()
        assert load.failures == Counter()


async def test_reload_notices_changed_modules(tmp_path: Path) -> None:
    (tmp_path / "prices.py").write_text("VERSION = 7\n")
    program = PROGRAM.replace("VERSION = 1", "from prices import VERSION")
    with run_workers(tmp_path, 1, "--reload", program=program) as served:
        (tmp_path / "prices.py").write_text("VERSION = 8\n")
        served.wait_for_line("The new version is serving")
        client = Client(served.port)
        assert (await client.request(call("version"))).value == 8
        await client.close()


async def test_stale_bytecode_is_not_used(tmp_path: Path) -> None:
    edit(tmp_path / "prices.py", "PRICE = 1\n")
    py_compile.compile(str(tmp_path / "prices.py"))
    edit(tmp_path / "prices.py", "PRICE = 2\n")
    program = PROGRAM.replace("VERSION = 1", "from prices import PRICE\nVERSION = 10 + PRICE")
    with run_workers(tmp_path, 1, "--reload", program=program) as served:
        client = Client(served.port)
        assert (await client.request(call("version"))).value == 12
        await client.close()
        py_compile.compile(str(tmp_path / "shop.py"))
        edit(tmp_path / "shop.py", program.replace("10", "20"))
        served.wait_for_line("The new version is serving")
        client = Client(served.port)
        assert (await client.request(call("version"))).value == 22
        await client.close()


def edit(path: Path, text: str) -> None:
    """Write a file in the second in which it was written before."""
    second = path.stat().st_mtime_ns // 10**9 if path.exists() else 1_700_000_000
    path.write_text(text)
    os.utime(path, ns=(second * 10**9, second * 10**9))


async def test_broken_edits_keep_the_previous_version(tmp_path: Path) -> None:
    with run_workers(tmp_path, 1, "--reload") as served:
        load = Load(served.port, 2, [call("version")])
        (tmp_path / "shop.py").write_text(PROGRAM + "\nthis is no Python\n")
        served.wait_for_line("keep serving")
        assert [each for each in served.records if "SyntaxError" in each["message"]]
        assert [each for each in served.records if "this is no Python" in each.get("detail", "")]
        assert set(await pids_by_new_connections(served.port, 3)) == set(served.pids)
        (tmp_path / "shop.py").write_text(PROGRAM.replace("VERSION = 1", "VERSION = 2"))
        served.wait_for_line("The new version is serving")
        client = Client(served.port)
        assert (await client.request(call("version"))).value == 2
        await client.close()
        await load.stop()
        assert load.failures == Counter()


async def test_failed_restarts_keep_all_workers(tmp_path: Path) -> None:
    with run_workers(tmp_path, 2) as served:
        (tmp_path / "broken").touch()
        served.process.send_signal(signal.SIGHUP)
        served.wait_for_line("keep serving")
        found = await pids_by_new_connections(served.port, 60)
        assert set(found) == set(served.pids)
        (tmp_path / "broken").unlink()
        served.process.send_signal(signal.SIGHUP)
        served.wait_for_line("The new version is serving")
        assert not set(await pids_by_new_connections(served.port, 60)) & set(served.pids)


async def test_restart_ends_a_crash_loop(tmp_path: Path) -> None:
    with run_workers(tmp_path, 2) as served:
        (tmp_path / "broken").touch()
        kill(served.pids[0])
        served.wait_for_line("starting another in 1 s")
        (tmp_path / "broken").unlink()
        served.process.send_signal(signal.SIGHUP)
        served.wait_for_line("The new version is serving")
        found = await pids_by_new_connections(served.port, 60)
        assert len(found) == 2
        assert not set(found) & set(served.pids)


async def test_restart_replaces_a_worker_that_is_starting(tmp_path: Path) -> None:
    program = PROGRAM.replace(
        "    yield\n", "    while (HERE / 'waits').exists():\n        await asyncio.sleep(0.01)\n    yield\n"
    )
    with run_workers(tmp_path, 2, program=program) as served:
        (tmp_path / "waits").touch()
        before = served.children()
        kill(served.pids[0])
        await until_async(lambda: len(set(served.children()) - set(before)) == 1)
        served.process.send_signal(signal.SIGHUP)
        served.wait_for_line("Restarting all workers")
        (tmp_path / "waits").unlink()
        served.wait_for_line("The new version is serving")
        client = Client(served.port)
        told = []
        while len(told) != 2 or {worker["state"] for worker in told} != {"ready"}:
            told = json.loads((await client.request(path="/health")).body)["workers"]
        assert {worker["pid"] for worker in told} == set(served.children())
        await client.close()
