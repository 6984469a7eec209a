import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from patience import WAIT
from processes import free_port, is_answering, run_command
from workers_world import (
    PROGRAM,
    Client,
    call,
    kill,
    pids_by_new_connections,
    run_workers,
    start_program,
    until,
    until_async,
    until_running,
    wait_until_refused,
)

pytestmark = pytest.mark.server


def alive(pid: int) -> bool:
    """A process is there, and not merely waiting to be counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_killed_workers_are_replaced_and_their_backlog_served(tmp_path: Path) -> None:
    with run_workers(tmp_path, 1, "--reload") as served:
        (first,) = served.pids
        stopper = Client(served.port)
        stopped = asyncio.create_task(stopper.request(call("stands_still")))
        await until_async(lambda: state(first) == "T")
        waiting = [Client(served.port) for _ in range(20)]
        calls = [asyncio.create_task(client.request(call("who"))) for client in waiting]
        await until_async(lambda: all(client.connections for client in waiting))  # in the queue of the kernel
        kill(first)
        answered = {reply.value for reply in await asyncio.gather(*calls)}
        assert len(answered) == 1
        assert first not in answered
        assert served.count_lines("was killed by SIGKILL; starting another") == 1
        with pytest.raises((OSError, EOFError)):
            await stopped
        for client in (*waiting, stopper):
            await client.close()


async def test_watchdog_replaces_stalled_workers(tmp_path: Path) -> None:
    environment = {**os.environ, "MILLSTREAM_WATCHDOG": "3"}
    with run_workers(tmp_path, 1, "--reload", env=environment) as served:
        (first,) = served.pids
        stopper = Client(served.port)
        stopped = asyncio.create_task(stopper.request(call("stands_still")))
        waiting = Client(served.port)
        await until_async(lambda: state(first) == "T")
        assert (await waiting.request(call("who"))).value != first
        assert served.count_lines("has been unresponsive for 3 s and will be killed") == 1
        assert served.count_lines("was killed by SIGKILL; starting another") == 1
        with pytest.raises((OSError, EOFError)):
            await stopped
        for client in (waiting, stopper):
            await client.close()


def health(port: int) -> dict[str, Any]:
    """Return the members of `/health`."""
    with urlopen(f"http://127.0.0.1:{port}/health") as reply:
        found: dict[str, Any] = json.load(reply)
        return found


async def test_crash_loops_back_off_while_others_serve(tmp_path: Path) -> None:
    with run_workers(tmp_path, 2) as served:
        first, second = served.pids
        (tmp_path / "broken").touch()
        kill(first)
        served.wait_for_line("starting another in 1 s")
        waits = [each["message"].rpartition("another")[2] for each in served.records if "another" in each["message"]]
        assert waits[:3] == ["", " in 0.5 s", " in 1 s"]
        assert set(await pids_by_new_connections(served.port, 60)) == {second}
        await until_async(lambda: health(served.port)["status"] == "degraded")
        (trouble,) = health(served.port)["troubles"]
        assert trouble["what"] == "Worker 1 doesn't stay up"
        (tmp_path / "broken").unlink()
        served.wait_for_line("is ready")
        (replaced,) = set(await pids_by_new_connections(served.port, 60)) - {second}
        await until_async(lambda: health(served.port)["status"] == "ok")
        count = served.count_lines("starting another")
        kill(replaced)
        await until_async(lambda: served.count_lines("starting another") > count)
        assert [each["message"] for each in served.records if "another" in each["message"]][-1].endswith("another")


async def test_worker_sigterm_drains_and_replaces_it(tmp_path: Path) -> None:
    with run_workers(tmp_path, 1, "--reload") as served:
        client = Client(served.port)
        running = asyncio.create_task(client.request(call("until_told")))
        await until_running(tmp_path)
        kill(served.pids[0], signal.SIGTERM)
        served.wait_for_line("was stopped; starting another")
        (tmp_path / "go").touch()
        reply = await running
        assert reply.value == "done"
        assert reply.closes
        assert set(await pids_by_new_connections(served.port, 3)) != set(served.pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_drain_all_workers(tmp_path: Path, number: int) -> None:
    with run_workers(tmp_path, 2) as served:
        busy, idle = [Client(served.port) for _ in range(6)], [Client(served.port) for _ in range(6)]
        for client in idle:
            await client.request(call("who"))
        running = [asyncio.create_task(client.request(call("until_told"))) for client in busy]
        await until_running(tmp_path, 6)  # a connection that no worker has accepted would be reset
        served.process.send_signal(number)
        await until_async(lambda: all(client.ended for client in idle))
        await wait_until_refused(served.port)
        (tmp_path / "go").touch()
        replies = await asyncio.gather(*running)
        assert [(reply.value, reply.closes) for reply in replies] == [("done", True)] * 6
        assert await asyncio.to_thread(served.process.wait, WAIT) == 0
        assert served.count_lines("Stopping") == 1
        assert "Traceback" not in served.log
        for client in idle:
            await client.close()


async def test_second_ctrl_c_ends_all_workers_immediately(tmp_path: Path) -> None:
    with run_workers(tmp_path, 2) as served:
        clients = [Client(served.port), Client(served.port)]
        cut = [asyncio.create_task(clients[0].request(call("slow", seconds=600)))]
        cut += [asyncio.create_task(clients[1].request(call("stands_still")))]
        await until_async(lambda: any(state(pid) == "T" for pid in served.pids))
        served.process.send_signal(signal.SIGINT)
        served.wait_for_line("Press Ctrl-C again")
        served.process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(served.process.wait, WAIT) == 130
        assert not any(alive(pid) for pid in served.pids)
        for each in await asyncio.gather(*cut, return_exceptions=True):
            assert isinstance(each, OSError | EOFError)
        for client in clients:
            await client.close()


def state(pid: int) -> str:
    """As `ps` shows it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_ctrl_c_in_a_terminal_finishes_calls(tmp_path: Path) -> None:
    with run_workers(tmp_path, 2, start_new_session=True) as served:
        client = Client(served.port)
        running = asyncio.create_task(client.request(call("until_told")))
        await until_running(tmp_path)
        for pid in served.pids:  # as if they were in the group, too
            kill(pid, signal.SIGINT)
        os.killpg(served.process.pid, signal.SIGINT)
        served.wait_for_line("Stopping")
        (tmp_path / "go").touch()
        assert (await running).value == "done"
        assert await asyncio.to_thread(served.process.wait, WAIT) == 0
        await client.close()


