"""The working directories of server processes, and the errors if they can't start."""

import sys
from pathlib import Path

import pytest

from client.misbehaving_servers import ReceivedRequest, misbehaving
from millstream.client import Client, ClientError, Options, TargetError
from patience import WAIT

PROGRAM = """
import os
from millstream import Server
mcp = Server("here")
@mcp.tool
def where() -> str:
    return os.getcwd()
mcp.run("stdio")
"""


@pytest.mark.server
async def test_home_folder_can_be_abbreviated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    options = Options(cwd="~/work")
    async with Client([sys.executable, "-c", PROGRAM], timeout=WAIT, options=options) as client:
        assert (await client.call("where")).text == str(tmp_path / "work")


async def test_error_shows_the_missing_folder(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(TargetError, match="missing, because there's no such folder"):
        async with Client([sys.executable, "-c", PROGRAM], timeout=WAIT, options=Options(cwd=missing)):
            pass


async def test_path_with_spaces_is_not_mistaken_for_a_command_line() -> None:
    for command, advice in (("/opt/Program Files/server", False), (f"{sys.executable} -m x", True)):
        with pytest.raises(TargetError) as caught:
            async with Client([command], timeout=WAIT):
                pass
        assert ("Separate its arguments" in str(caught.value)) is advice


async def test_error_shows_a_message_endpoint_on_another_server() -> None:
    async def behave(request: ReceivedRequest) -> None:
        if request.verb == "POST":
            await request.reply(b"", status="405 Method Not Allowed")
            return
        await request.stream()
        await request.chunk(b"event: endpoint\ndata: http://other.example.com/messages\n\n")

    async with misbehaving(behave) as server:
        with pytest.raises(ClientError, match="tells clients to send messages to another server"):
            async with Client(server.url, timeout=WAIT):
                pass
