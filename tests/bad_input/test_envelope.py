"""Bodies that aren't JSON, or aren't JSON-RPC messages, get the exact code, status, and id, and keep the session.

Every body is sent in a 2025-11-25 session, without a session, and with the headers of 2026-07-28. The rules are MCP
2025-11-25, basic, and 2026-07-28, basic/versioning. The rest is our choice.
"""

import json
from typing import Any

from cases import for_each
from wire import POST, Wire, per_request, request, routing

PING = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
NO_ID = "none"
ERAS = ["session", "sessionless", "per-request"]

NOT_JSON = {
    "nothing": b"",
    "blanks": b" \r\n\t",
    "an open brace": b"{",
    "a cut message": PING[:-1],
    "a cut string": b'{"jsonrpc":"2.0","id":"1',
    "two messages": PING + PING,
    "rest behind the message": PING + b" x",
    "a word": b"ping",
    "single quotes": b"{'jsonrpc':'2.0'}",
    "a trailing comma": b'{"jsonrpc":"2.0","id":1,"method":"ping",}',
    "a comment": b"/* hello */" + PING,
    "two byte order marks": b"\xef\xbb\xbf" * 2 + PING,
    "UTF-16": PING.decode().encode("utf-16"),
    "NaN as id": b'{"jsonrpc":"2.0","id":NaN,"method":"ping"}',
    "NaN in a parameter": b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":NaN}}',
    "Infinity": b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":-Infinity}}',
    "a leading zero": b'{"jsonrpc":"2.0","id":01,"method":"ping"}',
    "a bare point": b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":1.}}',
    "a line end in a string": b'{"jsonrpc":"2.0","id":1,"method":"pi\nng"}',
    "an unknown escape": b'{"jsonrpc":"2.0","id":1,"method":"p\\xing"}',
    "bad UTF-8": b'{"jsonrpc":"2.0","id":1,"method":"\xff"}',
    "bad UTF-8 in an unknown member": b'{"jsonrpc":"2.0","id":1,"method":"ping","x":"\xc3\x28"}',
    "an overlong form": b'{"jsonrpc":"2.0","id":1,"method":"ping","x":"\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"jsonrpc":"2.0","id":1,"method":"ping","x":"\xed\xa0\x80"}',
    "a zero byte": PING + b"\x00",
    "deep arrays": b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":' + b"[" * 63 + b"]" * 63 + b"}}",
    "deep objects": b'{"x":' * 65 + b"1" + b"}" * 65,
    "arrays without end": b"[" * 100_000,
}
"""400 and -32700, whatever the era. The last three nest deeper than 64."""

NOT_A_MESSAGE: dict[str, Any] = {
    "a number": 1,
    "a string": "ping",
    "null": None,
    "true": True,
    "an empty object": {},
    "no jsonrpc": {"id": 1, "method": "ping"},
    "JSON-RPC 1.0": {"jsonrpc": "1.0", "id": 1, "method": "ping"},
    "jsonrpc as number": {"jsonrpc": 2.0, "id": 1, "method": "ping"},
    "jsonrpc as null": {"jsonrpc": None, "id": 1, "method": "ping"},
    "id null": {"jsonrpc": "2.0", "id": None, "method": "ping"},
    "id true": {"jsonrpc": "2.0", "id": True, "method": "ping"},
    "id a fraction": {"jsonrpc": "2.0", "id": 1.5, "method": "ping"},
    "id an object": {"jsonrpc": "2.0", "id": {}, "method": "ping"},
    "id an array": {"jsonrpc": "2.0", "id": [1], "method": "ping"},
    "no method": {"jsonrpc": "2.0", "id": 1},
    "method a number": {"jsonrpc": "2.0", "id": 1, "method": 1},
    "method null": {"jsonrpc": "2.0", "id": 1, "method": None},
    "method empty": {"jsonrpc": "2.0", "id": 1, "method": ""},
    "params an array": {"jsonrpc": "2.0", "id": 1, "method": "ping", "params": [1]},
    "params a string": {"jsonrpc": "2.0", "id": 1, "method": "ping", "params": "x"},
    "result and error": {"jsonrpc": "2.0", "id": 1, "result": {}, "error": {"code": 1, "message": ""}},
    "an answer without id": {"jsonrpc": "2.0", "result": {}},
    "Method instead of method": {"jsonrpc": "2.0", "id": 1, "Method": "ping"},
    "a batch must not be empty": [],
    "a batch of an envelope": [per_request("tools/list")],
}
"""400 and -32600, whatever the era."""


async def headers_of(wire: Wire, era: str) -> dict[str, str]:
    """What a client of an era sends with `ping`."""
    if era == "session":
        return await wire.initialize()
    return routing("ping") if era == "per-request" else dict(POST)


