import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from patience import WAIT
from processes import free_port

pytestmark = pytest.mark.server
START = (sys.executable, "-c", "from millstream._cli import main; main()")
FILE = """
from millstream import Server

mcp = Server("shop")


@mcp.tool
async def order(copies: int) -> float:
    return 10 / copies
"""
CALL = """
import asyncio, sys
from millstream import Client


async def main():
    async with Client(sys.argv[1]) as client:
        print(await client.call("order", copies=5))
        print((await client.call("order", copies=0, raise_on_error=False)).content[0].text)


asyncio.run(main())
"""


@pytest.mark.parametrize(("color", "options"), [(True, ()), (False, ("--reload",))])
def test_dev_prints_messages_and_error_lines(tmp_path: Path, color: bool, options: tuple[str, ...]) -> None:
    (tmp_path / "shop.py").write_text(FILE, "utf-8")
    (tmp_path / "call.py").write_text(CALL, "utf-8")
    port, (end, terminal) = free_port(), pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environment |= {"MILLSTREAM_PORT": str(port)} | ({} if color else {"NO_COLOR": "1"})
    with subprocess.Popen(
        [*START, "run", "shop.py", "--dev", *options, "--log-level", "INFO"],
        cwd=tmp_path, env=environment, stderr=terminal, stdin=subprocess.DEVNULL,
    ) as server:  # fmt: skip
        os.close(terminal)
        try:
            said = _read_until(end, f":{port}/mcp")
            told = subprocess.run(
                [sys.executable, "call.py", f"http://127.0.0.1:{port}/mcp"],
                cwd=tmp_path, capture_output=True, text=True, timeout=WAIT, check=True,
            ).stdout  # fmt: skip
            said += _read_until(end, "server_error")
        finally:
            server.terminate()
            _read_until(end, "")
    assert "ZeroDivisionError" in told
    assert "return 10 / copies" in told
    plain = re.sub(r"\x1b\[[\d;]*m", "", said)
    assert re.search(r"^\d\d:\d\d:\d\d ok +tools/call order  [\d.]+ ms  \S", plain, re.MULTILINE)
    assert re.search(r"^\d\d:\d\d:\d\d server_error tools/call order  [\d.]+ ms  \S", plain, re.MULTILINE)
    assert re.search(r'File ".*shop.py", line \d+, in order', plain)
    assert "uvicorn" not in plain
    assert bool(re.search(r"\x1b\[32mok", said)) is color


def _read_until(end: int, text: str) -> str:
    said = ""
    try:
        while not text or text not in said:
            piece = os.read(end, 4096)
            if not piece:
                break
            said += piece.decode().replace("\r\n", "\n")
    except OSError:  # the other side is closed
        pass
    return said
