"""Programs for the official SDK 1.x run beside any version of it, or none, by the command that `install` writes."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from millstream import Client
from patience import WAIT
from processes import ROOT

pytestmark = pytest.mark.server

PROGRAM = '''
from contextlib import asynccontextmanager

from mcp.server.fastmcp import Context, FastMCP
from mcp.server.fastmcp.prompts import base
from mcp.server.session import ServerSession
from mcp.shared.exceptions import McpError
from mcp.types import INVALID_PARAMS, ErrorData, TextContent


@asynccontextmanager
async def lifespan(server: FastMCP):
    yield {"factor": 10}


mcp = FastMCP("old", lifespan=lifespan, stateless_http=True)


@mcp.tool()
async def scale(number: int, ctx: Context) -> list[TextContent]:
    """Multiply a number."""
    assert isinstance(ctx.session, ServerSession)
    return [TextContent(type="text", text=str(number * ctx.request_context.lifespan_context["factor"]))]


@mcp.resource("number://{name}")
def read(name: str) -> str:
    """A number."""
    raise McpError(ErrorData(code=INVALID_PARAMS, message=f"no {name}"))


@mcp.prompt()
def ask(topic: str) -> list[base.Message]:
    """Ask about a topic."""
    return [base.UserMessage(f"About {topic}?")]
'''
ENDINGS = {"guarded": 'if __name__ == "__main__":\n    mcp.run()\n', "unguarded": 'mcp.run(transport="sse")\n'}
VERSIONS = {
    "none": [],
    "1.9.4": ["mcp==1.9.4", "pydantic<2.14"],
    "1.9.4 that can't be imported": ["mcp==1.9.4", "pydantic>=2.14"],
    "2.3.0": ["mcp==2.3.0"],
}


@pytest.fixture(scope="module", params=VERSIONS)
def millstream(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command in an environment with a version of the SDK."""
    folder = tmp_path_factory.mktemp("sdk") / "venv"
    uv = [sys.executable, "-m", "uv", "--quiet"]
    subprocess.run([*uv, "venv", "--no-project", "--python", sys.executable, folder], check=True, timeout=WAIT)
    install = [*uv, "pip", "install", "--python", folder / "bin" / "python", *VERSIONS[request.param]]
    subprocess.run([*install, "--editable", f"{ROOT}[pydantic]"], check=True, timeout=10 * WAIT)
    return folder / "bin" / "millstream"


def installed_entry(millstream: Path, file: Path) -> Any:
    """Return what `install` writes for an application."""
    printed = subprocess.run(
        [millstream, "install", file, "--client", "json"], capture_output=True, text=True, timeout=WAIT, check=True,
        env={**os.environ, "HOME": str(file.parent), "PYTHONDONTWRITEBYTECODE": ""},  # it keeps bytecode for the server
    ).stdout  # fmt: skip
    [entry] = json.loads(printed)["mcpServers"].values()
    return entry


@pytest.mark.parametrize("ending", ENDINGS)
async def test_installed_programs_serve_stdio(millstream: Path, ending: str, tmp_path: Path) -> None:
    file = tmp_path / "old.py"
    file.write_text(f"{PROGRAM}\n\n{ENDINGS[ending]}", "utf-8")
    entry = installed_entry(millstream, file)
    async with asyncio.timeout(WAIT), Client([entry["command"], *entry["args"]], timeout=WAIT) as client:
        assert client.server.name == "old"
        assert (await client.call("scale", number=4)).text == "40"
        assert "About tea?" in str((await client.prompt("ask", topic="tea")).messages)
        with pytest.raises(Exception, match="no seven"):
            await client.read("number://seven")
