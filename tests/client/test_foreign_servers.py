import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from conformance.official import KEEP_ALIVE
from millstream import Client, Server
from millstream.client import Options, Question, ServerError, ToolFailed
from patience import WAIT
from processes import NODE, ROOT, SharedServer, share_server
from programs import require_program

pytestmark = pytest.mark.server

HERE = Path(__file__).resolve().parent / "foreign"
PYTHONS = {
    "official_two": sys.executable,
    "official_one": str(ROOT / ".venv-mcp1" / "bin" / "python"),
    "fast": str(ROOT / ".venv-foreign" / "bin" / "python"),
}
EVERYTHING = ROOT / "tests/interop/node_modules/@modelcontextprotocol/server-everything/dist/index.js"
PATHS = {"http": "/mcp", "sse": "/sse"}
TRANSPORTS = {"http": "streamable-http", "sse": "http+sse", "stdio": "stdio"}
NEW, OLD = "2026-07-28", "2025-11-25"
# Server, transport, the revision that is asked for, and the one that both sides find.
RUNS = [
    ("official_two", "stdio", None, NEW),
    ("official_two", "stdio", OLD, OLD),
    ("official_two", "http", None, NEW),
    ("official_two", "http", NEW, NEW),
    ("official_two", "http", OLD, OLD),
    ("official_two", "http", "2025-06-18", "2025-06-18"),
    ("official_two", "http", "2025-03-26", "2025-03-26"),
    ("official_two", "sse", None, OLD),
    ("official_one", "stdio", None, OLD),
    ("official_one", "http", None, OLD),
    ("official_one", "sse", None, OLD),
    ("official_one", "sse", "2024-11-05", "2024-11-05"),
    ("fast", "stdio", None, NEW),
    ("fast", "http", None, NEW),
    ("fast", "http", OLD, OLD),
    ("fast", "sse", None, OLD),
]


def program(name: str, transport: str, port: int = 0) -> list[str]:
    """Return the command of a Python server."""
    return [PYTHONS[name], str(HERE / f"{name}.py"), transport, *([str(port)] if port else [])]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], str]]:
    """A function that starts a server on first use, and returns its URL."""
    servers: dict[tuple[str, str], SharedServer] = {}
    with ExitStack() as stack:

        def url(name: str, transport: str) -> str:
            if (name, transport) not in servers:
                folder = tmp_path_factory.mktemp(name)
                command = lambda port: program(name, transport, port)  # noqa: E731  it is made for this one
                servers[name, transport] = stack.enter_context(share_server(command, folder))
            return f"http://127.0.0.1:{servers[name, transport].port()}{PATHS[transport]}"

        yield url


def fill_in(question: Question) -> dict[str, Any]:
    fields = (question.requested_schema or {}).get("properties", {})
    required = (question.requested_schema or {}).get("required", [])
    return {**question.defaults, **{name: "Ada" for name in required if fields[name]["type"] == "string"}}


def connect(target: Any, revision: str | None = None) -> Client:
    """Return a client with a user named Ada and a model with short answers."""
    return Client(
        target, revision=revision, timeout=WAIT, elicit=fill_in, sample=lambda _: "a word", roots=["file:///work"]
    )


@pytest.mark.parametrize(("name", "transport", "asked", "spoken"), RUNS, ids=lambda value: value or "auto")
async def test_official_python_server_works(
    running: Callable[[str, str], str], name: str, transport: str, asked: str | None, spoken: str
) -> None:
    target = program(name, transport) if transport == "stdio" else running(name, transport)
    steps: list[tuple[float, float | None]] = []
    async with asyncio.timeout(2 * WAIT), connect(target, asked) as client:
        assert (client.transport, client.revision) == (TRANSPORTS[transport], spoken)
        tools = {tool.name for tool in await client.tools()}
        assert {"add", "count"} <= tools
        assert await client.call("add", a=2, b=3, result_type=int) == 5
        many = await asyncio.gather(*(client.call("add", a=each, b=1, result_type=int) for each in range(10)))
        assert many == list(range(1, 11))
        result = await client.call("count", steps=3, progress=lambda value, total, _: steps.append((value, total)))
        assert (result.text, steps) == ("counted", [(1, 3), (2, 3), (3, 3)])
        assert (await client.read("note://one"))[0].text == "noted"
        assert [item.uri for item in await client.resources()] == ["note://one"]
        assert "Hello, Ada!" in str((await client.prompt("greet", name="Ada")).messages)
        if "ask" in tools and spoken == OLD:
            assert (await client.call("ask")).text == "Ada, a word, file:///work"
        await client.ping()


