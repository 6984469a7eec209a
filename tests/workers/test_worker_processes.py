import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from patience import WAIT
from processes import free_port, run_command
from workers_world import PROGRAM, Client, call, pids_by_new_connections, run_workers, start_program, until

pytestmark = pytest.mark.server

SCRIPT = """
import atexit, os, sys
from millstream import Server

print("imported as", __name__, file=sys.stderr, flush=True)
mcp = Server("shop")


@mcp.tool
async def who() -> int:
    return os.getpid()


def main():
    mcp.run(port=int(sys.argv[1]), workers=2)
    print("what follows", file=sys.stderr, flush=True)
    atexit.register(print, "left by the door", file=sys.stderr, flush=True)

"""
GUARDED = SCRIPT + 'if __name__ == "__main__":\n    main()\n'
PLAIN = SCRIPT + "main()\n"
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}


async def test_connections_are_spread_over_all_workers(tmp_path: Path) -> None:
    with run_workers(tmp_path, 3) as served:
        found = await pids_by_new_connections(served.port, 120)
        assert set(found) == set(served.pids)
        assert min(found.values()) >= 15


async def test_start_is_logged_once_and_parent_imports_no_user_code(tmp_path: Path) -> None:
    program = PROGRAM + "\nimport sys\nprint('imported', os.getpid(), file=sys.stderr, flush=True)\n"
    with run_workers(tmp_path, 2, program=program) as served:
        assert served.count_lines("is serving on") == 1
        assert len(served.pids) == 2
        imported = {int(line.split()[1]) for line in served.log.splitlines() if line.startswith("imported")}
        assert imported == set(served.pids)
        assert set(served.children()) == set(served.pids)


async def test_port_zero_is_shared_by_all_workers(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM)
    with start_program(run_command(str(tmp_path / "shop.py"), 0, "--workers", "2"), 0, tmp_path / "log") as served:
        (told,) = [record for record in served.records if "url" in record]
        port = int(told["url"].split(":")[2].split("/")[0])
        assert len(await pids_by_new_connections(port, 60)) == 2


async def test_sessions_work_on_every_worker_without_a_key_file(tmp_path: Path) -> None:
    with run_workers(tmp_path, 2, env={**os.environ, "XDG_STATE_HOME": "/dev/null"}) as served:
        first = Client(served.port)
        session = (await first.request(json.dumps(INITIALIZE).encode())).headers["mcp-session-id"]
        await first.close()
        answered = set[int]()
        while len(answered) < 2:
            client = Client(served.port)
            reply = await client.request(call("who"), headers={"mcp-session-id": session})
            await client.close()
            assert reply.status == 200
            answered.add(reply.value)
        assert served.count_lines("Set MILLSTREAM_SECRET_KEY") == 1


async def test_health_lists_every_worker(tmp_path: Path) -> None:
    with run_workers(tmp_path, 2) as served:
        client = Client(served.port)
        told = json.loads((await client.request(path="/health")).body)["workers"]
        await client.close()
        assert [(worker["worker"], worker["state"], worker["restarts"]) for worker in told] == [
            (1, "ready", 0),
            (2, "ready", 0),
        ]
        assert {worker["pid"] for worker in told} == set(served.pids)


async def test_log_lines_name_their_worker(tmp_path: Path) -> None:
    program = PROGRAM + (
        "\nimport logging\n\n@mcp.tool\nasync def notes() -> int:\n"
        "    logging.getLogger('shop').warning('noted')\n    return os.getpid()\n"
    )
    with run_workers(tmp_path, 2, program=program) as served:
        pids = served.pids
        wrote = set[tuple[int, int]]()
        while len(wrote) < 2:
            before = served.count_lines("noted")
            client = Client(served.port)
            pid = (await client.request(call("notes"))).value
            await client.close()
            served.wait_for_line("noted", before + 1)
            wrote.add(([each for each in served.records if each["message"] == "noted"][-1]["worker"], pid))
        assert {number for number, _ in wrote} == {1, 2}
        assert {pid for _, pid in wrote} == set(pids)


@pytest.mark.parametrize("source", [GUARDED, PLAIN], ids=["with a main guard", "without one"])
async def test_scripts_can_serve_with_several_workers(tmp_path: Path, source: str) -> None:
    file, port = tmp_path / "shop.py", free_port()
    file.write_text(source)
    with start_program([sys.executable, "shop.py", str(port)], port, tmp_path / "log", cwd=tmp_path) as served:
        assert set(await pids_by_new_connections(port, 60)) == set(served.pids)
        served.process.terminate()
        assert served.process.wait(WAIT) == 0
        assert served.log.count("imported as __main__") == 3
        assert served.log.count("what follows") == 1
        assert served.log.count("left by the door") == 1


