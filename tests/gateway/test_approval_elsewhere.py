"""Answers to approvals that are sent again from another network address."""

import json
from typing import Any

from millstream import Server
from millstream.gateway import ToolPolicy, UpstreamPolicy
from patience import WAIT
from wire import ask_asgi, encode_headers, per_request, routing


async def test_answer_without_sign_in_counts_once_from_all_addresses() -> None:
    calls, shop = list[int](), Server("shop")

    @shop.tool
    def order(copies: int) -> str:
        """Order a book."""
        calls.append(copies)
        return "ordered"

    front = Server("front")
    front.upstream("s", shop, policy=UpstreamPolicy(tools={"order": ToolPolicy(approve=True)}), start_timeout=WAIT)
    fields = encode_headers({"host": "127.0.0.1", **routing("tools/call", "s_order")})

    async def call(peer: str, **answers: Any) -> Any:
        params = {"name": "s_order", "arguments": {"copies": 1}, **answers}
        body = json.dumps(per_request("tools/call", params, elicitation={})).encode()
        return (await ask_asgi(front, "POST", "/mcp", fields, body, peer=peer)).message["result"]

    async with front.running():
        asked = await call("192.0.2.1")
        (key,) = asked["inputRequests"]
        answers = {"inputResponses": {key: {"action": "accept"}}, "requestState": asked["requestState"]}
        for peer in ("192.0.2.1", "192.0.2.1", "198.51.100.2", "203.0.113.3"):
            await call(peer, **answers)
    assert calls == [1]