@pytest.mark.parametrize("transport", ["stdio", "http", "sse"])
async def test_typescript_reference_server_works(transport: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        target: Any = [NODE, str(EVERYTHING), "stdio"]
        if transport != "stdio":
            mode = "streamableHttp" if transport == "http" else "sse"
            patient = [f"KEEP_ALIVE_MS={WAIT * 1000:.0f}", NODE, "--require", str(KEEP_ALIVE)]
            server = stack.enter_context(
                share_server(lambda port: ["env", f"PORT={port}", *patient, str(EVERYTHING), mode], tmp_path)
            )
            target = f"http://127.0.0.1:{server.port()}{PATHS[transport]}"
        steps: list[float] = []
        async with asyncio.timeout(2 * WAIT), connect(target) as client:
            assert (client.transport, client.revision) == (TRANSPORTS[transport], OLD)
            assert (await client.call("echo", message="hi")).text == "Echo: hi"
            assert "5" in (await client.call("get-sum", a=2, b=3)).text
            result = await client.call("get-structured-content", location="Chicago")
            assert set(result.data) == {"temperature", "conditions", "humidity"}
            await client.call(
                "trigger-long-running-operation", duration=0.2, steps=4, progress=lambda value, *_: steps.append(value)
            )
            assert steps == [1, 2, 3, 4]
            assert len(await client.resources()) >= 7
            assert len(await client.prompts()) >= 4
            assert "Ada" in (await client.call("trigger-elicitation-request")).text
            assert "a word" in (await client.call("trigger-sampling-request", prompt="x", maxTokens=5)).text
            assert "file:///work" in (await client.call("get-roots-list")).text


TIME = [str(ROOT / ".venv-mcp1" / "bin" / "mcp-server-time"), "--local-timezone", "UTC"]
RICH = """
import sys
from mcp.server.fastmcp import FastMCP

mcp = FastMCP("s")
sys.stderr.write("starting\\n")


@mcp.tool()
def add(a: int) -> int:
    return a


mcp.run()
"""


async def test_reports_about_the_probe_are_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    """SDK 1.x writes up to 200 lines about `server/discover`, with or without rich."""
    for command, tool, shown in (([PYTHONS["official_one"], "-c", RICH], "add", "starting"), (TIME, "", "")):
        lines: list[str] = []
        options = Options(stderr=lines.append)
        async with asyncio.timeout(2 * WAIT), Client(command, timeout=WAIT, options=options) as client:
            assert (client.revision, bool(await client.tools())) == (OLD, True)
            if tool:
                await client.call(tool, a=1)
        text = "\n".join(lines)
        assert "pydantic" not in text
        assert shown in text
        assert not tool or "CallToolRequest" in text  # lines after the report are shown
        mcp = Server("front")
        caplog.set_level(logging.INFO)
        mcp.upstream("old", command, start_timeout=WAIT)
        async with asyncio.timeout(2 * WAIT), Client(mcp, timeout=WAIT) as client:
            assert await client.tools()
    assert "starting" in caplog.text
    assert "pydantic" not in caplog.text


async def test_published_time_server_works() -> None:
    async with asyncio.timeout(2 * WAIT), connect(TIME) as client:
        told = (await client.call("get_current_time", timezone="Europe/Berlin")).data
        assert "Europe/Berlin" in str(told)
        assert (await client.call("get_current_time", timezone="Nowhere", raise_on_error=False)).is_error


PAGES = {
    "/robots.txt": ("text/plain", "User-agent: *\nDisallow: /closed\n"),
    "/open": ("text/html", "<html>\n<body><h1>Mills</h1><p>Water turns them.</p></body></html>"),
    "/closed": ("text/html", "<html><body><p>For people.</p></body></html>"),
}


class Site(BaseHTTPRequestHandler):
    """A page for everyone, and one that robots.txt disallows."""

    def do_GET(self) -> None:
        if self.path not in PAGES:
            self.send_error(404)
            return
        kind, text = PAGES[self.path]
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Discard log messages."""


@pytest.fixture
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


async def test_published_fetch_server_works(site: str, tmp_path: Path) -> None:
    command = [str(ROOT / ".venv-mcp1" / "bin" / "mcp-server-fetch"), "--allow-private-ips"]
    options = Options(env={"PATH": str(tmp_path)})
    async with asyncio.timeout(2 * WAIT), Client(command, timeout=WAIT, options=options) as client:
        assert (client.transport, client.revision) == ("stdio", OLD)
        tool = (await client.tools())[0]
        assert (tool.name, tool.input_schema["required"]) == ("fetch", ["url"])
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint is True
        page = (await client.call("fetch", url=f"{site}/open")).text
        assert page.startswith(f"Contents of {site}/open:")
        assert "# Mills\n\nWater turns them." in page
        raw = (await client.call("fetch", url=f"{site}/open", raw=True, start_index=7, max_length=6)).text
        assert ":\n<body>\n\n<error>Content truncated." in raw
        refused = await client.call("fetch", url=f"{site}/closed", raise_on_error=False)
        assert (refused.is_error, "robots.txt" in refused.text) == (True, True)
        assert "status code 404" in (await client.call("fetch", url=f"{site}/nothing", raise_on_error=False)).text
        with pytest.raises(ToolFailed, match="999999"):
            await client.call("fetch", url=f"{site}/open", max_length=10**6)
        assert [(prompt.name, prompt.arguments[0].required) for prompt in await client.prompts()] == [("fetch", True)]
        assert "For people." in str((await client.prompt("fetch", url=f"{site}/closed")).messages)
        with pytest.raises(ServerError, match="Unknown prompt"):
            await client.prompt("nothing")


@pytest.fixture(scope="module")
def go_server(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Go server of the benchmark, built anew."""
    go = require_program("go")
    target = tmp_path_factory.mktemp("go") / "official"
    command = [go, "build", "-C", "benches/go", "-o", str(target), "./official"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=10 * WAIT, capture_output=True)
    return str(target)


@pytest.mark.parametrize("transport", ["stdio", "stateless", "http"])
async def test_go_sdk_server_works(go_server: str, transport: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        target: Any = [go_server, "stdio"]
        if transport != "stdio":
            server = stack.enter_context(share_server(lambda port: [go_server, transport, str(port)], tmp_path))
            target = f"http://127.0.0.1:{server.port()}/mcp"
        async with asyncio.timeout(2 * WAIT), connect(target) as client:
            assert [tool.name for tool in await client.tools()] == ["add"]
            assert await client.call("add", a=2, b=3, result_type=int) == 5
