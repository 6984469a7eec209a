import sys
from pathlib import Path

import pytest

from millstream import Client
from millstream.client import Options

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
