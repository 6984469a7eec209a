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
const folder = new ResourceTemplate("file:///shelf/{+path}", { list: undefined });
server.registerResource("folder", folder, {}, async (uri) => text(uri, uri.pathname));
const site = new ResourceTemplate("https://shelf.example/{+path}", { list: undefined });
server.registerResource("site", site, {}, async (uri) => text(uri, uri.pathname));
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
ALLOWED = UpstreamPolicy(allow=("file:///public/*", "https://private.example/public/*"))
DENIED_SPELLINGS, OUTSIDE = (
    [
        "book://{p}pri\nvate/plan",
        "book://{p}private\t/plan",
        "book://{p}private\r/plan",
        " book://{p}private/plan",
        "\x01book://{p}private/plan",
        "bo\nok://{p}private/plan",
        "book:\n//{p}private/plan",
        "https:{p}private.example/plan",
        "https:/{p}private.example/plan",
        "https://{p}p\u00adrivate.example/plan",
        "https://{p}private.exa\tmple/plan",
        "https://{p}\u1d56rivate.example/plan",
        "https://{p}private\ufe0f.example/plan",
        "http://{p}127.1/plan",
        "http://{p}0x7f000001/plan",
        "file:///{p}priv\nate/plan",
    ],
    [
        "file:///{p}public/.\n./private/plan",
        "file:///{p}public/.\t./private/plan",
        "file:///{p}public/%2\ne./private/plan",
        "https://{p}private.example/public/.\n./plan",
    ],
)
"""URIs of the denied books and files, and of files outside the allowed folder. `{p}` is the prefix."""


@pytest.mark.parametrize("sdk", COMMANDS)
@pytest.mark.parametrize("prefix", ["", "u"])
@pytest.mark.parametrize(
    ("policy", "spellings"), [(DENIED, DENIED_SPELLINGS), (ALLOWED, OUTSIDE)], ids=["denied", "outside"]
)
async def test_whatwg_spellings_of_hidden_uris_are_rejected(
    policy: UpstreamPolicy, spellings: list[str], prefix: str, sdk: str
) -> None:
    """These servers parse URIs as browsers do, which drops tabs, line breaks, soft hyphens, and spaces at the ends."""
    front, p = Server("front"), f"{prefix}/" if prefix else ""
    front.upstream("u", COMMANDS[sdk], prefix=prefix, policy=policy, start_timeout=WAIT, timeout=WAIT)
    read = list[tuple[str, str]]()
    for revision in "2025-11-25", "2026-07-28":
        async with asyncio.timeout(WAIT), Client(front, revision=revision) as client:
            for uri in (each.replace("{p}", p) for each in spellings):
                try:
                    found = await client.read(uri)
                except ServerError:
                    continue
                if any(each.text == "private plan" for each in found):
                    read.append((revision, uri))
    assert read == []


FOLDERS = ("file:///shelf/{+path}", "https://shelf.example/{+path}")
PUBLIC = UpstreamPolicy(allow=(*FOLDERS, "file:///shelf/public/*"))
FORBIDDEN = UpstreamPolicy(deny=("file:///shelf/private*", "https://shelf.example/private*"))


@pytest.mark.parametrize(
    ("policy", "uri"),
    [
        (PUBLIC, "file:///shelf/public/../private?/../public/x"),
        (PUBLIC, "file:///shelf/public/../private#/../public/x"),
        (FORBIDDEN, "file:///shelf/a\\..\\private?/../../../"),
        (FORBIDDEN, "https://shelf.example/a\\..\\private?/../../../"),
        (FORBIDDEN, "https://shelf.example:0443/private"),
    ],
)
async def test_queries_and_ports_do_not_hide_a_path(policy: UpstreamPolicy, uri: str) -> None:
    """`URL` of JavaScript reads each as the private path, with a query or a fragment after it."""
    front = Server("front")
    front.upstream("u", COMMANDS["typescript-1"], prefix="", policy=policy, start_timeout=WAIT, timeout=WAIT)
    async with asyncio.timeout(WAIT), Client(front) as client:
        try:
            found = [each.text for each in await client.read(uri)]
        except ServerError:
            return
    assert not {"/shelf/private", "/private", "/shelf/private/"}.intersection(found)


