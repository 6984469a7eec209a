"""Strategies for client input: nearly valid messages and headers, and arbitrary bytes.

Each member of a message is valid, invalid, or absent, so most examples pass some checks and fail a later one.
"""

import json
import re
from typing import Any

from hypothesis import strategies as st

from millstream._protocol.revisions import ALL
from strategies import json_values, texts
from wire import META

REVISIONS = [revision.date for revision in ALL]
METHODS = sorted({method for revision in ALL for method in revision.requests})
NOTIFICATIONS = ["notifications/initialized", "notifications/cancelled", "notifications/progress", "notifications/x"]
TOOLS = ["add", "ask", "sampler", "routed", "refuses", "nothing"]
"""Names at the shop of the bad input; `breaks` and `lies` log on purpose."""

TELLING = [
    None, True, False, 0, 1, -1, 1.0, 1.5, -0.0, 2**31, 2**53 + 1, 2**63, 2**64, -(2**64), 1e308,
    "", "x", "é", "\0", "\n", "1", "null", "a" * 300,
    [], [None], [[], {}], ["a", 1, {}], {}, {"": {}}, {"a": 1}, {"a": {"b": [1, "c"]}},
]  # fmt: skip
"""A value of every kind, and those that readers confuse or can't hold."""
junk = st.one_of(st.sampled_from(TELLING), st.sampled_from(TELLING), json_values)
versions = st.sampled_from([*REVISIONS, "2099-01-01", "draft", ""])
ids = st.one_of(st.integers(), st.text(max_size=8), st.sampled_from([0, "", 2**64, "a"]))


def mostly(good: st.SearchStrategy[Any], bad: st.SearchStrategy[Any] = junk) -> st.SearchStrategy[Any]:
    """Draw a valid value in most examples."""
    return st.one_of(good, good, good, good, bad)


def members(required: dict[str, Any], optional: dict[str, Any] | None = None) -> st.SearchStrategy[dict[str, Any]]:
    """Draw an object, nearly always with the required members."""
    whole = st.fixed_dictionaries(required, optional=optional or {})
    holey = st.fixed_dictionaries({}, optional={**required, **(optional or {})})
    return st.one_of(whole, whole, whole, holey)


