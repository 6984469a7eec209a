"""Tests of who may write to the archive, with keys that exist only in the test."""

# region: test
import httpx2
import pytest
from archive import mcp

from millstream import Server, auth

ADA, BOB = "ada-has-this-test-key", "bob-has-this-test-key"
CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "write", "arguments": {"name": "list", "text": "Milk"}},
}


@pytest.mark.parametrize(("key", "status"), [(ADA, 200), (BOB, 403), ("another", 403)])
async def test_writing_requires_the_scope(key: str, status: int) -> None:
    protected = Server("archive", auth=auth.keys(named_keys={"ada": (ADA, ["notes:write"]), "bob": BOB}))
    protected.mount(mcp)
    transport = httpx2.ASGITransport(protected)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        reply = await http.post("/mcp", json=CALL, headers={"Authorization": f"Bearer {key}"})
    assert reply.status_code == status


# endregion
