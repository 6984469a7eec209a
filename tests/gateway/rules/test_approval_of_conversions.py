"""Arguments that servers of the official SDK convert, and that a person has to approve in each form."""

import asyncio
import sys

import pytest

from millstream import Client, Server
from millstream.client import ServerError, ToolFailed
from millstream.gateway import ApprovalPolicy, ToolPolicy, UpstreamPolicy
from patience import WAIT
from processes import ROOT

pytestmark = pytest.mark.server

PYTHON_1 = str(ROOT / ".venv-mcp1" / "bin" / "python")
SDKS = {
    "python-1": [PYTHON_1, "-c", "from mcp.server.fastmcp import FastMCP as S"],
    "python-2": [sys.executable, "-c", "from mcp.server import MCPServer as S"],
}
PROGRAM = """
from pydantic import BaseModel

class Target(BaseModel):
    name: str

s = S("deployments")

@s.tool()
def deploy(environments: list[str]) -> str:
    return f"deployed {environments}"

@s.tool()
def restart(target: Target) -> str:
    return f"restarted {target.name}"

@s.tool()
def delete(force: bool) -> str:
    return f"deleted {force}"

@s.tool()
def ship(environment: str | None = None) -> str:
    return f"shipped to {environment or 'production'}"

s.run("stdio")
"""
ASKED = UpstreamPolicy(
    tools={
        "deploy": ToolPolicy(approve=ApprovalPolicy(arguments={"environments": "prod*"})),
        "restart": ToolPolicy(approve=ApprovalPolicy(arguments={"target": "prod*"})),
        "delete": ToolPolicy(approve=ApprovalPolicy(arguments={"force": "true"})),
        "ship": ToolPolicy(approve=ApprovalPolicy(arguments={"environment": "prod*"})),
    }
)


def make_front(sdk: str) -> Server:
    python, option, start = SDKS[sdk]
    front = Server("front")
    command = [python, option, start + PROGRAM]
    front.upstream("u", command, policy=ASKED, start_timeout=WAIT, timeout=WAIT)
    return front


@pytest.mark.parametrize("sdk", SDKS)
async def test_arguments_that_a_server_converts_are_asked_about(sdk: str) -> None:
    spellings = {
        # Servers of the official SDK decode text for a parameter that isn't text.
        "deploy": ("environments", ['["production"]', ' ["\\u0070roduction"]']),
        "restart": ("target", ['{"name": "production"}', '{"name": "\\u0070roduction"}']),
        # Servers that use pydantic take these for a boolean.
        "delete": ("force", [1, 1.0, "1", "yes", "on", "t", "y"]),
        # Like a missing argument, null stands for the tool's default.
        "ship": ("environment", ["null", " null "]),
    }
    front = make_front(sdk)
    for revision in "2025-11-25", "2026-07-28":
        async with asyncio.timeout(WAIT), Client(front, revision=revision) as client:
            for tool, (argument, values) in spellings.items():
                for value in values:
                    with pytest.raises((ServerError, ToolFailed), match="approve"):
                        await client.call(f"u_{tool}", {argument: value})
