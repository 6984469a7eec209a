"""The second part of `make compat`: published servers start with the door in place and answer two requests."""

import asyncio
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


def servers() -> list[dict[str, Any]]:
    """What ``servers.toml`` says."""
    return tomllib.loads((HERE / "servers.toml").read_text("utf-8"))["server"]


def filled(values: dict[str, Any], folder: str) -> dict[str, Any]:
    """Values with the name of the folder in its place."""
    return {name: value.format(folder=folder) if isinstance(value, str) else value for name, value in values.items()}


async def answers(server: dict[str, Any], python: Path) -> str:
    """Start one, list its tools, call one of them. Gives what was seen.

    Raises:
        AssertionError: it answers something else.
    """
    with tempfile.TemporaryDirectory() as folder:
        start = {
            "command": str(python),
            "args": ["-m", "benches.compat.served", server["entry"], *server.get("arguments", ())],
            "env": {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", **filled(server.get("environment", {}), folder)},
            "cwd": folder,
        }
        async with Client({"mcpServers": {server["package"]: start}}, timeout=WAIT) as client:
            # The libraries that the servers were written for, of these versions, don't know this revision.
            assert client.revision == NEWEST.date, f"{client.revision}: the door is not in its place"
            listed = await client.request("tools/list", {})
            call = server["call"]
            arguments = filled(call["arguments"], folder)
            result = await client.request("tools/call", {"name": call["tool"], "arguments": arguments})
    said = msgspec.json.encode(result["content"]).decode()
    assert not result.get("isError"), said
    assert call["says"].lower() in said.lower(), said
    return f"{len(listed['tools'])} tools; {call['tool']} answers"


async def main(python: Path) -> int:
    """Print a line for each; how many failed."""
    failed = 0
    for server in servers():
        try:
            seen = await answers(server, python)
        except Exception as error:  # whatever happens to one, the others are tried
            failed += 1
            seen = f"FAILED: {type(error).__name__}: {error}"
        print(f"  {server['package']:32} {seen[:300]}", flush=True)
    return failed


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main(ROOT / ".venv-compat-servers" / "bin" / "python")))
