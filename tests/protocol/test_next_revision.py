"""A fictitious revision after the newest one. `tests/support/sixth` adds it to a process's table of revisions.

`make next` runs many more tests with it.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from millstream.protocol import PER_REQUEST
from patience import WAIT
from processes import ROOT, TEST_PATH

SIXTH = str(ROOT / "tests" / "support" / "sixth")
FIND_WAY = """
import asyncio, json, sys
from test_usual_way import Wire, count_request, encode_headers, encode_request, make_server
from wire import envelope, per_request, routing

async def main(date):
    server = make_server()
    message = per_request("tools/call", {"name": "add", "arguments": {"a": 2, "b": 3}, "_meta": envelope(date)})
    headers = encode_headers({**routing("tools/call", "add"), "mcp-protocol-version": date})
    async with server.running():
        data = encode_request("POST", "/mcp", headers, json.dumps(message).encode())
        print("serve_exactly" in await count_request(server, data))

asyncio.run(main(sys.argv[1]))
"""
OLDER_SERVER = """
import json, os, sys

for line in sys.stdin:
    message = json.loads(line)
    meta = message["params"]["_meta"]
    version = meta["io.modelcontextprotocol/protocolVersion"]
    with open(sys.argv[1], "a", encoding="utf-8") as log:
        print(message["method"], version, file=log)
    reply = {"jsonrpc": "2.0", "id": message["id"]}
    if version != sys.argv[2]:
        data = {"supported": [sys.argv[2]], "requested": version}
        reply["error"] = {"code": -32022, "message": "Unsupported protocol version", "data": data}
    elif message["method"] == "server/discover":
        reply["result"] = {
            "resultType": "complete", "supportedVersions": [version], "capabilities": {"tools": {}},
            "ttlMs": 0, "cacheScope": "private",
        }
    elif message["method"] == "tools/list":
        reply["result"] = {"resultType": "complete", "tools": [], "ttlMs": 0, "cacheScope": "private"}
    else:
        os._exit(1)
    print(json.dumps(reply), flush=True)
"""
NEWER_CLIENT = """
import asyncio, contextlib, sys
from millstream import Client
from millstream.client import ClientError

async def main():
    async with asyncio.timeout(60), Client([sys.executable, *sys.argv[1:]]) as client:
        with contextlib.suppress(ClientError):
            await client.request("prompts/get", {"name": "x"})  # the server exits
        await client.tools(fresh=True)

asyncio.run(main())
"""


def run(program: str, *argv: str, sixth: bool) -> str:
    """Run a program, with or without the made-up revision in the table, and return what it prints."""
    path = os.pathsep.join([*([SIXTH] if sixth else []), TEST_PATH, *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", program, *argv],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=WAIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.server
async def test_calls_beside_and_of_a_new_revision_take_the_usual_way() -> None:
    programs = [(PER_REQUEST[0], False), (PER_REQUEST[0], True), ("2027-03-01", True)]
    found = [await asyncio.to_thread(run, FIND_WAY, date, sixth=sixth) for date, sixth in programs]
    assert set(found) == {"False\n"}


@pytest.mark.server
def test_newer_client_remembers_the_revision_of_an_older_server(tmp_path: Path) -> None:
    server, log = tmp_path / "server.py", tmp_path / "log"
    server.write_text(OLDER_SERVER, "utf-8")
    run(NEWER_CLIENT, str(server), str(log), PER_REQUEST[0], sixth=True)
    discovered = [line.split()[1] for line in log.read_text("utf-8").splitlines() if line.startswith("server/discover")]
    assert discovered == ["2027-03-01", PER_REQUEST[0], PER_REQUEST[0]]
