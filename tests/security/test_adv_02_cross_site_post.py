"""Cross-site POST without a preflight (CVE-2026-33252): no form or script on another page can call a tool.

Pages can send three content types without a preflight; browsers mark their requests with `Sec-Fetch-Site`.
"""

import pytest

from bad_input.shop import make_shop
from cases import for_each
from four_workers import ON_FOUR
from wire import POST, Wire, per_request, request, routing, run_wire

SIMPLE_TYPES = [None, "", "text/plain", "text/plain; charset=application/json", "application/x-www-form-urlencoded",
                "multipart/form-data; boundary=x", "text/json", "application/json-seq"]  # fmt: skip
CALL = {"name": "add", "arguments": {"a": 1, "b": 2}}


async def calls(wire: Wire) -> list[tuple[object, dict[str, str], str]]:
    """Return a call of each era, and a message of the HTTP+SSE transport."""
    return [
        (request("tools/call", CALL), dict(POST), "/mcp"),
        (request("tools/call", CALL), await wire.initialize(), "/mcp/"),
        (per_request("tools/call", CALL), routing("tools/call", "add"), "/mcp"),
        (request("tools/call", CALL), dict(POST), "/messages/?session_id=" + "0" * 32),
    ]


@pytest.mark.parametrize("way", ["lane", "asgi", ON_FOUR])
@for_each("content_type", SIMPLE_TYPES)
async def test_simple_content_types_get_415_before_the_body(way: str, content_type: str | None) -> None:
    async with run_wire(make_shop(), way) as wire:
        for message, headers, path in await calls(wire):
            given = {name: value for name, value in headers.items() if name != "content-type"}
            if content_type is not None:
                given["content-type"] = content_type
            for body in (message, b"}{"):
                assert (await wire.post(body, given, path)).status == 415, (path, body)


@pytest.mark.parametrize("way", ["lane", "asgi", ON_FOUR])
async def test_cross_site_requests_without_an_allowed_origin_get_403(way: str) -> None:
    async with run_wire(make_shop(), way) as wire:
        for message, headers, path in await calls(wire):
            crossing = {**headers, "sec-fetch-site": "cross-site"}
            assert (await wire.post(message, crossing, path)).status == 403
            assert (await wire.post(message, {**crossing, "origin": "https://evil.example"}, path)).status == 403
            for site in ("same-origin", "none"):
                allowed = await wire.post(message, {**headers, "sec-fetch-site": site}, path)
                assert allowed.status == (404 if "messages" in path else 200)
