"""Texts of an upstream in the headers of REST responses and of the inspector's: one line, or none."""

from typing import Any

from cases import for_each
from client.misbehaving_servers import ReceivedRequest, misbehaving, with_handshake
from millstream import Server, Settings
from wire import run_wire

TEXTS = [
    "x\r\nx-injected: 1",
    "x\nx-injected: 1",
    "x\rx-injected: 1",
    'x>; rel="next", <y',
    "x\0",
    "\u010a",
    "\x85\u2028",
]
HEADERS = {b"host": b"127.0.0.1", b"content-type": b"application/json"}


@for_each("text", TEXTS)
async def test_results_add_nothing_to_the_headers_of_rest_responses(text: str) -> None:
    meta = {"streamUrl": text, "clientId": text, text: text}

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "tools/list":
            await asked.result({"tools": [{"name": "t", "inputSchema": {"type": "object"}}]})
        else:
            content: list[Any] = [{"type": "text", "text": text}]
            await asked.result({"content": content, "structuredContent": {"a": 1}, "_meta": meta})

    async with misbehaving(with_handshake(behave)) as upstream:
        gateway = Server("gateway", serve="rest")
        gateway.upstream("up", upstream.url, prefix="")
        async with run_wire(gateway, "lane") as wire:
            reply = await wire.ask("POST", "/tools/t", [*HEADERS.items()], b"{}")
            assert (reply.status, reply.body) == (200, b'{"a": 1}')
            assert {*reply.headers} <= {b"date", b"content-type", b"content-length", b"connection", b"vary"}
        await gateway.stop()


NAMES = ("Content-Type", "Mcp-Session-Id", "Retry-After", "WWW-Authenticate", "Mcp-Protocol-Version", "Location")


@for_each("name", NAMES)
async def test_responses_add_nothing_to_the_headers_of_the_inspector(name: str) -> None:
    texts = [text for text in TEXTS if not {*"\r\n\0"} & {*text}] + ["x\tx-injected: 1", "\xff\x80", "x, y; z"]
    for text in texts:

        async def behave(asked: ReceivedRequest, value: str = text) -> None:
            more = f"{name}: {'Bearer ' if name.startswith('WWW') else ''}".encode() + value.encode() + b"\r\n"
            await asked.write(b"HTTP/1.1 401 No\r\nContent-Length: 2\r\n" + more + b"\r\n{}")

        async with misbehaving(behave) as upstream:
            mcp = Server("ours", serve="web", settings=Settings(inspect_urls=(upstream.url,)))
            async with run_wire(mcp, "lane") as wire:
                reply = await wire.ask("POST", "/inspect/via/1", [*HEADERS.items()], b"{}")
                assert (reply.status, reply.body) == (401, b"{}")
                assert b"x-injected" not in reply.headers
            await mcp.stop()


@for_each("asked", ["a\tb", "x-a, y: z", "x\x80", 'x"y', "x;y"])
async def test_preflights_repeat_only_names_of_headers(asked: str) -> None:
    mcp = Server("ours", settings=Settings(allowed_origins=("https://a.example",)))
    async with run_wire(mcp, "lane") as wire:
        fields = {b"origin": b"https://a.example", b"access-control-request-method": b"POST"}
        wanted = {**HEADERS, **fields, b"access-control-request-headers": asked.encode("latin-1")}
        reply = await wire.ask("OPTIONS", "/mcp", [*wanted.items()])
        assert reply.headers[b"access-control-allow-origin"] == b"https://a.example"
        assert asked.encode("latin-1") not in reply.headers[b"access-control-allow-headers"]
    await mcp.stop()