CLOSED = UpstreamPolicy(
    deny=(
        "file:///c:/Private/*", "file:///private/*", "https://private.example/*", "https://shelf.example/private/*",
        "https://b\u00fccher.example/*", "http://127.0.0.1/*", "book://private/*", "*/.env", "file:///?:/secret.txt",
    )
)  # fmt: skip
OPEN = UpstreamPolicy(allow=("file:///public/*", "https://shelf.example/public/*", "book://public/*"))


@pytest.mark.parametrize(
    ("policy", "readable", "hidden"),
    [
        (
            CLOSED,
            (
                "file:///c:/public/x", "file:///public/\u4f1a\u8bae\uff1a1", "https://b.example/a;b", "book://\u00e4/x",
                "file:///c:/public/notes~2024.md",
            ),
            (
                "file:///C:/private/x", "file:///c:/PRIVATE/x", "file:///c%7C/private/x", "file:///c:private/x",
                "file:///c:/private./x", "file:///c:/private%20/x", "file:///c:/priv~1/x",
                "file:///c:/private::$INDEX_ALLOCATION/x", "file:///c:/public/..%5Cprivate/x",
                "file:///%5C%5C%3F%5Cc:%5Cprivate%5Cx", "file://127.0.0.1/private/x", "file:///\uff50rivate/x",
                "file:///public/\uff0e\uff0e/private/x", "file:///public/%EF%BC%8E%EF%BC%8E/private/x",
                "file:///private\uff0fx", "file:///private%E2%81%84x", "file:///public/..\uff0fprivate/x",
                "file:///public/%c0%ae%c0%ae/private/x", "file:///public/..%c0%afprivate/x",
                "https://user@private.example/x", "https://user:pw@private.example/x",
                "https://shelf.example@private.example/x", "https://xn--bcher-kva.example/x",
                "https://XN--BCHER-KVA.example/x", "https://private\uff0eexample/x", "https://private%2eexample/x",
                "http://[::ffff:7f00:1]/x", "http://[0:0:0:0:0:ffff:7f00:1]/x", "https://u@shelf.example/private/x",
                "https://shelf.example/private;a/x", "https://shelf.example/public/..;/private/x",
                "file://localhost/C:/PRIVAT~1/x", "file://127.0.0.1/c:/private./x", "file://localhost/c:/x::$DATA",
                "file:///c:/app/.ENV", "file://localhost/C:/app/.Env", "file:///C:/SECRET.txt",
                "file:///C:/secret.txt?x", "book://user@private/x", "book://\uff50rivate/x", "book://public/..%2f..%2fprivate/x",
            ),
        ),
        (
            OPEN,
            ("file:///public/a%20b", "https://shelf.example/public/a;b", "book://public/a/../b"),
            (
                "file:///public/\uff0e\uff0e/x", "file:///public/..\uff0fx", "file:///public/..%E2%88%95x",
                "file:///public/\u2025/x", "file:///public/.%C2%AD./x", "file:///public/..;/x", "file:///public/..;a=1/x",
                "file:///public/..%00/x", "file:///public/..%20/x", "file:///public/%C0%AE%C0%AE/x",
                "https://shelf.example/public/..%EF%BC%BCx", "https://shelf.example/public/..;/x",
                "https://u@shelf.example/public/../x", "book://public/..%2f..%2fx",
            ),
        ),
    ],
    ids=["denied", "outside"],
)  # fmt: skip
async def test_no_spelling_that_some_programs_read_as_a_hidden_uri_is_forwarded(
    policy: UpstreamPolicy, readable: tuple[str, ...], hidden: tuple[str, ...]
) -> None:
    """Of Windows, of programs that don't use Unicode, of Java's servlets, and of lenient decoders."""
    shelf, read = Server("shelf"), list[str]()
    for template in "file://{+rest}", "https://{+rest}", "http://{+rest}", "book://{+rest}":

        @shelf.resource(template, name=template.partition(":")[0])
        def find(rest: str) -> str:
            return rest

    front = Server("front")
    front.upstream("shelf", shelf, prefix="", policy=policy, start_timeout=WAIT, timeout=WAIT)
    async with asyncio.timeout(WAIT), Client(front) as client:
        for uri in (*readable, *hidden):
            try:
                await client.read(uri)
            except ServerError:
                continue
            read.append(uri)
    assert read == [*readable]
