"""Official clients sign in at every MCP address, whose metadata contains that address (RFC 9728 §3.3), and our client
signs in at an official server.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from auth.issuing.test_sign_in_end_to_end import serving
from interop.person import visit
from millstream import Client
from millstream.client import MemoryTokenStore, OAuth, Options
from patience import WAIT
from processes import NODE, ROOT, free_port, run_server

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
        for path in ("/mcp/buyers", "/mcp/buyers/sse"):
            found = await signed_in(client, url, path)
            assert found["said"] == "ada orders:write shop:use", path
            assert found["resource"] in (url + path, f"{url}/mcp"), path


async def test_our_client_signs_in_at_an_official_server_that_gives_it_a_secret(tmp_path: Path) -> None:
    port = free_port()
    url, back = f"http://127.0.0.1:{port}/mcp", "http://127.0.0.1:8765/callback"
    visits: list[str] = []

    async def person(link: str) -> str:
        visits.append(link)
        return await asyncio.to_thread(visit, link, back)

    store = MemoryTokenStore()
    with run_server([sys.executable, str(HERE / "sdk_issuer.py"), str(port)], port, tmp_path / "log"):
        for _ in range(2):
            oauth = OAuth(store=store, redirect_handler=person, redirect_uri=back)
            async with Client(url, options=Options(auth=oauth)) as client:
                assert (await client.call("who")).text == "ada read"
    assert len(visits) == 1
