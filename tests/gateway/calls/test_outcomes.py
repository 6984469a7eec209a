"""Tools that report an error in their result, in the audit log and the metrics."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.strangers import stranger
from millstream import Server, Settings, Text, ToolResult
from millstream.client import Client, ServerError
from millstream.gateway import UpstreamPolicy
from patience import WAIT

pytestmark = pytest.mark.server

BLOCKS = [{"type": "text", "text": 'x "isError":true'}]
RESULTS: dict[str, Any] = {
    "soft": {"content": BLOCKS, "isError": True},
    "early": {"isError": True, "content": BLOCKS, "structuredContent": {"isError": False}},
    "fine": {"content": BLOCKS, "isError": False, "structuredContent": {"isError": True}},
}
TOOLS = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in (*RESULTS, "hard")]}


def upstream(name: str) -> list[str]:
    call = {"result": RESULTS[name]} if name in RESULTS else {"error": {"code": -32000, "message": "boom"}}
    return stranger({"tools": {}}, {"tools/list": {"result": TOOLS}, "tools/call": call})


def make_server(tmp_path: Path, **options: Any) -> Server:
    settings = Settings(audit_log=str(tmp_path / "audit.jsonl"))
    mcp = Server("front", serve="rest metrics", settings=settings)

    @mcp.tool
    def own() -> ToolResult:
        return ToolResult([Text("no")], is_error=True)

    for name in (*RESULTS, "hard"):
        mcp.upstream(name, upstream(name), prefix=name, start_timeout=WAIT, **options)
    return mcp


def outcomes(tmp_path: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text("utf-8").splitlines()]
    return {each["target"]: each.get("outcome", "") for each in lines if each["method"] == "tools/call"}


EXPECTED = {
    "own": "tool_error",
    "soft_soft": "tool_error",
    "early_early": "tool_error",
    "fine_fine": "",
    "hard_hard": "-32000",
}


@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
@pytest.mark.parametrize("options", [{}, {"policy": UpstreamPolicy(result_bytes=1000)}], ids=["plain", "policy"])
async def test_failed_tools_are_in_the_audit_log(tmp_path: Path, options: dict[str, Any], revision: str) -> None:
    async with Client(make_server(tmp_path, **options), revision=revision, timeout=WAIT) as client:
        for name in EXPECTED:
            with suppress(ServerError):
                await client.call(name, raise_on_error=False)
    assert outcomes(tmp_path) == EXPECTED


async def test_failed_tools_are_in_the_metrics(tmp_path: Path) -> None:
    mcp = make_server(tmp_path)
    async with mcp.running(), httpx2.AsyncClient(transport=httpx2.ASGITransport(mcp)) as http:
        for name in EXPECTED:
            await http.post(f"http://127.0.0.1/tools/{name}", json={})
        metrics = (await http.get("http://127.0.0.1/metrics")).text
    counted = [each for each in metrics.splitlines() if each.startswith("mcp_server_operation_duration_seconds_count")]
    failed = {name: any(f'"{name}"' in each and 'error_type="' in each for each in counted) for name in EXPECTED}
    assert failed == {name: bool(outcome) for name, outcome in EXPECTED.items()}
    assert outcomes(tmp_path) == EXPECTED


@pytest.mark.parametrize("name", ["soft", "early", "fine"])
async def test_failed_tools_of_a_relayed_server_are_in_the_audit_log(tmp_path: Path, name: str) -> None:
    mcp = Server("front", settings=Settings(audit_log=str(tmp_path / "audit.jsonl")))
    mcp.upstream(name, upstream(name), prefix="", start_timeout=WAIT)
    async with Client(mcp, timeout=WAIT) as client:
        await client.call(name, raise_on_error=False)
    assert outcomes(tmp_path) == {name: EXPECTED[f"{name}_{name}"]}
