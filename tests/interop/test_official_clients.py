import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from patience import WAIT
from processes import NODE, ROOT, TEST_PATH, SharedServer, run_command, share_server

pytestmark = pytest.mark.server

HERE = Path(__file__).resolve().parent
EXAMPLES = ("hub", "everything")
PATHS = {"http": "/mcp", "sse": "/sse"}
CLIENTS = {
    "python-1": [str(ROOT / ".venv-mcp1" / "bin" / "python"), str(HERE / "client_one.py")],
    "python-2": [sys.executable, str(HERE / "client_two.py")],
    "typescript-1": [NODE, str(HERE / "client_ts.mjs"), str(ROOT / "tests" / "conformance")],
    "typescript-2": [NODE, str(HERE / "client_ts2.mjs"), str(HERE)],
}
FIRST, SECOND = ("python-1", "typescript-1"), ("python-2", "typescript-2")
MODES = ("legacy", "auto", "2026-07-28")
RUNS = [
    *[(client, transport, "") for client in FIRST for transport in ("http", "sse", "stdio")],
    *[(client, transport, mode) for client in SECOND for transport in ("http", "stdio") for mode in MODES],
    *[(client, "sse", "legacy") for client in SECOND],
]
"""Client, transport, and negotiation mode; HTTP+SSE has no per-request mode."""

EXPECTED: dict[str, Any] = {
    "resources": ["hub://about"],
    "templates": ["orders://{number}", "time://{area}/{city}"],
    "prompts": ["translate"],
    "sum": "5",
    "progress": [[1, 3, "First number: 2"], [2, 3, "Second number: 3"], [3, 3, "Adding"]],
    "summary": "In short: all is well.",
    "clock": "time://Europe/Berlin",
    "prompt": "Translate into Dutch:\n\nbonjour",
    "completion": ["Dutch"],
    "wrong_arguments": {"isError": True},
    "unknown_tool": -32602,
    "cancel": "Hello, again!",
    "updates": True,
    "everything": {
        "roots": "1 roots: file:///work",
        "rounds": "In short: all is well. Ada, 1 roots.",
        "content": ["text", "image", "resource"],
        "audio": "audio/wav",
        "tool_error": True,
        "binary": ["blob", "mimeType", "uri"],
        "image_prompt": "image",
    },
}


class Servers:
    """Targets of the two examples by transport, and each client's reports."""

    def __init__(self, running: dict[str, SharedServer]) -> None:
        self._running = running
        self.reports: dict[tuple[str, str, str], dict[str, Any]] = {}

    def _url(self, example: str) -> str:
        return f"http://127.0.0.1:{self._running[example].port()}"

    def target(self, transport: str, example: str) -> str:
        """Return the URL, or the command of a stdio server."""
        if transport == "stdio":
            program = ROOT / ".venv" / "bin" / "millstream"
            return f"{program} run {ROOT / 'examples' / example}.py --transport stdio"
        return self._url(example) + PATHS[transport]

    def health(self, transport: str) -> str:
        """Return the URL with the number of running calls; empty for stdio."""
        return "" if transport == "stdio" else self._url("hub") + "/health"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Run both examples for all tests of this file."""
    with ExitStack() as stack:
        commands = {example: partial(run_command, f"examples/{example}.py") for example in EXAMPLES}
        folder = tmp_path_factory.mktemp("interop")
        yield Servers({name: stack.enter_context(share_server(command, folder)) for name, command in commands.items()})


def walk(servers: Servers, client: str, transport: str, mode: str) -> dict[str, Any]:
    """Return a client's report. A program in Python runs all of its cases at once, because its imports take long."""
    if (client, transport, mode) not in servers.reports:
        runs = [run for run in RUNS if run[0] == client] if "python" in client else [(client, transport, mode)]
        given = [arguments(servers, *run[1:]) for run in runs]
        command = [*CLIENTS[client], *([json.dumps(given)] if "python" in client else given[0])]
        own = {**os.environ, "PYTHONPATH": TEST_PATH, "WAIT": str(WAIT)}
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=5 * WAIT, check=False, env=own
        )  # the program waits often
        assert done.returncode == 0, done.stderr[-4000:]
        reports = json.loads(done.stdout)
        servers.reports |= dict(zip(runs, reports if "python" in client else [reports], strict=True))
    report = servers.reports[client, transport, mode]
    assert "failed" not in report, report["failed"]
    return report


def arguments(servers: Servers, transport: str, mode: str) -> list[str]:
    """Return the arguments of a client's program."""
    targets = (servers.target(transport, example) for example in EXAMPLES)
    return [transport, *targets, servers.health(transport), *([mode] if mode else [])]


@pytest.mark.parametrize(("client", "transport", "mode"), RUNS, ids=lambda value: value or "default")
def test_official_clients_can_use_everything(servers: Servers, client: str, transport: str, mode: str) -> None:
    report = walk(servers, client, transport, mode)
    per_request = mode in ("auto", "2026-07-28")
    revision = "2026-07-28" if per_request else "2025-11-25"

    assert {key: report[key] for key in EXPECTED} == EXPECTED
    assert report["revision"] == report["structured"]["revision"] == revision
    adopted = (client, mode) == ("python-2", "2026-07-28")  # adopted without a handshake, so without a name
    assert report["server"] == ("" if adopted else "hub")
    # The 2.x TypeScript client translates the old code on the wire to the new one.
    assert report["unknown_resource"] == (-32602 if per_request or client == "typescript-2" else -32002)
    assert json.loads(report["order"])["status"] == "flour to 1 Mill Lane, Bath (express)"
    assert report["about"].startswith("# hub")
    assert {"add_numbers", "long_task", "order_parcel", "summarize"} <= set(report["tools"])
    if not per_request:
        assert report["reconnected"] == "Reconnection test completed."


@pytest.mark.parametrize(("client", "mode"), [("python-1", ""), ("typescript-1", ""), ("typescript-2", "legacy")])
def test_calls_resume_on_another_connection(servers: Servers, client: str, mode: str) -> None:
    """MCP 2025-11-25, basic/transports."""
    resumed = walk(servers, client, "http", mode)["resumed"]
    assert resumed == {"text": "Done in 5 steps.", "progress": [3, 4, 5]}
