import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from millstream import Client
from millstream.client import Options, ToolFailed
from millstream.protocol import BY_DATE
from patience import WAIT
from processes import ROOT, SharedServer, free_port, run_server, share_server

pytestmark = pytest.mark.server

HERE = Path(__file__).parent / "programs"
PYTHONS = {
    "sdk_one": str(ROOT / ".venv-mcp1" / "bin" / "python"),
    "sdk_two": sys.executable,
    "fast": str(ROOT / ".venv-foreign" / "bin" / "python"),
}
LISTS = ("tools/list", "resources/list", "resources/templates/list", "prompts/list")
ERAS = ("2025-11-25", "2026-07-28")


def run(name: str, port: int, *options: str) -> list[str]:
    start = "from millstream._cli import main; main()"
    return [PYTHONS[name], "-c", start, "run", str(HERE / f"{name}.py"), "--port", str(port), *options]


@pytest.fixture(scope="module", params=PYTHONS)
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def adopted(program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """The URL of a program that Millstream serves."""
    with share_server(lambda port: run(program, port, "--workers", "2"), tmp_path_factory.mktemp(program)) as running:
        yield running


async def get(url: str, method: str = "GET", headers: dict[str, str] | None = None) -> httpx2.Response:
    async with httpx2.AsyncClient(timeout=WAIT) as client:
        return await client.request(method, url, headers=headers)


async def lists(target: Any, revision: str | None = None) -> dict[str, Any]:
    """Return a server's lists without what differs between revisions."""
    async with asyncio.timeout(WAIT), Client(target, revision=revision, timeout=WAIT) as client:
        found = {}
        for method in (each for each in LISTS if each.partition("/")[0] in client.capabilities):
            result = await client.request(method)
            key = next(name for name in result if isinstance(result[name], list))
            found[key] = result[key]
        return {"name": client.server.name, "instructions": client.instructions, **found}


async def test_lists_match_the_program_in_both_eras(program: str, adopted: SharedServer) -> None:
    original = await lists([PYTHONS[program], str(HERE / f"{program}.py")], ERAS[0])
    assert {each["name"] for each in original["tools"]} == {"add", "find", "picture", "order", "fail"}
    for era in ERAS:
        assert await lists(f"http://127.0.0.1:{adopted.port()}/mcp", era) == original


async def test_calls_work_with_every_revision(program: str, adopted: SharedServer) -> None:
    for revision in BY_DATE:
        steps: list[tuple[float, float | None]] = []
        async with asyncio.timeout(WAIT), Client(f"http://127.0.0.1:{adopted.port()}/mcp", revision=revision) as client:
            assert (await client.call("add", a=2, b=3)).text == "5"
            assert json.loads((await client.call("find", title="Emma")).text)["title"] == "Emma"
            assert "PNG" in str((await client.call("picture")).content)
            result = await client.call("order", progress=lambda value, total, _: steps.append((value, total)))  # noqa: B023
            assert (result.text, steps) == ("open", [(1, 2)])
            with pytest.raises(ToolFailed, match="fail"):
                await client.call("fail")
            with pytest.raises(ToolFailed):
                await client.call("add", a="x")
            assert (await client.read("book://Emma"))[0].text == "Emma"
            assert "Review Emma, kind." in str((await client.prompt("review", title="Emma", tone="kind")).messages)


async def test_program_paths_and_other_transports_work(program: str, adopted: SharedServer) -> None:
    port = adopted.port()
    page = await get(f"http://127.0.0.1:{port}/hello/Ada")
    assert page.text == "Hello, Ada!"
    async with Client({"mcpServers": {"sse": {"url": f"http://127.0.0.1:{port}/sse", "type": "sse"}}}) as client:
        assert (client.transport, (await client.call("add", a=1)).text) == ("http+sse", "2")
    command = [*run(program, 0)[:-2], "--transport", "stdio"]
    options = Options(probe_timeout=WAIT)  # the program may start slowly
    async with asyncio.timeout(WAIT), Client(command, timeout=WAIT, options=options) as client:
        assert (client.revision, (await client.call("add", a=1)).text) == ("2026-07-28", "2")


async def test_other_origins_cannot_read_replies(adopted: SharedServer) -> None:
    headers = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    reply = await get(f"http://127.0.0.1:{adopted.port()}/mcp", "OPTIONS", headers)
    assert "access-control-allow-origin" not in reply.headers


PROTECTED = """
from mcp.server{where} import {server}
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings

class Verifier:
    async def verify_token(self, token):
        if token in ("ada", "eve", "weak"):
            scopes = [] if token == "weak" else ["read"]
            return AccessToken(token=token, client_id="shop", subject="ada", scopes=scopes)
        if token in ("anna", "emma"):
            return AccessToken(token=token, client_id="shop", scopes=["read"])

url = "http://localhost:8000/mcp"
auth = AuthSettings(issuer_url="https://issuer.example", resource_server_url=url, required_scopes=["read"])
mcp = {server}("protected", auth=auth, token_verifier=Verifier())

@mcp.tool()
def who() -> str:
    return get_access_token().token
"""


@pytest.mark.parametrize(
    ("name", "where", "server"), [("sdk_one", ".fastmcp", "FastMCP"), ("sdk_two", "", "MCPServer")]
)
async def test_program_checks_tokens(name: str, where: str, server: str, tmp_path: Path) -> None:
    file = tmp_path / "protected.py"
    file.write_text(PROTECTED.format(where=where, server=server))
    port = free_port()
    command = [str(file) if each.endswith(".py") else each for each in run(name, port)]
    url = f"http://127.0.0.1:{port}"
    with run_server(command, port, tmp_path / "log"):
        metadata = await get(f"{url}/.well-known/oauth-protected-resource/mcp")
        assert metadata.json()["resource"] == "http://localhost:8000/mcp"
        for era in ERAS:
            for token in ("ada", "eve"):
                headers = {"Authorization": f"Bearer {token}"}
                async with Client(f"{url}/mcp", headers=headers, revision=era, timeout=WAIT) as client:
                    assert (await client.call("who")).text == token
        # Without a subject, the people of one OAuth client are told apart by their tokens.
        anna, emma = ({"Authorization": f"Bearer {token}"} for token in ("anna", "emma"))
        opening = {"protocolVersion": ERAS[0], "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": opening}
        async with httpx2.AsyncClient(timeout=WAIT, headers={"Accept": "application/json, text/event-stream"}) as http:
            opened = await http.post(f"{url}/mcp", json=message, headers=anna)
            session = {"Mcp-Session-Id": opened.headers["mcp-session-id"]}
            replies = [await http.delete(f"{url}/mcp", headers={**each, **session}) for each in (emma, anna)]
        assert [each.status_code for each in replies] == [404, 204]
        for path in ("/mcp", "/sse"):
            for token, status in (("", 401), ("mallory", 401), ("weak", 403)):
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                reply = await get(url + path, "POST" if path == "/mcp" else "GET", headers)
                assert reply.status_code == status
                assert "resource_metadata" in reply.headers["www-authenticate"]


async def test_invalid_token_gets_401_from_a_program_without_an_authorization_server(tmp_path: Path) -> None:
    file = tmp_path / "protected.py"
    program = PROTECTED.format(where="", server="MCPServer")
    file.write_text(program.replace("resource_server_url=url", "resource_server_url=None"))
    port = free_port()
    command = [str(file) if each.endswith(".py") else each for each in run("sdk_two", port)]
    with run_server(command, port, tmp_path / "log"):
        for token, status in (("", 401), ("mallory", 401), ("weak", 403), ("ada", 400)):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            reply = await get(f"http://127.0.0.1:{port}/mcp", "POST", {**headers, "Content-Type": "application/json"})
            assert reply.status_code == status, token
            if token == "mallory":
                assert 'error="invalid_token"' in reply.headers["www-authenticate"]


def test_protected_programs_are_rejected_next_to_other_upstreams(tmp_path: Path) -> None:
    file = tmp_path / "gateway.py"
    program = PROTECTED.format(where="", server="MCPServer").replace("mcp = ", "theirs = ").replace("@mcp", "@theirs")
    file.write_text(
        f"{program}\nfrom millstream import Server\nmcp = Server('front')\nmcp.upstream('theirs', theirs)\n"
    )
    command = [sys.executable, "-m", "millstream", "run", str(file), "--port", str(free_port())]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
    assert ended.returncode != 0
    assert "checks its callers' tokens" in ended.stderr


async def test_programs_work_beside_local_tools() -> None:
    from mcp.server.lowlevel import Server as LowLevel  # noqa: PLC0415  a program of the other library
    from mcp_types import CallToolResult, ListToolsResult, TextContent, Tool  # noqa: PLC0415

    from millstream import Server  # noqa: PLC0415

    async def list_tools(context: Any, params: Any) -> ListToolsResult:
        return ListToolsResult(tools=[Tool(name="old", input_schema={"type": "object"})])

    async def call_tool(context: Any, params: Any) -> CallToolResult:
        return CallToolResult(content=[TextContent(type="text", text=str(params.arguments))])

    mcp = Server("front")

    @mcp.tool
    def new() -> str:
        """A tool of the server itself."""
        return "new"

    mcp.upstream("theirs", LowLevel("theirs", on_list_tools=list_tools, on_call_tool=call_tool), start_timeout=WAIT)
    async with mcp.running(), Client(mcp) as client:
        assert {tool.name for tool in await client.tools()} == {"new", "theirs_old"}
        assert (await client.call("theirs_old", x=1)).text == "{'x': 1}"


async def test_new_sessions_wait_until_a_stopping_program_has_stopped() -> None:
    from mcp.server import MCPServer  # noqa: PLC0415  a program of the other library
    from mcp.server.mcpserver import Context  # noqa: PLC0415

    from millstream._gateway.programs.program import program_of  # noqa: PLC0415

    stopping, may_stop = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncGenerator[dict[str, bool]]:
        state = {"open": True}
        yield state
        state["open"] = False
        stopping.set()
        await may_stop.wait()

    theirs = MCPServer("slow", lifespan=lifespan)

    @theirs.tool()
    def is_open(ctx: Context) -> bool:
        return ctx.request_context.lifespan_context["open"]

    async def call() -> str:
        async with Client(program) as client:
            return (await client.call("is_open")).text

    program = program_of(theirs)
    async with asyncio.timeout(WAIT), asyncio.TaskGroup() as group:
        first = group.create_task(call())
        await stopping.wait()
        second = group.create_task(call())
        await asyncio.sleep(0)
        may_stop.set()
    assert (first.result(), second.result()) == ("true", "true")


async def test_documented_program_runs_alone_and_as_upstream(tmp_path: Path) -> None:
    page = (ROOT / "docs/guides/run-fastmcp-and-sdk-programs.md").read_text("utf-8")
    example = (ROOT / "examples/other_library.py").read_text("utf-8")
    assert example in page
    (tmp_path / "other_library.py").write_text(example)
    blocks = [each.partition("```")[0] for each in page.split("```text\n")[1:]]
    assert "millstream run other_library.py --workers 4\n" in blocks
    (tmp_path / "tools.py").write_text(next(each for each in blocks if "mcp.upstream" in each))
    for file, tool in (("other_library.py", "price"), ("tools.py", "books_price")):
        command = [sys.executable, "-m", "millstream", "run", str(tmp_path / file), "--transport", "stdio"]
        async with asyncio.timeout(WAIT), Client(command, timeout=WAIT, options=Options(probe_timeout=WAIT)) as client:
            assert (await client.call(tool, isbn="978-0141439587")).text == "9.99"


async def test_published_server_behaves_the_same_through_its_command(tmp_path: Path) -> None:
    command = f"{ROOT / '.venv-mcp1/bin/mcp-server-time'} --local-timezone UTC"
    original = await lists(command, ERAS[0])
    port = free_port()
    start = [sys.executable, "-m", "millstream", "run", command, "--port", str(port)]
    with run_server(start, port, tmp_path / "log"):
        url = f"http://127.0.0.1:{port}/mcp"
        for era in ERAS:
            found = await lists(url, era)
            assert found["tools"] == original["tools"]
            arguments = {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}
            async with asyncio.timeout(WAIT), Client(url, revision=era, timeout=WAIT) as client:
                assert "21:00" in (await client.call("convert_time", arguments)).text


async def test_commands_receive_the_configured_environment_variables(tmp_path: Path) -> None:
    file = tmp_path / "asks.py"
    file.write_text(
        "import os\nfrom mcp.server import MCPServer\nmcp = MCPServer('asks')\n@mcp.tool()\n"
        "def known() -> str:\n    return os.environ.get('SHOP_KEY', '') + os.environ.get('MILLSTREAM_SECRET_KEY', '')\n"
        "mcp.run()\n"
    )
    command = [sys.executable, "-m", "millstream", "run", f"{sys.executable} {file}", "--transport", "stdio"]
    env = {"SHOP_KEY": "shop", "MILLSTREAM_SECRET_KEY": "secret" * 8}
    async with asyncio.timeout(WAIT), Client(command, timeout=WAIT, options=Options(env=env)) as client:
        assert (await client.call("known")).text == "shop"


def test_server_factories_get_a_helpful_error(tmp_path: Path) -> None:
    file = tmp_path / "made.py"
    file.write_text("from mcp.server import MCPServer\ndef main():\n    MCPServer('made').run()\n")
    command = [sys.executable, "-m", "millstream", "run", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
    assert f'millstream run "python {file}"' in " ".join(ended.stderr.split())


UNGUARDED = """
import sys
from {module} import {server}

mcp = {server}("old"{options})

@mcp.tool()
def add(a: int, b: int) -> int:
    return a + b

mcp.run({transport})
print("served", file=sys.stderr)
"""
LOADS = (
    "import sys\nfrom millstream._cli.load import load\nserver = load(sys.argv[1])\n"
    "print(server.name, server.settings.sessions, server.settings.json_only)"
)


@pytest.mark.parametrize(
    ("name", "server", "options", "transport", "said"),
    [
        ("sdk_one", "mcp.server.fastmcp.FastMCP", ", stateless_http=True", "'streamable-http'", "old False False"),
        ("sdk_one", "mcp.server.fastmcp.FastMCP", ", json_response=True", "", "old True True"),
        ("sdk_two", "mcp.server.MCPServer", "", "'streamable-http'", "old True False"),
        ("sdk_two", "mcp.server.fastmcp.FastMCP", ", stateless_http=True", "", "old False False"),
        ("fast", "fastmcp.FastMCP", "", "'sse'", "old True False"),
    ],
)
def test_millstream_serves_when_a_program_calls_run(
    name: str, server: str, options: str, transport: str, said: str, tmp_path: Path
) -> None:
    file, (module, _, kind) = tmp_path / "old.py", server.rpartition(".")
    file.write_text(UNGUARDED.format(module=module, server=kind, options=options, transport=transport))
    command = [PYTHONS[name], "-c", LOADS, str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False, stdin=subprocess.DEVNULL)
    assert (ended.returncode, ended.stdout) == (0, f"{said}\n"), ended.stderr
    assert "served" not in ended.stderr


OLD = """
from helper import Context
from mcp import types
from mcp.server.fastmcp import FastMCP

mcp = FastMCP("old")

@mcp.tool()
async def add(a: int, b: int, ctx: Context) -> list[types.TextContent]:
    await ctx.info("adding")
    return [types.TextContent(type="text", text=str(a + b))]
"""


def without_application(python: str) -> list[str]:
    """Return the start of a command whose SDK 1.x is as old as 1.7, which had no Streamable HTTP."""
    start = (
        "from mcp.server.fastmcp import FastMCP\ndel FastMCP.streamable_http_app\n"
        "from millstream._cli import main; main()"
    )
    return [python, "-c", start]


async def test_programs_run_next_to_another_sdk_version(tmp_path: Path) -> None:
    file = tmp_path / "old.py"
    file.write_text(OLD)
    (tmp_path / "helper.py").write_text("from mcp.server.fastmcp import Context\n")
    for start in ([sys.executable, "-m", "millstream"], without_application(PYTHONS["sdk_one"])):
        command = [*start, "run", str(file), "--transport", "stdio"]
        async with asyncio.timeout(WAIT), Client(command, timeout=WAIT, options=Options(probe_timeout=WAIT)) as client:
            assert (client.revision, (await client.call("add", a=2, b=3)).text) == ("2026-07-28", "5")
            said = str(getattr(client.conversation.transport, "last_stderr", ""))
        assert said.count("can't run this program, so it runs on Millstream's compatibility layer") == 1


async def test_importing_a_missing_sdk_uses_our_compatibility_layer(tmp_path: Path) -> None:
    file = tmp_path / "old.py"
    file.write_text(
        "from mcp.server.fastmcp import FastMCP\nfrom mcp.types import TextContent\n"
        "mcp = FastMCP('old')\n@mcp.tool()\ndef add(a: int, b: int) -> list[TextContent]:\n"
        "    return [TextContent(type='text', text=str(a + b))]\n"
    )
    start = (
        "import sys\nfrom importlib.machinery import PathFinder\n"
        "class Without(PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        return None if name.partition('.')[0] == 'mcp' else PathFinder.find_spec(name, path, target)\n"
        "sys.meta_path[sys.meta_path.index(PathFinder)] = Without\n"
        "from millstream._cli import main; main()"
    )
    command = [sys.executable, "-c", start, "run", str(file), "--transport", "stdio"]
    async with asyncio.timeout(WAIT), Client(command, timeout=WAIT, options=Options(probe_timeout=WAIT)) as client:
        assert (client.revision, (await client.call("add", a=2, b=3)).text) == ("2026-07-28", "5")
        said = str(getattr(client.conversation.transport, "last_stderr", ""))
    assert said.count("isn't installed, so the program runs on Millstream's compatibility layer") == 1


async def test_logs_of_a_program_arrive_on_the_stream_of_their_call(tmp_path: Path) -> None:
    file = tmp_path / "talk.py"
    file.write_text(
        "from mcp.server.fastmcp import Context, FastMCP\n"
        "mcp = FastMCP('talk')\n"
        "@mcp.tool()\n"
        "async def talk(ctx: Context) -> str:\n"
        "    await ctx.info('one')\n"
        "    await ctx.info('two')\n"
        "    return 'done'\n"
    )
    start, port = "from millstream._cli import main; main()", free_port()
    command = [PYTHONS["sdk_one"], "-c", start, "run", str(file), "--port", str(port)]
    headers = {"accept": "application/json, text/event-stream"}
    with run_server(command, port, tmp_path / "log"):
        async with httpx2.AsyncClient(timeout=WAIT, headers=headers) as client:

            async def post(method: str, **params: Any) -> httpx2.Response:
                body = {"jsonrpc": "2.0", "id": method, "method": method, "params": params}
                return await client.post(f"http://127.0.0.1:{port}/mcp", json=body)

            about = {"name": "t", "version": "1"}
            opened = await post("initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo=about)
            client.headers["mcp-session-id"] = opened.headers["mcp-session-id"]
            await post("logging/setLevel", level="info")
            stream = (await post("tools/call", name="talk", arguments={})).text
    assert 0 < stream.index('"one"') < stream.index('"two"') < stream.index('"done"')
