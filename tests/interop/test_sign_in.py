"""Both lines of the official TypeScript SDK sign in at a server that gives out its own tokens."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from millstream.auth.issuing.user_file import UserFile
from patience import WAIT
from processes import NODE, ROOT, free_port, millstream, serving

pytestmark = pytest.mark.server

HERE = Path(__file__).resolve().parent
LINES = {"1": ROOT / "tests" / "conformance", "2": HERE}
"""Line -> the folder that it is installed in."""


@pytest.mark.parametrize("line", LINES)
def test_the_typescript_client_registers_signs_in_and_refreshes(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The person is asked once; a token that is not valid any more is renewed without them."""
    UserFile(tmp_path / "users.json").add("ada", "correct horse", (), time.time())
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("SHOP_URL", url)
    monkeypatch.setenv("SHOP_USERS", str(tmp_path / "users.json"))
    with serving(millstream("examples/sign_in.py", port), port, tmp_path / "log"):
        command = [NODE, str(HERE / "sign_in.mjs"), str(LINES[line]), line, url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"first": "Hello, ada!", "second": "Hello, ada!", "visits": 1, "rotated": True}
