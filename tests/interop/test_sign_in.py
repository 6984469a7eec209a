import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from auth.issuing.test_official_client import trusted
from auth.issuing.test_sign_in_end_to_end import Person, serving
from identity_world import browser
from patience import WAIT
from processes import NODE, ROOT, free_port

pytestmark = pytest.mark.server

HERE = Path(__file__).resolve().parent
LINES = {"1": ROOT / "tests" / "conformance", "2": HERE}
"""Line of the SDK -> folder of its installation."""
BACK = "http://127.0.0.1:8765/callback"
__all__ = ["trusted"]
SIGN_IN = "Please authorize this client by visiting:"


@asynccontextmanager
async def document_of_a_client(context: ssl.SSLContext) -> AsyncIterator[str]:
    """Serve a client's metadata document, and yield its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        about = {
            "client_id": url, "client_name": "TypeScript", "redirect_uris": [BACK],
            "grant_types": ["authorization_code", "refresh_token"], "token_endpoint_auth_method": "none",
        }  # fmt: skip
        body = json.dumps(about).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}/client.json"
    async with server:
        yield url


async def signed_in(line: str, *arguments: str) -> Any:
    """Run a line's program, and return its output."""
    command = (NODE, str(HERE / "sign_in.mjs"), str(LINES[line]), line, *arguments)
    program = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(WAIT):
        out, errors = await program.communicate()
    assert program.returncode == 0, errors.decode()
    return json.loads(out)


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("described", [False, True], ids=["registers", "describes-itself"])
async def test_typescript_client_signs_in_refreshes_and_steps_up(
    line: str, described: bool, trusted: ssl.SSLContext
) -> None:
    async with document_of_a_client(trusted) as document, serving(scopes=["shop:use"]) as url:
        said = await signed_in(line, url, *([document] if described else []))
    assert (said.pop("client") == document) is described
    assert said == {
        "first": "ada shop:use", "second": "ada shop:use", "before": 1, "stepped": "ordered", "visits": 2,
        "third": "ada orders:write shop:use", "rotated": True,
    }  # fmt: skip


class Remote:
    """mcp-remote as a desktop program starts it: MCP on stdin and stdout, links for the user on stderr."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ids = iter(range(1, 100))
        self._said: list[str] = []
        self._read = 0
        self._more = asyncio.Condition()

    async def heard(self) -> None:
        """Read stderr to its end."""
        assert self._process.stderr is not None
        while line := (await self._process.stderr.readline()).decode():
            self._said.append(line)
            async with self._more:
                self._more.notify_all()

    async def link(self) -> str:
        """Return the next link for the user."""
        async with asyncio.timeout(WAIT), self._more:
            while True:
                for at in range(self._read, len(self._said) - 1):
                    if SIGN_IN in self._said[at]:
                        self._read = at + 1
                        return self._said[at + 1].strip()
                await self._more.wait()

    async def ask(self, method: str, **params: Any) -> Any:
        """Return the result of a request."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        id = next(self._ids)
        self._process.stdin.write(
            json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).encode() + b"\n"
        )
        try:
            async with asyncio.timeout(WAIT):
                while line := await self._process.stdout.readline():
                    message = json.loads(line)
                    if message.get("id") == id:
                        return message["result"]
        except TimeoutError:
            pass
        raise AssertionError("No answer. It said:\n" + "".join(self._said))

    async def start(self) -> None:
        """Initialize."""
        about = {"name": "desk", "version": "1"}
        await self.ask("initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo=about)

    async def call(self, tool: str) -> str:
        """Return the text of a tool's result."""
        return str((await self.ask("tools/call", name=tool, arguments={}))["content"][0]["text"])


@asynccontextmanager
async def remote(url: str, port: int, folder: Path) -> AsyncIterator[Remote]:
    """Run mcp-remote with the program `true` as its browser, which opens nothing and exits without an error.

    The port is for its callback. By default it takes one from the range for outgoing connections, and if it doesn't get
    the same one again, it registers anew and asks the user again.
    """
    script = HERE / "node_modules" / "mcp-remote" / "dist" / "proxy.js"
    process = await asyncio.create_subprocess_exec(
        NODE, str(script), f"{url}/mcp", str(port),
        env={**os.environ, "BROWSER": "true", "MCP_REMOTE_CONFIG_DIR": str(folder)},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    program = Remote(process)
    async with asyncio.TaskGroup() as group:
        group.create_task(program.heard())
        try:
            yield program
        finally:
            if process.returncode is None:
                process.terminate()
            async with asyncio.timeout(WAIT):
                await process.wait()


async def opened(link: str, person: Person) -> None:
    """Open a link as the user; mcp-remote may start listening for the redirect only after printing the link."""
    back = await person.visit(link)
    async with browser() as window, asyncio.timeout(WAIT):
        while True:
            try:
                assert (await window.get(back)).status_code == 200
            except httpx2.ConnectError:
                await asyncio.sleep(0.05)
            else:
                return


def spoiled(folder: Path) -> str:
    """Invalidate the stored access token of mcp-remote, and return the refresh token."""
    (kept,) = folder.rglob("*_tokens.json")
    tokens = json.loads(kept.read_text("utf-8"))
    kept.write_text(json.dumps({**tokens, "access_token": "no.longer.valid"}), "utf-8")
    return str(tokens["refresh_token"])


async def test_mcp_remote_signs_in_steps_up_and_refreshes(tmp_path: Path) -> None:
    person = Person()
    port = free_port()
    async with serving(scopes=["shop:use"]) as url:
        async with remote(url, port, tmp_path) as program:
            await opened(await program.link(), person)
            await program.start()
            assert await program.call("who") == "ada shop:use"
            async with asyncio.TaskGroup() as group:
                ordered = group.create_task(program.call("order"))
                await opened(await program.link(), person)
            assert ordered.result() == "ordered"
        first = spoiled(tmp_path)
        async with remote(url, port, tmp_path) as program:
            await program.start()
            assert await program.call("who") == "ada orders:write shop:use"
        assert spoiled(tmp_path) != first
    assert person.visits == 2
