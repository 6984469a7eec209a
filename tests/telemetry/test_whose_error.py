"""The classification of errors as the server's or the caller's."""

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from millstream import Server, Settings, ToolError
from millstream.client import Client, ServerError
from patience import WAIT


def make_server(log: Path) -> Server:
    mcp = Server("shop", settings=Settings(audit_log=str(log)))

    @mcp.tool
    def order(copies: int) -> float:
        if copies > 9:
            raise ToolError("Only 9 copies are left.")
        return 10 / copies

    @mcp.tool(timeout=0.01)
    async def slow() -> str:
        await asyncio.Event().wait()
        return ""

    @mcp.resource("shop://sales")
    def sales() -> float:
        return 1 / 0

    return mcp


async def error_type(tmp_path: Path, revision: str, name: str, **arguments: Any) -> str:
    """Return the outcome of a call in the audit log."""
    log = tmp_path / "audit.jsonl"
    log.unlink(missing_ok=True)
    async with Client(make_server(log), revision=revision, timeout=WAIT) as client:
        with suppress(ServerError):
            await (client.read(name) if "://" in name else client.call(name, raise_on_error=False, **arguments))
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    return str(next(each["outcome"] for each in lines if each.get("target") == name))


@pytest.mark.parametrize("revision", ["2025-03-26", "2026-07-28"])
async def test_server_failures_have_their_own_error_types(tmp_path: Path, revision: str) -> None:
    assert await error_type(tmp_path, revision, "order", copies=0) == "server_error"
    assert await error_type(tmp_path, revision, "slow") == "server_error"
    assert await error_type(tmp_path, revision, "shop://sales") == "-32603"


@pytest.mark.parametrize("revision", ["2025-03-26", "2026-07-28"])
async def test_caller_mistakes_are_not_counted_as_server_errors(tmp_path: Path, revision: str) -> None:
    assert await error_type(tmp_path, revision, "order", copies=10) == "tool_error"
    assert await error_type(tmp_path, revision, "order") in ("tool_error", "-32602")
    assert await error_type(tmp_path, revision, "shop://nothing") in ("-32602", "-32002")
