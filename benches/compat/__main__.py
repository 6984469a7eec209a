"""`make compat`: published servers for the official SDK 1.x start on the compatibility layer, and reply."""

import asyncio
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from millstream import Client
from millstream._protocol.revisions import NEWEST

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WAIT = 60.0


def with_folder(values: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return values with the name of the folder for ``{folder}``."""
    return {name: value.format(folder=folder) if isinstance(value, str) else value for name, value in values.items()}


async def check(server: dict[str, Any], python: Path) -> str:
    """Start a server, list its tools, and call one. Return a line about it.

    Raises:
        AssertionError: The reply isn't the expected one.
    """
    with tempfile.TemporaryDirectory() as folder:
        start = {
            "command": str(python),
            "args": ["-m", "benches.compat.served", server["entry"], *server.get("arguments", ())],
            "env": {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", **with_folder(server.get("environment", {}), folder)},
            "cwd": folder,
        }
        async with Client({"mcpServers": {server["package"]: start}}, timeout=WAIT) as client:
            # The SDK that the servers were written for doesn't know this revision.
            assert client.revision == NEWEST.date, f"{client.revision}: the server doesn't use the compatibility layer"
            listed = await client.request("tools/list", {})
            call = server["call"]
            arguments = with_folder(call["arguments"], folder)
            result = await client.request("tools/call", {"name": call["tool"], "arguments": arguments})
    text = msgspec.json.encode(result["content"]).decode()
    assert not result.get("isError"), text
    assert call["expect"].lower() in text.lower(), text
    return f"{len(listed['tools'])} tools; {call['tool']} replies"


async def main(python: Path) -> int:
    """Print a line for each server, and return how many failed."""
    failed = 0
    for server in tomllib.loads((HERE / "servers.toml").read_text("utf-8"))["server"]:
        try:
            line = await check(server, python)
        except Exception as error:  # try the others, too
            failed += 1
            line = f"FAILED: {type(error).__name__}: {error}"
        print(f"  {server['package']:32} {line[:300]}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(asyncio.run(main(ROOT / ".venv-compat" / "bin" / "python")))
