import json
import signal
import subprocess
import sys
import urllib.request
from contextlib import ExitStack, suppress
from http.client import HTTPException
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from patience import WAIT
from processes import ROOT, free_port, run_server, uvicorn_command

pytestmark = pytest.mark.server


def call(port: int, mount: str, tool: str, **arguments: Any) -> str:
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{mount}/mcp", json.dumps(message).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=WAIT) as reply:  # noqa: S310 - our own server
        return json.loads(reply.read())["result"]["content"][0]["text"]


def test_two_servers_in_one_application_need_no_lifespan(tmp_path: Path) -> None:
    port = free_port()
    with run_server(uvicorn_command("examples.echo_math:app", port), port, tmp_path / "log"):
        assert call(port, "/echo", "echo", message="hi") == "Echo: hi"
        assert call(port, "/math", "add_two", n=40) == "42"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/docs", timeout=WAIT) as reply:
            assert reply.status == 200


def test_mounted_event_stream_reports_its_url(tmp_path: Path) -> None:
    port = free_port()
    with run_server(uvicorn_command("examples.echo_math:app", port), port, tmp_path / "log"):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/echo/sse", headers={"accept": "text/event-stream"})
        with urllib.request.urlopen(request, timeout=WAIT) as reply:  # noqa: S310 - our own server
            assert reply.readline().strip() == b"event: endpoint"
            assert b"/echo/messages/?session_id=" in reply.readline()


@pytest.mark.parametrize("target", ["examples.hub:mcp", "examples.echo_math:app"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_uvicorn_stops_while_streams_are_open(tmp_path: Path, target: str, number: signal.Signals) -> None:
    port = free_port()
    paths = ["/sse", "/events"] if target.endswith("mcp") else ["/echo/sse"]
    with ExitStack() as stack:
        process = stack.enter_context(run_server(uvicorn_command(target, port), port, tmp_path / "log"))
        streams = [
            stack.enter_context(urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=WAIT))
            for path in paths
        ]
        for stream in streams:
            stream.readline()
        process.send_signal(number)
        process.wait(WAIT)
        for stream in streams:
            stream.read()


def test_uvicorn_stops_although_clients_reconnect_at_once(tmp_path: Path) -> None:
    port = free_port()
    # A short interval, so that streams end while uvicorn still accepts connections.
    start = "import uvicorn, millstream._app.server_process.asgi_application as e; e.STOP_POLL = 0.01; uvicorn.main()"
    command = [sys.executable, "-c", start, *uvicorn_command("examples.hub:mcp", port)[3:]]
    with run_server(command, port, tmp_path / "log") as process:

        def listen(first: Event) -> None:
            with suppress(OSError, HTTPException):
                while True:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/events", timeout=WAIT) as stream:
                        first.set()
                        stream.read()

        events = [Event() for _ in range(4)]
        threads = [Thread(target=listen, args=(each,)) for each in events]
        for thread in threads:
            thread.start()
        assert all(each.wait(WAIT) for each in events)
        process.terminate()
        process.wait(WAIT)
        for thread in threads:
            thread.join(WAIT)


def test_application_can_be_tested_with_the_fastapi_client() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_echo_math.py"]
    done = subprocess.run(command, cwd=ROOT / "examples", capture_output=True, text=True, timeout=WAIT, check=False)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_server_runs_under_uvicorn(tmp_path: Path) -> None:
    port = free_port()
    with run_server(uvicorn_command("examples.hub:mcp", port), port, tmp_path / "log"):
        assert call(port, "", "add_numbers", a=1, b=1) == "2"
