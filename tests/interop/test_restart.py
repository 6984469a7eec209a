"""Official clients whose server restarts with the default store, which loses their sessions' records."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from asyncio.subprocess import PIPE
from contextlib import ExitStack
from pathlib import Path

import pytest

from patience import WAIT
from processes import NODE, ROOT, kill_with_parent, run_command
from workers_world import LAUNCHER

pytestmark = pytest.mark.server

HERE = Path(__file__).resolve().parent
CLIENTS = {
    "python-1": [str(ROOT / ".venv-mcp1" / "bin" / "python"), str(HERE / "restart_one.py")],
    "typescript-1": [NODE, str(HERE / "restart_ts.mjs"), str(ROOT / "tests" / "conformance")],
}
SECRET = "a key that the restarted server also has"


def start(listener: socket.socket) -> subprocess.Popen[bytes]:
    """Start the server on a socket that stays open, so that clients that reconnect early wait."""
    run = run_command(str(HERE / "restart_server.py"), listener.getsockname()[1])[1:]
    command = kill_with_parent([sys.executable, "-c", LAUNCHER, str(listener.fileno()), "listen", *run])
    environment = {**os.environ, "MILLSTREAM_SECRET_KEY": SECRET}
    return subprocess.Popen(command, env=environment, pass_fds=[listener.fileno()])


def stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@pytest.mark.parametrize("client", CLIENTS)
async def test_official_clients_hear_changes_after_a_restart(client: str) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server = start(listener)
        stack.callback(lambda: stop(server))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        peer = await asyncio.create_subprocess_exec(*CLIENTS[client], url, stdin=PIPE, stdout=PIPE)
        assert peer.stdin is not None
        assert peer.stdout is not None
        try:
            async with asyncio.timeout(WAIT):
                assert await peer.stdout.readline() == b"ready\n"
                stop(server)
                server = start(listener)
                peer.stdin.write(b"restarted\n")
                report = json.loads(await peer.stdout.readline())
        finally:
            if peer.returncode is None:
                peer.kill()
            await peer.wait()
    assert report == {
        "heard": ["notifications/resources/updated", "notifications/tools/list_changed"],
        "tools": ["bump", "grow", "extra"],
    }
