"""Official clients sign in at every address of MCP, where they're told that address (RFC 9728 §3.3)."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from auth.issuing.test_sign_in_end_to_end import serving
from patience import WAIT
from processes import NODE, ROOT

pytestmark = pytest.mark.server

HERE = Path(__file__).resolve().parent
CLIENTS = {
    "python-1": [str(ROOT / ".venv-mcp1" / "bin" / "python"), str(HERE / "sign_in_at.py")],
    "python-2": [sys.executable, str(HERE / "sign_in_at.py")],
    "typescript-1": [NODE, str(HERE / "sign_in_at.mjs"), str(ROOT / "tests" / "conformance"), "1"],
    "typescript-2": [NODE, str(HERE / "sign_in_at.mjs"), str(HERE), "2"],
}


async def signed_in(client: str, origin: str, path: str) -> Any:
    """Run a client's program, and return its output."""
    program = await asyncio.create_subprocess_exec(
        *CLIENTS[client], origin, path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(WAIT):
        out, errors = await program.communicate()
    assert program.returncode == 0, errors.decode()
    return json.loads(out)


@pytest.mark.parametrize("client", CLIENTS)
async def test_official_clients_sign_in_at_each_address(client: str) -> None:
    async with serving(scopes=["shop:use"]) as url:
        for path in ("/sse", "/mcp", "/mcp/"):
            found = await signed_in(client, url, path)
            assert found["said"] == "ada shop:use", path
            assert found["resource"] in (url + path, f"{url}/mcp"), path
