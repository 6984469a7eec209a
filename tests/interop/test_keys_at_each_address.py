"""Official clients and fastmcp use a key at every MCP address, also at that of a set."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

from http_peer import serve
from millstream import Context, Server, auth
from patience import WAIT
from processes import NODE, ROOT

pytestmark = pytest.mark.server

HERE = Path(__file__).resolve().parent
CLIENTS = {
    "python-1": [str(ROOT / ".venv-mcp1" / "bin" / "python"), str(HERE / "key_at.py")],
    "python-2": [sys.executable, str(HERE / "key_at.py")],
    "fastmcp": [str(ROOT / ".venv-foreign" / "bin" / "python"), str(HERE / "key_at.py")],
    "typescript-1": [NODE, str(HERE / "key_at.mjs"), str(ROOT / "tests" / "conformance"), "1"],
    "typescript-2": [NODE, str(HERE / "key_at.mjs"), str(HERE), "2"],
}
ROOT_KEY, ADA = "root-key-of-some-length", "ada-key-of-some-length"


def make_shop() -> Server:
    mcp = Server("shop", auth=auth.keys(ROOT_KEY, named_keys={"ada": (ADA, ["orders"])}))

    @mcp.tool
    async def who(ctx: Context) -> str:
        """Say who calls."""
        return "" if ctx.principal is None else ctx.principal.subject

    @mcp.tool
    def order() -> str:
        """Order a book."""
        return "ordered"

    mcp.add_set("/mcp/readers", allow=["who"])
    mcp.add_set("/staff", scopes=["orders"])
    return mcp


@pytest.mark.parametrize("client", CLIENTS)
async def test_clients_use_a_key_at_each_address(client: str) -> None:
    async with serve(make_shop()) as running:
        for path, name in {"/mcp": "", "/mcp/readers": "readers", "/staff": "staff"}.items():
            for each in (path, "/sse" if path == "/mcp" else f"{path}/sse"):
                program = await asyncio.create_subprocess_exec(
                    *CLIENTS[client], f"http://127.0.0.1:{running.port}{each}", ADA,
                    stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                )  # fmt: skip
                async with asyncio.timeout(WAIT):
                    out, errors = await program.communicate()
                assert program.returncode == 0, (each, errors.decode())
                found = json.loads(out)
                assert found["said"] == "ada", each
                assert found["tools"] == (["who"] if name == "readers" else ["who", "order"]), each
