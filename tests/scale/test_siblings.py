import http.client
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from secrets import token_hex
from time import monotonic

import pytest

from fleet import until
from millstream._app.parts.operations import HEARD, SiblingWatch
from patience import WAIT
from processes import ROOT, free_port, run_server, uvicorn_command

PROGRAM = """
from millstream import Server

mcp = Server("shop", serve="hub")
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
    stack: ExitStack, folder: Path, workers: int, *, gunicorn: bool = False, **environment: str
) -> tuple[int, Path]:
    """A program under so many workers of a server: the port and the log."""
    (folder / "sibling_shop.py").write_text(PROGRAM, "utf-8")
    port, log = free_port(), folder / f"log{workers}"
    command = uvicorn_command("sibling_shop:mcp", port, "--workers", str(workers), "--app-dir", str(folder))
    if gunicorn:
        where = ("-b", f"127.0.0.1:{port}", "--chdir", str(folder))
        worker = ("-w", str(workers), "-k", "uvicorn.workers.UvicornWorker")
        command = [sys.executable, "-m", "gunicorn", *worker, *where, "sibling_shop:mcp"]
    stack.enter_context(run_server(command, port, log, PYTHONPATH=str(ROOT / "src"), **environment))
    return port, log


@pytest.mark.server
@pytest.mark.parametrize("gunicorn", [False, True], ids=["uvicorn", "gunicorn"])
def test_sibling_processes_without_a_shared_store_are_reported(tmp_path: Path, gunicorn: bool) -> None:
    with ExitStack() as stack:
        port, log = started(stack, tmp_path, 2, gunicorn=gunicorn)
        deadline = monotonic() + WAIT
        answers: set[tuple[int, bytes]] = set()
        while not any(body.startswith(b"degraded: several processes") for _, body in answers):
            assert monotonic() < deadline, (answers, log.read_text("utf-8"))
            answers.add(ready(port))
        assert {status for status, _ in answers} == {200}
        assert "Several processes serve 'shop'" in log.read_text("utf-8")
        firsts: set[str] = set()
        while not any("Calls handled by the server's other processes" in first for first in firsts):
            assert monotonic() < deadline, firsts
            firsts.add(first_event(port))


async def test_siblings_are_detected_and_forgotten() -> None:
    found: list[str] = []
    now = [100.0]
    name = f"\0millstream-test-{token_hex(8)}"
    first, second = (SiblingWatch(name, lambda: found.append("sibling"), clock=lambda: now[0]) for _ in range(2))
    first.look(now[0])
    second.look(now[0])
    assert (first.reason(), second.reason(), found) == ("", "", [])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.sendto(b"sibling", name)
        await until(lambda: bool(found))
        assert first.reason().startswith("several processes")
    now[0] += HEARD
    assert first.reason() == ""
    first.close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(name)
        second.look(now[0])
        assert second.reason().startswith("several processes")
        assert other.recv(64) == b"sibling"
    now[0] += HEARD
    second.look(now[0])
    assert second.reason() == ""
    second.close()
