"""Spellings of a denied URI that servers of the official SDKs for Python and TypeScript read as that URI."""

import asyncio

import pytest

from millstream import Client, Server
from millstream.client import ServerError
from millstream.gateway import UpstreamPolicy
from patience import WAIT
from processes import NODE, ROOT

pytestmark = pytest.mark.server

PYTHON = """
from mcp.server.fastmcp import FastMCP

s = FastMCP("books")

@s.resource("book://{shelf}/{title}")
def book(shelf: str, title: str) -> str:
    return f"{shelf} {title}"

@s.resource("https://private.example/plan")
def plan() -> str:
    return "private plan"

@s.resource("http://127.0.0.1/plan")
def local() -> str:
    return "private plan"

@s.resource("file:///private/plan")
def file() -> str:
    return "private plan"

s.run("stdio")
"""
TYPESCRIPT = """
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(process.argv[1]);
const load = (name) => import(pathToFileURL(require.resolve(`@modelcontextprotocol/sdk/server/${name}.js`)).href);
const { McpServer, ResourceTemplate } = await load("mcp");
const { StdioServerTransport } = await load("stdio");

const server = new McpServer({ name: "books", version: "1" });
const text = (uri, text) => ({ contents: [{ uri: uri.href, text }] });
const book = new ResourceTemplate("book://{shelf}/{title}", { list: undefined });
server.registerResource("book", book, {}, async (uri, { shelf, title }) => text(uri, `${shelf} ${title}`));
server.registerResource("plan", "https://private.example/plan", {}, async (uri) => text(uri, "private plan"));
server.registerResource("local", "http://127.0.0.1/plan", {}, async (uri) => text(uri, "private plan"));
server.registerResource("file", "file:///private/plan", {}, async (uri) => text(uri, "private plan"));
await server.connect(new StdioServerTransport());
"""
COMMANDS = {
    "python-1": [str(ROOT / ".venv-mcp1" / "bin" / "python"), "-c", PYTHON],
    "typescript-1": [
        NODE, "--input-type=module", "-e", TYPESCRIPT,
        str(ROOT / "tests" / "conformance" / "package.json"),
    ],
}  # fmt: skip
DENIED = UpstreamPolicy(
    deny=("book://private/*", "https://private.example/*", "http://127.0.0.1/*", "file:///private/*")
)


@pytest.mark.parametrize("sdk", COMMANDS)
@pytest.mark.parametrize("prefix", ["", "u"])
async def test_whatwg_spellings_of_a_denied_uri_are_rejected(prefix: str, sdk: str) -> None:
    """These servers parse URIs as browsers do, which drops tabs, line breaks, soft hyphens, and spaces at the ends."""
    front, p = Server("front"), f"{prefix}/" if prefix else ""
    front.upstream("u", COMMANDS[sdk], prefix=prefix, policy=DENIED, start_timeout=WAIT, timeout=WAIT)
    spellings = [
        f"book://{p}pri\nvate/plan",
        f"book://{p}private\t/plan",
        f"book://{p}private\r/plan",
        f" book://{p}private/plan",
        f"\x01book://{p}private/plan",
        f"bo\nok://{p}private/plan",
        f"book:\n//{p}private/plan",
        f"https:{p}private.example/plan",
        f"https:/{p}private.example/plan",
        f"https://{p}p\u00adrivate.example/plan",
        f"https://{p}private.exa\tmple/plan",
        f"https://{p}\u1d56rivate.example/plan",
        f"https://{p}private\ufe0f.example/plan",
        f"http://{p}127.1/plan",
        f"http://{p}0x7f000001/plan",
        f"file:///{p}priv\nate/plan",
    ]
    read = list[tuple[str, str]]()
    for revision in "2025-11-25", "2026-07-28":
        async with asyncio.timeout(WAIT), Client(front, revision=revision) as client:
            for uri in spellings:
                try:
                    found = await client.read(uri)
                except ServerError:
                    continue
                if any(each.text == "private plan" for each in found):
                    read.append((revision, uri))
    assert read == []


@pytest.mark.parametrize("sdk", COMMANDS)
@pytest.mark.parametrize("prefix", ["", "u"])
async def test_whatwg_spellings_do_not_leave_the_allowed_folder(prefix: str, sdk: str) -> None:
    front, p = Server("front"), f"{prefix}/" if prefix else ""
    allowed = UpstreamPolicy(allow=("file:///public/*", "https://private.example/public/*"))
    front.upstream("u", COMMANDS[sdk], prefix=prefix, policy=allowed, start_timeout=WAIT, timeout=WAIT)
    spellings = [
        f"file:///{p}public/.\n./private/plan",
        f"file:///{p}public/.\t./private/plan",
        f"file:///{p}public/%2\ne./private/plan",
        f"https://{p}private.example/public/.\n./plan",
    ]
    read = list[tuple[str, str]]()
    for revision in "2025-11-25", "2026-07-28":
        async with asyncio.timeout(WAIT), Client(front, revision=revision) as client:
            for uri in spellings:
                try:
                    found = await client.read(uri)
                except ServerError:
                    continue
                if any(each.text == "private plan" for each in found):
                    read.append((revision, uri))
    assert read == []