async def test_workers_exit_when_their_parent_is_killed(tmp_path: Path) -> None:
    with run_workers(tmp_path, 2) as served:
        client = Client(served.port)
        running = asyncio.create_task(client.request(call("until_told")))
        await until_running(tmp_path)
        pids = served.pids
        served.process.kill()
        served.process.wait(WAIT)
        await wait_until_refused(served.port)
        with socket.create_server(("127.0.0.1", served.port)):
            pass  # while the call still runs
        (tmp_path / "go").touch()
        assert (await running).value == "done"
        until(lambda: not any(alive(pid) for pid in pids))
        assert served.count_lines("The parent process has exited") == 2


def test_worker_hanging_at_startup_ends_with_its_parent(tmp_path: Path) -> None:
    with run_workers(tmp_path, 2) as served:
        (tmp_path / "shop.py").write_text(f"{PROGRAM}\n(HERE / 'hangs').touch()\nimport time\ntime.sleep(86400)\n")
        served.process.send_signal(signal.SIGHUP)
        until((tmp_path / "hangs").exists)
        pids = served.children()
        assert len(pids) == 3
        served.process.kill()
        served.process.wait(WAIT)
        until(lambda: not any(alive(pid) for pid in pids))
        with socket.create_server(("127.0.0.1", served.port)):
            pass


def test_stop_during_startup_ends_workers(tmp_path: Path) -> None:
    file, port = tmp_path / "shop.py", free_port()
    file.write_text(
        "import time\nfrom pathlib import Path\nPath(__file__).with_name('began').touch()\ntime.sleep(600)\n"
    )
    command = [sys.executable, "-c", "from millstream._cli import main; main()", "run", str(file), "--port", str(port)]
    with start_program([*command, "--workers", "2"], port, tmp_path / "log", ready=False) as served:
        until((tmp_path / "began").exists)
        pids = served.children()
        served.process.terminate()
        assert served.process.wait(WAIT) == 0
        assert not any(alive(pid) for pid in pids)
        assert "Error" not in served.log


def test_terminal_hangup_ends_the_workers(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM)
    ours, theirs = os.openpty()
    launcher = (
        "import fcntl, os, sys, termios\nos.setsid()\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    port = free_port()
    command = [sys.executable, "-c", launcher, *run_command(str(tmp_path / "shop.py"), port)]
    with start_program([*command, "--workers", "2"], port, tmp_path / "log", stdin=theirs) as served:
        os.close(theirs)
        served.process.send_signal(signal.SIGHUP)
        served.wait_for_line("The new version is serving")
        os.close(ours)
        assert served.process.wait(WAIT) == 0
        assert served.count_lines("Stopping") == 1


def test_workers_under_nohup_outlive_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM)
    port = free_port()
    command = ["nohup", *run_command(str(tmp_path / "shop.py"), port, "--workers", "2")]
    with start_program(command, port, tmp_path / "log") as served:
        served.process.send_signal(signal.SIGHUP)
        assert is_answering(port)
        assert not served.count_lines("Restarting all workers")
        assert set(served.children()) == set(served.pids)


@pytest.mark.parametrize(("times", "number"), [(2, "SIGKILL"), (99, "SIGKILL"), (1, "SIGSEGV")])
def test_worker_killed_during_its_first_start_is_replaced(tmp_path: Path, times: int, number: str) -> None:
    killed = f"""
    deaths = HERE / "deaths"
    count = len(deaths.read_text()) if deaths.exists() else 0
    if count < {times}:
        deaths.write_text("x" * (count + 1))
        os.kill(os.getpid(), signal.{number})
"""
    program = PROGRAM.replace("async def lifespan(server):\n", f"async def lifespan(server):{killed}")
    gives_up = times == 99 or number == "SIGSEGV"
    with run_workers(tmp_path, 1, "--reload", program=program, ready=False) as served:
        if gives_up:
            assert served.process.wait(WAIT) == 1
            assert f"Worker 1 was killed by {number} before it was ready" in served.log
        else:
            served.wait_for_line("is serving on")
    assert len((tmp_path / "deaths").read_text()) == (5 if times == 99 else times)
