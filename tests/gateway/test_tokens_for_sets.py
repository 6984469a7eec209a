"""Tokens that were issued for the address of a set."""

import json

from auth_world import run_guarded
from issuer_world import AUDIENCE, ISSUER, claims, key_set, token
from millstream import Server, auth
from wire import LATEST_HANDSHAKE, POST, request


async def test_token_for_one_address_is_rejected_at_another() -> None:
    mcp = Server("shop", auth=auth.jwt(issuer=ISSUER, audience=AUDIENCE, jwks=key_set()), serve="all")
    mcp.tool(lambda: "read", name="read")
    mcp.tool(lambda: "deleted", name="delete")
    mcp.offer("/mcp/readers", allow=["read"])
    mcp.offer("/mcp/writers", allow=["delete"])
    headers = {name.replace("-", "_"): value for name, value in POST.items()}
    readers = token(claims(sub="ada", aud=f"{AUDIENCE}/readers"))
    about = {"protocolVersion": LATEST_HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    body = json.dumps(request("initialize", about, 0)).encode()
    found = dict[str, int]()
    async with run_guarded(mcp) as world:
        for path in ("/mcp/readers", "/mcp/writers", "/mcp"):
            found[path] = (await world.ask(readers, "POST", path, body, **headers)).status
        found["/tools/delete"] = (
            await world.ask(readers, "POST", "/tools/delete", b"{}", content_type="application/json")
        ).status
    assert found == {"/mcp/readers": 200, "/mcp/writers": 401, "/mcp": 401, "/tools/delete": 401}