async def still_works(wire: Wire, era: str, headers: dict[str, str]) -> None:
    """The next message of the same client is answered."""
    if era == "per-request":
        reply = await wire.post(per_request("tools/list", id="next"), routing("tools/list"))
    else:
        reply = await wire.post(request("ping", id="next"), headers)
    assert (reply.status, reply.message["id"], "result" in reply.message) == (200, "next", True)


@for_each("era", ERAS)
@for_each("name", NOT_JSON)
async def test_invalid_json_is_a_parse_error_and_keeps_the_session(wire: Wire, era: str, name: str) -> None:
    headers = await headers_of(wire, era)
    reply = await wire.post(NOT_JSON[name], headers)
    assert reply.error == (400, -32700, NO_ID)
    await still_works(wire, era, headers)


HALVES: dict[str, tuple[bytes, Any]] = {
    "in a value": (rb'"id":7,"method":"tools/call","params":{"name":"a","arguments":{"x":"\ud800"}}', 7),
    "in a name": (rb'"id":7,"method":"tools/call","params":{"name":"a","arguments":{"x\udc00":1}}', 7),
    "in the method": (rb'"id":7,"method":"tools/\udfff"', 7),
    "beside an id of text": (rb'"id":"\u00e9","method":"ping","params":{"x":"\ud800\ud800"}', "é"),
    "in the id": (rb'"id":"\ud800","method":"ping"', NO_ID),
    "beside an invalid id": (rb'"id":[7],"method":"ping","params":{"x":"\ud800"}', NO_ID),
    "beside no id": (rb'"method":"notifications/\ud800"', NO_ID),
    "in an answer without an id": (rb'"result":{"x":"\ud800"}', NO_ID),
    "beside NaN": (rb'"id":7,"method":"ping","params":{"x":"\ud800","y":NaN}', NO_ID),
}
"""Half of a surrogate pair fits JSON's grammar, so the message has an id."""


@for_each("name", HALVES)
async def test_error_about_half_a_character_has_the_id_of_its_request(wire: Wire, name: str) -> None:
    rest, id = HALVES[name]
    headers = await headers_of(wire, "session")
    reply = await wire.post(b'{"jsonrpc":"2.0",%b}' % rest, headers)
    assert reply.error == (400, -32700, id)
    await still_works(wire, "session", headers)


@for_each("era", ERAS)
@for_each("name", NOT_A_MESSAGE)
async def test_invalid_messages_are_rejected_and_keep_the_session(wire: Wire, era: str, name: str) -> None:
    headers = await headers_of(wire, era)
    reply = await wire.post(NOT_A_MESSAGE[name], headers)
    assert reply.error == (400, -32600, NO_ID)
    await still_works(wire, era, headers)


DEEPEST = b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":' + b"[" * 62 + b"]" * 62 + b"}}"
SHALLOW = {
    "nested to the limit": DEEPEST,
    "many arrays side by side": b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":[' + b"[]," * 999 + b"[]]}}",
    "brackets in a string": b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"' + b"[{" * 999 + b'"}}',
    "brackets behind an escaped quote": b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"\\"'
    + b"[" * 99
    + b'"}}',
}


@for_each("name", SHALLOW)
async def test_nesting_deeper_than_64_is_rejected(wire: Wire, name: str) -> None:
    reply = await wire.post(SHALLOW[name], await wire.initialize())
    assert (reply.status, reply.message["id"], reply.message["result"]) == (200, 1, {})


async def test_last_duplicate_envelope_key_wins(wire: Wire) -> None:
    body = b'{"jsonrpc":"1.0","jsonrpc":"2.0","id":1,"id":"two","method":"tools/list","method":"ping"}'
    reply = await wire.post(body, await wire.initialize())
    assert (reply.status, reply.message) == (200, {"jsonrpc": "2.0", "id": "two", "result": {}})


IDS = ["", "0", "é☃", "a\x00b", "x" * 10_000, 0, -1, 2**53 + 1, 2**63, 2**64, 10**30]


@for_each("request_id", IDS, ids=lambda value: repr(value)[:24])
@for_each("era", ERAS)
async def test_ids_are_returned_unchanged(wire: Wire, era: str, request_id: Any) -> None:
    """JSON-RPC 2.0, section 5; id 0 and an empty string are ids."""
    if era == "per-request":
        reply = await wire.post(per_request("tools/list", id=request_id), routing("tools/list"))
    else:
        reply = await wire.post(request("ping", id=request_id), await headers_of(wire, era))
    assert reply.status == 200
    assert f'"id":{json.dumps(request_id, ensure_ascii=False)}'.replace("\x00", "\\u0000").encode() in reply.body