capabilities = mostly(
    st.fixed_dictionaries(
        {},
        optional={
            **{name: mostly(st.just({})) for name in ("sampling", "elicitation", "roots", "extensions")},
            "experimental": st.sampled_from([{}, {"x": "y" * 3_000}, {"x": {"y": "é" * 3_000}}]),
        },
    )
)
names = st.one_of(texts, st.sampled_from(["n" * 256, "n" * 257, "é" * 5_000]))
metas = members(
    {f"{META}protocolVersion": mostly(versions), f"{META}clientCapabilities": capabilities},
    {
        f"{META}clientInfo": mostly(
            st.fixed_dictionaries(
                {"name": names, "version": names},
                optional={"title": mostly(names), "websiteUrl": mostly(texts), "icons": junk},
            )
        ),
        f"{META}logLevel": mostly(st.sampled_from(["debug", "error", "loud", ""])),
        "progressToken": mostly(ids),
        "x": junk,
    },
)
arguments = mostly(
    st.fixed_dictionaries(
        {},
        optional={
            "a": mostly(st.integers()), "b": mostly(st.integers()), "topic": mostly(texts),
            "region": mostly(st.sampled_from(["EU", "US", "é"])), "name": mostly(texts), "x": junk,
        },
    )
)  # fmt: skip
params = st.fixed_dictionaries(
    {},
    optional={
        "name": mostly(st.sampled_from([*TOOLS, "greet"])),
        "arguments": arguments,
        "uri": mostly(st.sampled_from(["shop://sign", "shop://x", "x"])),
        "cursor": mostly(texts),
        "level": mostly(st.sampled_from(["debug", "loud"])),
        "ref": mostly(st.just({"type": "ref/prompt", "name": "greet"})),
        "argument": mostly(st.just({"name": "name", "value": "x"})),
        "protocolVersion": mostly(versions),
        "capabilities": capabilities,
        "clientInfo": mostly(st.just({"name": "t", "version": "1"})),
        "requestId": mostly(ids),
        "requestState": mostly(texts),
        "inputResponses": junk,
        "_meta": mostly(metas),
        "x": junk,
    },
)


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a request, notification, or response of any era."""
    message: dict[str, Any] = {"jsonrpc": draw(mostly(st.just("2.0")))}
    if draw(mostly(st.just(True), st.just(False))):
        message["id"] = draw(mostly(ids))
    if draw(mostly(st.just(True), st.just(False))):
        message["method"] = draw(mostly(st.sampled_from([*METHODS, *NOTIFICATIONS, "no/such"])))
    if draw(mostly(st.just(True), st.just(False))):
        message["params"] = draw(mostly(params))
    message |= draw(
        st.fixed_dictionaries({}, optional={"result": junk, "error": junk, "x": junk})
        if draw(st.integers(0, 9)) == 0
        else st.just({})
    )
    return message


messages: st.SearchStrategy[Any] = st.one_of(requests(), requests(), requests(), st.lists(requests(), max_size=3), junk)


@st.composite
def calls(draw: st.DrawFn, *tools: str, inputs: st.SearchStrategy[Any] = arguments) -> dict[str, Any]:
    """Draw a `tools/call` that the usual way might take."""
    given = {
        "name": draw(mostly(st.sampled_from([*TOOLS, *tools]))),
        "arguments": draw(inputs),
        **draw(st.fixed_dictionaries({}, optional={"requestState": mostly(texts), "inputResponses": junk, "x": junk})),
    }
    if draw(mostly(st.just(True), st.just(False))):
        given["_meta"] = draw(mostly(metas))
    for name in draw(st.lists(st.sampled_from(sorted(given)), max_size=1)):
        del given[name]
    return {"jsonrpc": "2.0", "id": draw(mostly(ids)), "method": "tools/call", "params": given}


@st.composite
def encoded_messages(draw: st.DrawFn, source: st.SearchStrategy[Any] = messages) -> bytes:
    """Draw a message as bytes, sometimes damaged."""
    value = draw(source)
    text = json.dumps(
        value, ensure_ascii=draw(st.booleans()), separators=draw(st.sampled_from([(",", ":"), (" , ", " : ")]))
    )
    body = text.encode("utf-8", "surrogatepass")
    kind = draw(st.integers(0, 4))
    if kind > 1:
        return body
    if kind == 1:  # another spelling, or a second member of the same name
        first = draw(
            st.sampled_from([b'"name"', b'"_meta"', b'"arguments"', b'"id"', b'"method"', b'"params"', b'"a"'])
        )
        value = draw(st.sampled_from(SPELLINGS))
        return re.sub(first + rb" ?: ?", lambda found: found[0] + value + b"," + found[0], body, count=1)
    place = draw(st.integers(0, len(body)))
    wound = draw(
        st.one_of(st.binary(max_size=6), st.sampled_from([b"\\u0000", b",", b"}", b'"id":null,', b"NaN", b"1e999"]))
    )
    return body[:place] + wound + body[place + draw(st.integers(0, 3)) :]


SPELLINGS = [
    b"1.0", b"1.00", b"-0", b"-0.0", b"1e0", b"10E-1", b"1e2", b"1e400", b"9" * 5_000, b"18446744073709551616",
    b"null", b"{}", b"[]", b'"add"', b'"\\u0061dd"', b'"tools\\/call"', b'"\xff"', b'"\\ud83d"',
    b'"' + b"\\u0041" * 2_700 + b'"', b'"' + b"\\u0041" * 2_800 + b'"',
]  # fmt: skip

bodies = st.one_of(encoded_messages(), encoded_messages(), st.binary(max_size=64))

VALUES: dict[bytes, list[bytes]] = {
    b"content-type": [b"application/json", b"application/json; charset=utf-8", b"text/plain", b""],
    b"accept": [
        b"application/json, text/event-stream",
        b"application/json",
        b"text/event-stream",
        b"text/html",
        b"*/*",
        b"",
    ],
    b"mcp-protocol-version": [date.encode() for date in [*REVISIONS, "2099-01-01", "x", ""]],
    b"mcp-method": [method.encode() for method in [*METHODS, "x", ""]],
    b"mcp-name": [name.encode() for name in [*TOOLS, "greet", "shop://sign", "=?base64?YWRk?=", "=?base64?!?=", ""]],
    b"mcp-param-region": [b"EU", b"US", b"=?base64?RVU=?="],
    b"mcp-session-id": [b"x", b"", b"A" * 120],
    b"last-event-id": [b"x", b"", b"a.b.1", b"a.main.1"],
    b"origin": [b"http://localhost:1", b"http://evil.example", b"null"],
    b"sec-fetch-site": [b"cross-site", b"none"],
    b"content-encoding": [b"identity", b"gzip"],
    b"content-length": [b"0", b"10", b"99999999999"],
}
"""Headers that decide something, with values that do."""

PRINTABLE = {9, *range(0x20, 0x7F), *range(0x80, 0x100)}
field_values = st.binary(max_size=40).map(lambda raw: bytes(byte for byte in raw if byte in PRINTABLE))
"""What a parser lets through: no control characters but a tab."""


@st.composite
def fields(draw: st.DrawFn, values: dict[bytes, list[bytes]]) -> list[tuple[bytes, bytes]]:
    """Draw headers in any order, some repeated, mostly with a usable Host and content type."""
    names = draw(st.lists(st.sampled_from(sorted(values)), max_size=6))
    given = [(name, draw(mostly(st.sampled_from(values[name]), field_values))) for name in names]
    usual = [
        (b"host", b"127.0.0.1"),
        (b"content-type", b"application/json"),
        (b"accept", b"application/json, text/event-stream"),
    ]
    kept = [field for field in usual if field[0] not in names and draw(mostly(st.just(True), st.just(False)))]
    return kept + given


headers = fields(VALUES)
