import os
import subprocess
import sys
from pathlib import Path

import pytest

from patience import WAIT
from processes import ROOT, TEST_PATH, free_port, run_server

pytestmark = pytest.mark.server

OAUTH = ROOT / "examples" / "oauth"
MILLSTREAM = [sys.executable, "-c", "from millstream._cli import main; main()"]


def test_client_signs_in_and_steps_up(tmp_path: Path) -> None:
    users = tmp_path / "users.json"
    add = [*MILLSTREAM, "users", "add", "ada", "--scope", "myscope", "--scope", "myotherscope", "--file", str(users)]
    subprocess.run(add, input="correct horse\n", text=True, timeout=WAIT, check=True, capture_output=True)
    port = free_port()
    server = [sys.executable, str(OAUTH / "server.py"), "--port", str(port), "--users", str(users)]
    browser = f"{sys.executable} {ROOT / 'tests' / 'examples' / 'browser.py'} %s"
    env = {**os.environ, "BROWSER": browser, "PYTHONPATH": TEST_PATH, "HOME": str(tmp_path)}
    client = [sys.executable, str(OAUTH / "client.py"), f"http://127.0.0.1:{port}/mcp"]
    with run_server(server, port, tmp_path / "log"):
        done = subprocess.run(client, env=env, capture_output=True, text=True, timeout=WAIT, check=False)
        assert done.returncode == 0, done.stderr + (tmp_path / "log").read_text()
        env["BROWSER"] = "false %s"  # the tokens are kept
        again = subprocess.run(client, env=env, capture_output=True, text=True, timeout=WAIT, check=True)
    assert done.stdout.splitlines() == ["ada: myscope", "The cake is real.", "ada: myotherscope myscope"]
    assert again.stdout.splitlines()[-1] == "ada: myotherscope myscope"