async def test_scripts_that_change_directory_can_restart(tmp_path: Path) -> None:
    file, port = tmp_path / "shop.py", free_port()
    file.write_text("import os\nos.chdir('/')\n" + GUARDED)
    with start_program([sys.executable, "shop.py", str(port)], port, tmp_path / "log", cwd=tmp_path):
        assert len(await pids_by_new_connections(port, 60)) == 2


async def test_workers_serve_the_same_run_call_as_their_parent(tmp_path: Path) -> None:
    file, port = tmp_path / "shop.py", free_port()
    file.write_text(
        GUARDED.replace("def main():\n", "def main():\n    first.run(port=int(sys.argv[2]))\n").replace(
            'mcp = Server("shop")', 'mcp = Server("shop")\nfirst = Server("first")'
        )
    )
    command = [sys.executable, "shop.py", str(port), str(free_port())]
    with start_program(command, port, tmp_path / "log", cwd=tmp_path) as served:
        assert served.count_lines("first is serving") == 1
        served.process.terminate()  # ends the first
        served.wait_for_line("shop is serving")
        assert len(await pids_by_new_connections(port, 60)) == 2


def test_child_programs_of_workers_are_not_workers(tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text("from millstream import Server\nmcp = Server('other')\n")
    command = run_command(str(other), 0)
    program = f"import subprocess\nother = subprocess.Popen({command!r}, stdin=subprocess.DEVNULL)\n" + PROGRAM
    with run_workers(tmp_path, 1, "--reload", program=program) as served:
        for name in ("other", "shop"):  # either may be first
            served.wait_for_line(f"{name} is serving on")
        assert served.count_lines("shop is serving on") == 1
        for record in served.records:
            if "other is serving" in record["message"]:
                assert "workers" not in record
        subprocess.run(["pkill", "-P", str(served.pids[0])], check=True)


def test_two_servers_cannot_share_a_port(tmp_path: Path) -> None:
    with run_workers(tmp_path, 2) as served:
        command = run_command(str(tmp_path / "shop.py"), served.port, "--workers", "2")
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
        assert done.returncode == 1
        assert f"Port {served.port} on 127.0.0.1 is in use." in done.stderr


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (PROGRAM + "\nraise RuntimeError('no shop today')\n", "RuntimeError: no shop today"),
        (PROGRAM + "\nimport nosuchmodule\n", "nosuchmodule, which isn't installed"),
        (PROGRAM + "\nmcp.run()\n", "calls run() while it's being imported"),
        (PROGRAM + "\nos._exit(7)\n", "ended with status 7 before it was ready"),
    ],
    ids=["raises", "needs a module", "serves itself", "exits"],
)
def test_broken_programs_are_reported_once(tmp_path: Path, program: str, said: str) -> None:
    (tmp_path / "shop.py").write_text(program)
    command = run_command(str(tmp_path / "shop.py"), 0, "--workers", "3")
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
    assert done.returncode == 1
    assert done.stderr.count(said) == 1
    assert done.stderr.startswith("Error:")
    assert done.stderr.count("\nError:") == 0


def test_invalid_settings_are_reported_once(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM)
    command = run_command(str(tmp_path / "shop.py"), 0, "--workers", "3")
    environment = {**os.environ, "MILLSTREAM_KEEP_ALIVE": "long"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: MILLSTREAM_KEEP_ALIVE can't be 'long'.")
    assert done.stderr.count("KEEP_ALIVE") == 1


def test_failing_lifespans_are_reported_once(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM)
    (tmp_path / "broken").touch()
    command = run_command(str(tmp_path / "shop.py"), 0, "--workers", "3")
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
    assert done.returncode == 1
    assert done.stderr.count("shop couldn't start") == 1
    assert done.stderr.count("RuntimeError: the disk is full") == 1


def test_workers_share_a_socket_without_reuseport(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM)
    start = (
        "from millstream._app.server_process import worker_process; worker_process.SPREADS = False; "
        "from millstream._cli import main; main()"
    )
    port = free_port()
    command = [sys.executable, "-c", start, "run", str(tmp_path / "shop.py"), "--port", str(port), "--workers", "2"]
    with start_program(command, port, tmp_path / "log") as served:
        assert served.count_lines("All workers accept from one socket on this platform") == 1
        until(lambda: len(served.children()) == 2)
