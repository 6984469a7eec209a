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
async def test_arguments_as_json_text_are_asked_about(sdk: str) -> None:
    """Servers of the official SDK decode text for a parameter that isn't text."""
    front = make_front(sdk)
    for revision in "2025-11-25", "2026-07-28":
        async with asyncio.timeout(WAIT), Client(front, revision=revision) as client:
            for environments in ['["production"]', ' ["\\u0070roduction"]']:
                with pytest.raises((ServerError, ToolFailed), match="approve"):
                    await client.call("u_deploy", environments=environments)
            for target in ['{"name": "production"}', '{"name": "\\u0070roduction"}']:
                with pytest.raises((ServerError, ToolFailed), match="approve"):
                    await client.call("u_restart", target=target)


@pytest.mark.parametrize("sdk", SDKS)
async def test_other_spellings_of_true_are_asked_about(sdk: str) -> None:
    """Servers that use pydantic take these for a boolean."""
    front = make_front(sdk)
    for revision in "2025-11-25", "2026-07-28":
        async with asyncio.timeout(WAIT), Client(front, revision=revision) as client:
            for force in [1, 1.0, "1", "yes", "on", "t", "y"]:
                with pytest.raises((ServerError, ToolFailed), match="approve"):
                    await client.call("u_delete", force=force)


@pytest.mark.parametrize("sdk", SDKS)
async def test_null_as_json_text_is_asked_about(sdk: str) -> None:
    """Like a missing argument, it stands for the tool's default."""
    front = make_front(sdk)
    for revision in "2025-11-25", "2026-07-28":
        async with asyncio.timeout(WAIT), Client(front, revision=revision) as client:
            for environment in ["null", " null "]:
                with pytest.raises((ServerError, ToolFailed), match="approve"):
                    await client.call("u_ship", environment=environment)
