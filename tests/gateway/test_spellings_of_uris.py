"""Spellings of a denied URI that servers of the official SDK's version 1 read as that URI."""

import asyncio

import pytest

from millstream import Client, Server
from millstream.client import ServerError
from millstream.gateway import UpstreamPolicy
from patience import WAIT
from processes import ROOT

pytestmark = pytest.mark.server

PYTHON = str(ROOT / ".venv-mcp1" / "bin" / "python")
PROGRAM = """
from mcp.server.fastmcp import FastMCP

s = FastMCP("books")

@s.resource("book://{shelf}/{title}")
def book(shelf: str, title: str) -> str:
    return f"{shelf} {title}"

@s.resource("https://private.example/plan")
def plan() -> str:
    return "private plan"

@s.resource("file:///private/plan")
def file() -> str:
    return "private plan"

s.run("stdio")
"""
DENIED = UpstreamPolicy(deny=("book://private/*", "https://private.example/*", "file:///private/*"))


@pytest.mark.parametrize("prefix", ["", "u"])
async def test_whatwg_spellings_of_a_denied_uri_are_rejected(prefix: str) -> None:
    """Servers of the SDK's version 1 parse URIs as browsers do, which drops tabs, line breaks, and soft hyphens."""
    front, p = Server("front"), f"{prefix}/" if prefix else ""
    front.upstream("u", [PYTHON, "-c", PROGRAM], prefix=prefix, policy=DENIED, start_timeout=WAIT, timeout=WAIT)
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
                read.append((revision, f"{uri!r}: {found}"))
    assert read == []
