import sys
from pathlib import Path

import pytest

from millstream import Client
from millstream.client import ConnectionLost, Options

pytestmark = pytest.mark.server
FILE = """
import logging, sys
from millstream import Server

mcp = Server("noisy")


@mcp.tool
def fail() -> int:
    \"\"\"Fail.\"\"\"
    print("printed")
    sys.stderr.write("without an end")
    return 1 // 0
"""


async def _said(path: Path, **chosen: object) -> None:
    async with Client(str(path), options=Options(**chosen)) as client:  # type: ignore[arg-type]
        await client.request("tools/call", {"name": "fail", "arguments": {}})


async def test_stderr_of_started_servers_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "noisy.py"
    path.write_text(FILE, "utf-8")
    await _said(path)
    out, err = capsys.readouterr()
    assert out == ""
    assert "printed\n" in err
    assert "    return 1 // 0\n" in err
    assert "ZeroDivisionError" in err
    assert err.startswith("{") is False  # lines for people, although it's a pipe

    lines: list[str] = []
    await _said(path, stderr=lines.append)
    assert lines[0] == "printed"
    await _said(path, stderr=False)
    assert capsys.readouterr() == ("", "")


async def test_server_stderr_cannot_control_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "odd.py"
    path.write_text("import sys\nsys.stderr.write('\\x1b[2Jgone')\nsys.stderr.flush()\nsys.exit(3)\n", "utf-8")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(Exception, match="code 3"):
        await _said(path)
    assert "\ufffd[2Jgone\n" in capsys.readouterr().err


CHUNKS = """
import sys, time
key = "k3y-of-the-operator"
line = ("filler " * 700) + "key=" + key + " " + ("more " * 300) + key
for at in range(0, len(line), 997):
    sys.stderr.write(line[at : at + 997])
    sys.stderr.flush()
sys.stderr.write("\\n-----BEGIN PRIVATE KEY-----\\nMC4CAQAwBQYDK2VwBCIEIA\\n-----END PRIVATE KEY-----\\n")
sys.stderr.write("RuntimeError: " + key)
sys.exit(3)
"""


async def test_credentials_in_any_part_of_a_long_output_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_text(CHUNKS, "utf-8")
    lines: list[str] = []
    pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA\n-----END PRIVATE KEY-----"
    options = Options(env={"SHOP_KEY": "k3y-of-the-operator", "SIGNING_KEY": pem}, stderr=lines.append)
    with pytest.raises(ConnectionLost, match=r"RuntimeError: \[redacted\]"):
        async with Client([sys.executable, str(path)], options=options):
            pass
    shown = "\n".join(lines)
    assert shown.count("[redacted]") >= 3
    for part in ("k3y-of", "operator", "MC4CAQ"):
        assert part not in shown
    assert shown.count("filler") in (700, 1400)  # it may be started again, and then its lines may end elsewhere
