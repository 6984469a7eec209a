"""JSON-RPC confusion (CVE-2026-27896, GO-2026-4770): a body has one meaning, and no request is dropped silently.

Keys are compared exactly, the last duplicate counts everywhere, and invalid ids get an error. Two official servers
respond with 202 to a request whose id is NaN, null, true, or an object, and the client waits forever.
"""

import json

import pytest

from bad_input.shop import make_shop
from cases import for_each
from four_workers import ON_FOUR
from wire import META, PER_REQUEST, POST, per_request, routing, run_wire

LIKE_METHOD = [
    "Method",
    "METHOD",
    "method ",
    " method",
    "method\\u0000",
    "\\u0000method",
    "metho\\u0064\\u200b",
    "\uff4dethod",
]


@pytest.mark.parametrize("way", ["lane", "asgi", ON_FOUR])
@for_each("key", LIKE_METHOD)
async def test_similar_json_keys_are_not_treated_as_equal(way: str, key: str) -> None:
    async with run_wire(make_shop(), way) as wire:
        alone = f'{{"jsonrpc":"2.0","id":1,"{key}":"ping"}}'.encode()
        assert (await wire.post(alone)).error == (400, -32600, "none")
        beside = f'{{"jsonrpc":"2.0","id":1,"method":"ping","{key}":"tools/list"}}'.encode()
        assert (await wire.post(beside)).message["result"] == {}


@pytest.mark.parametrize("way", ["asgi", ON_FOUR])
async def test_escaped_keys_equal_plain_keys(way: str) -> None:
    """RFC 8259 §8.3: strings are compared after unescaping."""
    async with run_wire(make_shop(), way) as wire:
        body = b'{"\\u006asonrpc":"2.0","i\\u0064":1,"meth\\u006fd":"p\\u0069ng"}'
        assert (await wire.post(body)).message == {"jsonrpc": "2.0", "id": 1, "result": {}}


@pytest.mark.parametrize("way", ["asgi", ON_FOUR])
@for_each("name", ["Params", "params\\u0000"])
async def test_keys_similar_to_params_are_ignored(way: str, name: str) -> None:
    async with run_wire(make_shop(), way) as wire:
        body = f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","{name}":{{"name":"refuses"}}}}'.encode()
        assert (await wire.post(body)).error[1] == -32602


DUPLICATES = {
    "method": (b'"id":1,"method":"tools/list","method":"ping"', {"jsonrpc": "2.0", "id": 1, "result": {}}),
    "id": (b'"id":1,"id":2,"method":"ping"', {"jsonrpc": "2.0", "id": 2, "result": {}}),
    "id of another type": (b'"id":1,"id":"1","method":"ping"', {"jsonrpc": "2.0", "id": "1", "result": {}}),
    "params": (b'"id":1,"method":"ping","params":{"x":1},"params":{}', {"jsonrpc": "2.0", "id": 1, "result": {}}),
}


@for_each("name", DUPLICATES)
@pytest.mark.parametrize("way", ["lane", "asgi", ON_FOUR])
async def test_last_duplicate_key_wins(way: str, name: str) -> None:
    members, expected = DUPLICATES[name]
    async with run_wire(make_shop(), way) as wire:
        assert (await wire.post(b'{"jsonrpc":"2.0",' + members + b"}")).message == expected


@pytest.mark.parametrize("way", ["asgi", ON_FOUR])
@for_each("last", ["null", "true", "1.5", "{}", "NaN"])
async def test_valid_first_duplicate_does_not_fix_an_invalid_last(way: str, last: str) -> None:
    async with run_wire(make_shop(), way) as wire:
        reply = await wire.post(f'{{"jsonrpc":"2.0","id":1,"id":{last},"method":"ping"}}'.encode())
        assert reply.error == (400, -32700 if last == "NaN" else -32600, "none")


@pytest.mark.parametrize("way", ["lane", "asgi", ON_FOUR])
async def test_fast_and_exact_path_use_the_same_duplicate(way: str) -> None:
    async with run_wire(make_shop(), way) as wire:
        text = json.dumps(per_request("tools/call", {"name": "add", "arguments": {"a": 1, "b": 2}}))
        spellings = {
            "name": ('"name": "add"', '"name": "refuses", "name": "add"'),
            "method": ('"method": "tools/call"', '"method": "tools/list", "method": "tools/call"'),
            "arguments": ('"arguments": {"a": 1, "b": 2}', '"arguments": 7, "arguments": {"a": 9, "a": 1, "b": 2}'),
            "version": (f'"{META}protocolVersion"', f'"{META}protocolVersion": "x", "{META}protocolVersion"'),
        }
        for old, new in spellings.values():
            body = text.replace(old, new)
            assert body != text
            for headers in (routing("tools/call", "add"), routing("tools/call", "=?base64?YWRk?=")):
                reply = await wire.post(body.encode(), headers)
                assert reply.message["result"]["content"][0]["text"] == "3"


@for_each("request_id", ["NaN", "null", "true", "{}", "[]", "1.5", "1e400"])
@pytest.mark.parametrize("way", ["lane", "asgi", ON_FOUR])
async def test_requests_with_invalid_ids_are_not_notifications(way: str, request_id: str) -> None:
    async with run_wire(make_shop(), way) as wire:
        plain = f'{{"jsonrpc":"2.0","id":{request_id},"method":"ping"}}'
        meta = f'{{"{META}protocolVersion":"{PER_REQUEST}","{META}clientCapabilities":{{}}}}'
        modern = f'{{"jsonrpc":"2.0","id":{request_id},"method":"tools/call","params":{{"name":"add","_meta":{meta}}}}}'
        for body, headers in ((plain, POST), (modern, routing("tools/call", "add"))):
            reply = await wire.post(body.encode(), headers)
            assert reply.status == 400
            assert reply.error[1] in (-32600, -32700)
