import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from time import monotonic

import pytest

from millstream import Server
from patience import WAIT
from processes import ROOT, free_port, run_server, uvicorn_command

PROGRAM = """
import os

from millstream import Server

mcp = Server("shop", serve="all")


@mcp.tool
async def say(text: str) -> str:
    await mcp.hub.publish("news", text)
    return str(os.getpid())
"""
TWO_SERVERS = """
from fastapi import FastAPI
from millstream import Server

mcp = FastAPI()
for name in ("one", "two"):
    mcp.mount(f"/{name}", Server(name, serve="all"))
"""


def ready(port: int) -> tuple[int, bytes]:
    """What a load balancer gets."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
    try:
        connection.request("GET", "/readyz")
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def first_event(port: int) -> str:
    """The data of the first event on a client's stream."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
    try:
        connection.request("GET", "/mcp/sse/ada", headers={"Accept": "text/event-stream"})
        return next(line.decode() for line in connection.getresponse() if line.startswith(b"data: "))
    finally:
        connection.close()


def started(
    stack: ExitStack,
    folder: Path,
    workers: int,
    *,
    gunicorn: bool = False,
    program: str = PROGRAM,
    **environment: str,
) -> tuple[int, Path]:
    """A program under so many workers of a server: the port and the log."""
    (folder / "sibling_shop.py").write_text(program, "utf-8")
    port, log = free_port(), folder / f"log{workers}"
    command = uvicorn_command("sibling_shop:mcp", port, "--workers", str(workers), "--app-dir", str(folder))
    command += ["--timeout-worker-healthcheck", "60"]  # a busy machine's workers don't answer in 5 s, and are killed
    if gunicorn:
        where = ("-b", f"127.0.0.1:{port}", "--chdir", str(folder))
        worker = ("-w", str(workers), "-k", "uvicorn.workers.UvicornWorker")
        command = [sys.executable, "-m", "gunicorn", *worker, *where, "sibling_shop:mcp"]
    stack.enter_context(run_server(command, port, log, PYTHONPATH=str(ROOT / "src"), **environment))
    return port, log


@contextmanager
def short_folder() -> Generator[Path, None, None]:
    """A folder for temporary files, whose sockets have paths short enough for the system."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as name:
        yield Path(name)


def publish(port: int, text: str, prefix: str = "") -> None:
    """POST an event."""
    body = json.dumps({"channel": "news", "data": text})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
    connection.request("POST", f"{prefix}/publish", body, {"Content-Type": "application/json"})
    assert connection.getresponse().status == 200
    connection.close()


def listen(stack: ExitStack, port: int, prefix: str = "") -> Iterator[str]:
    """The data of a channel's events."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
    stack.callback(connection.close)
    connection.request("GET", f"{prefix}/events?channel=news")
    reply = connection.getresponse()
    return (line[len("data: ") :].decode().strip() for line in reply if line.startswith(b"data: "))


