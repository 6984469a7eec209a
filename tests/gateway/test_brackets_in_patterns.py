"""Patterns with brackets, which documents don't mention: only `*` and `?` are special there."""

import json
import sys
from pathlib import Path

import pytest

from millstream import Client, Server
from millstream._app.gateway_server import server_of_file
from millstream.gateway import UpstreamPolicy
from patience import WAIT


async def test_denied_uris_with_brackets_are_denied() -> None:
    notes = Server("notes")
    for uri in ("note://shelf/a[1]", "note://shelf/a1", "http://[::1]/plan"):
        notes.resource(uri, name="note")(lambda: "read")
    front = Server("front")
    policy = UpstreamPolicy(deny=("note://shelf/a[1]", "http://[::1]/*"))
    front.upstream("n", notes, prefix="", policy=policy, start_timeout=WAIT)
    async with Client(front) as client:
        assert [each.uri for each in await client.resources()] == ["note://shelf/a1"]


@pytest.mark.parametrize("name", ["drop[all]", "drop*", "drop?"])
@pytest.mark.parametrize("member", ["excludeTools", "disabledTools"])
async def test_tools_that_a_file_excludes_are_not_offered(member: str, name: str, tmp_path: Path) -> None:
    program = f"from millstream import Server\ns = Server('x')\ns.tool(lambda: '', name={name!r})\ns.run('stdio')"
    entry = {"command": sys.executable, "args": ["-W", "ignore", "-c", program], member: [name]}
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {"x": entry}}))
    async with Client(server_of_file(file, ""), timeout=WAIT) as client:
        assert [each.name for each in await client.tools()] == []
