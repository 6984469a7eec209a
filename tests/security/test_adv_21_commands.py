"""Command execution over HTTP (CVE-2025-49596, CVE-2025-6514): no request starts a process, no command runs in a shell,
and clients open only web pages in a browser.
"""

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import millstream
from auth_world import ROOT, make_server, run_guarded
from client.misbehaving_servers import ReceivedRequest, misbehaving
from millstream import Client
from millstream.client import ClientError, MemoryTokenStore, OAuth, Options
from wire import request

PACKAGE = Path(millstream.__file__).parent
STARTS = {"subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.fork", "os.forkpty",
          "os.startfile", "pty.spawn", "webbrowser.open"}  # fmt: skip
COMMAND = "touch owned; $(id) `id` | sh & calc.exe"


class Started:
    """Processes that were started. Audit hooks can't be removed, so there's one hook per process."""

    watching = False
    events: list[str] = []  # noqa: RUF012  shared, like the hook


def _hook(event: str, arguments: Any) -> None:
    if Started.watching and event in STARTS:
        Started.events.append(f"{event} {arguments}")


sys.addaudithook(_hook)


@pytest.fixture
def started() -> Iterator[list[str]]:
    """Yield the list of processes that start during the test."""
    Started.events.clear()
    Started.watching = True
    yield Started.events
    Started.watching = False


async def test_no_route_starts_a_process(started: list[str]) -> None:
    async with run_guarded(make_server()) as world:
        assert world.runtime.routes is not None
        places = sorted({path.decode() for _, path in world.runtime.routes.hot})
        assert {"/mcp", "/publish", "/tools/", "/dashboard"} & {*places, "/tools/"} >= {"/mcp", "/publish"}
        bodies = [
            {"command": COMMAND, "args": [COMMAND], "transportType": "stdio", "url": f"file:///bin/sh?{COMMAND}"},
            request("tools/call", {"name": COMMAND, "arguments": {"command": COMMAND}}),
            request("server/spawn", {"command": COMMAND}),
            {"name": COMMAND, "arguments": {"cmd": COMMAND}, "params": {"name": COMMAND}},
        ]
        for path in [*places, "/tools/who", "/sse", "/stdio", "/connect", "/mcp-rest/test/connection"]:
            for body in bodies:
                peer = await world.send(
                    ROOT, "POST", f"{path}?command=sh&transportType=stdio", json.dumps(body).encode(),
                    content_type="application/json", x_command="sh",
                )  # fmt: skip
                await peer.head()
                peer.writer.transport.abort()
            peer = await world.send(ROOT, "GET", f"{path}?command=sh&transportType=stdio&url=file:///bin/sh")
            await peer.head()
            peer.writer.transport.abort()
    assert started == []


@pytest.mark.parametrize(
    "page",
    ["file:///bin/sh", "javascript:alert(1)", "data:text/html,x", "ms-msdt:/id", "http://evil.example/authorize",
     "$(id)", "https://a.example/\r\nb", "vbscript:x", "https:$(calc.exe)/"],
)  # fmt: skip
async def test_client_opens_only_web_pages(page: str, monkeypatch: pytest.MonkeyPatch, started: list[str]) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url, *rest: opened.append(url))

    async def behave(asked: ReceivedRequest) -> None:
        origin = f"http://{asked.headers['host']}"
        about: dict[str, Any] = {"resource": f"{origin}/mcp", "authorization_servers": [origin]}
        about |= {"issuer": origin, "authorization_endpoint": page, "token_endpoint": f"{origin}/token",
                  "registration_endpoint": f"{origin}/register", "code_challenge_methods_supported": ["S256"],
                  "client_id": "me"}  # fmt: skip
        if asked.path.startswith("/.well-known/") or asked.path == "/register":
            await asked.reply(json.dumps(about).encode())
        else:
            await asked.reply(b"", status="401 Unauthorized", more="WWW-Authenticate: Bearer\r\n")

    async with misbehaving(behave) as server:
        with pytest.raises((ClientError, ValueError)):
            async with Client(server.url, options=Options(auth=OAuth(store=MemoryTokenStore()))):
                pass
    assert opened == started == []


def dotted(function: ast.expr) -> str:
    """Return the dotted name of a called function, if it has one."""
    if isinstance(function, ast.Attribute):
        return f"{dotted(function.value)}.{function.attr}"
    return function.id if isinstance(function, ast.Name) else ""


FORBIDDEN = {
    "os.system", "os.popen", "eval", "exec", "asyncio.create_subprocess_shell", "pickle.loads", "marshal.loads",
    "yaml.load",
}  # fmt: skip
ALLOWED = {
    "_yaml.py: yaml.load(text, loader)": "its loader is the safe one, with the types of YAML 1.2",
    "_server/functions/parameters.py: eval(name, dict(namespace))": "an annotation of the program, as typing reads it",
}
"""Call -> why it's allowed."""


@pytest.mark.check
def test_commands_run_without_a_shell() -> None:
    found: list[str] = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                name = dotted(node.func)
                shell = any(word.arg == "shell" and ast.unparse(word.value) != "False" for word in node.keywords)
                if (shell and not name.endswith("_completion")) or name in FORBIDDEN:
                    found.append(f"{path.relative_to(PACKAGE)}: {ast.unparse(node)[:60]}")
    assert set(found) == set(ALLOWED)