def say(port: int, text: str) -> str:
    """Call the tool that publishes, and return which process has."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
    connection.request("POST", "/tools/say", json.dumps({"text": text}), {"Content-Type": "application/json"})
    body = connection.getresponse().read().decode()
    connection.close()
    return "".join(filter(str.isdecimal, body))


def say_in_each_process(port: int, count: int) -> list[str]:
    """Publish until each of so many processes has. Return the texts."""
    texts: list[str] = []
    processes: set[str] = set()
    while len(processes) < count:
        texts.append(f"news {token_hex(4)}")
        processes.add(say(port, texts[-1]))
    return texts


def find_store(path: Path) -> int:
    """The process that keeps the store at a path."""
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(path).encode() in each.read_bytes().split(b"\0"):
                return int(each.parent.name)
    raise AssertionError(f"No process keeps {path}.")


@pytest.mark.server
@pytest.mark.parametrize("gunicorn", [False, True], ids=["uvicorn", "gunicorn"])
def test_sibling_processes_share_a_store_even_if_its_process_is_killed(tmp_path: Path, gunicorn: bool) -> None:
    with ExitStack() as stack:
        folder = stack.enter_context(short_folder())
        port, _ = started(stack, tmp_path, 2, gunicorn=gunicorn, TMPDIR=str(folder))
        listeners = [listen(stack, port) for _ in range(6)]
        texts = say_in_each_process(port, 2)
        assert [[next(each) for _ in texts] for each in listeners] == [texts] * 6
        (path,) = folder.glob("millstream-shared-*/*")
        os.kill(find_store(path), signal.SIGKILL)
        assert {next(each) for each in listeners} == {'{"reason":"lost"}'}
        texts = say_in_each_process(port, 2)
        for each in listeners:
            assert [next(each) for _ in texts] == texts
        assert ready(port) == (200, b"ok\n")


@pytest.mark.server
def test_servers_in_one_application_have_separate_stores(tmp_path: Path) -> None:
    with ExitStack() as stack:
        port, _ = started(stack, tmp_path, 2, program=TWO_SERVERS)
        one, two = (listen(stack, port, f"/{name}") for name in ("one", "two"))
        for text in ("first", "second"):
            publish(port, f"{text} for one", "/one")
            publish(port, f"{text} for two", "/two")
        assert [next(one), next(one)] == ["first for one", "second for one"]
        assert [next(two), next(two)] == ["first for two", "second for two"]


async def test_servers_without_clients_elsewhere_keep_their_own_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("millstream._stores.local.siblings.shared_socket", lambda: "1")
    one, two = Server("shop", serve="hub"), Server("shop", serve="hub")
    async with one.running(), two.running():
        await one.hub.publish("news", "for one")
        assert await two.hub.history("news") == []


@pytest.mark.server
def test_sibling_processes_that_cannot_share_a_store_are_reported(tmp_path: Path) -> None:
    with ExitStack() as stack:
        folder = stack.enter_context(short_folder())
        (folder / f"millstream-shared-{os.geteuid()}").write_text("not a folder", "utf-8")
        port, log = started(stack, tmp_path, 2, TMPDIR=str(folder))
        deadline = monotonic() + WAIT
        answers: set[tuple[int, bytes]] = set()
        while not any(body.startswith(b"degraded: the server's processes") for _, body in answers):
            assert monotonic() < deadline, (answers, log.read_text("utf-8"))
            answers.add(ready(port))
        assert {status for status, _ in answers} == {200}
        assert "The processes of 'shop' can't share a store" in log.read_text("utf-8")
        firsts: set[str] = set()
        while not any("Calls handled by the server's other processes" in first for first in firsts):
            assert monotonic() < deadline, firsts
            firsts.add(first_event(port))


@pytest.mark.server
def test_sibling_processes_start_even_if_the_store_process_cannot(tmp_path: Path) -> None:
    program = f"import sys\nsys.executable = {shutil.which('false')!r}\n{PROGRAM}"
    with ExitStack() as stack:
        port, log = started(stack, tmp_path, 2, program=program, TMPDIR=str(tmp_path))
        assert say(port, "hello")
        assert "can't share a store" in log.read_text("utf-8")


WORKER = "from millstream._stores.local.siblings import shared_socket; print(shared_socket())"
PARENT = f"""
import os, socket, subprocess, sys
with socket.socket() as own:
    own.bind(("127.0.0.1", 0))
    inherited = int(sys.argv[1])
    for passed in ([inherited, own.fileno()], [inherited]):
        subprocess.run([sys.executable, "-c", {WORKER!r}], pass_fds=passed, check=True)
    print(os.fstat(own.fileno()).st_ino)
"""


@pytest.mark.server
@pytest.mark.skipif(sys.platform != "linux", reason="stores are only shared on Linux")
def test_siblings_are_found_by_the_socket_of_their_server_rather_than_an_inherited_one() -> None:
    with socket.socket() as unrelated:
        unrelated.bind(("127.0.0.1", 0))
        number = unrelated.fileno()
        command = [sys.executable, "-c", PARENT, str(number)]
        done = subprocess.run(command, pass_fds=[number], capture_output=True, check=True, timeout=WAIT)
        both, alone, own = done.stdout.decode().split()
        assert both == own
        assert alone == str(os.fstat(number).st_ino)  # such as that of systemd


FORKED = """
import os, socket
from millstream._stores.local.siblings import shared_socket
with socket.socket() as own:
    own.bind(("127.0.0.1", 0))
    if not os.fork():
        os.setuid(65534)
        print(shared_socket() == str(os.fstat(own.fileno()).st_ino), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.server
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can change its user")
def test_siblings_are_found_after_a_change_of_user() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, check=True, timeout=WAIT)
    assert done.stdout == b"True\n"
