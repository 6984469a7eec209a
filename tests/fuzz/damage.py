"""Damage: one or two members of a valid request are replaced. The result is plausible, so it passes the reader's first
checks.
"""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote_from_bytes

import msgspec
from hypothesis import strategies as st

from fuzz.people import FORM, RequestParts
from wire import encode_request

ODD = ["", " ", "\0", "%00", "../..", "é😀", "-1", "9" * 30, "1e999", "null", "true", "{}", "[]", "a" * 5000, "\ud800",
       "'\"<>", "a b", "*", "none", "https://evil.example/", "http://[::1", "javascript:alert(1)", "x\r\ny: z",
       "Bearer", "a.b.c", "=", "&", ";", "@", "#", "?", "\u2028"]  # fmt: skip
LEAVES: list[Any] = [None, True, False, -1, 2**63, 1e300, 0.5, "", "x" * 5000, [], {}, [[]], {"": None}, "\ud800",
                     "é\0", [1] * 300, {"$ref": "#"}]  # fmt: skip
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "post"]
TAILS = ["/", "//", "/..", "/%2e%2e", "/x", "%00", ";x", "?", "%", "/%c0%af", "#", "é"]
KINDS = [
    "",
    FORM,
    "application/json",
    "text/plain",
    "multipart/form-data; boundary=x",
    "application/json; charset=utf-16",
]

Damage = tuple[str, int, int]
"""What kind, at which place, with which value; any number is a place and a value."""


def damage_value(value: str, pick: int, others: list[str]) -> str:
    """Return a damaged value."""
    cut = pick % (len(value) + 1)
    ways: list[str] = [
        value[:cut], value[cut:], value + value, value[:cut] + "A" + value[cut + 1 :], value.upper(), value.swapcase(),
        value[::-1], f" {value}", f"{value}\t", value[:cut] + "%" + value[cut:], *ODD, *others,
    ]  # fmt: skip
    return ways[pick % len(ways)]


def _pairs(pairs: list[tuple[str, str]], place: int, pick: int, others: list[str]) -> None:
    if not pairs:
        pairs.append((ODD[place % len(ODD)], ODD[pick % len(ODD)]))
        return
    at = place % len(pairs)
    name, value = pairs[at]
    kind = pick % 8
    if kind == 0:
        del pairs[at]
    elif kind == 1:
        pairs.append((name, value))
    elif kind == 2:
        pairs[at] = (damage_value(name, pick // 8, others), value)
    else:
        pairs[at] = (name, damage_value(value, pick // 8, others))


def _query(asked: RequestParts, place: int, pick: int, others: list[str]) -> None:
    _pairs(asked.query, place, pick, others)


def _form(asked: RequestParts, place: int, pick: int, others: list[str]) -> None:
    if asked.form is not None:
        _pairs(asked.form, place, pick, others)


def _header(asked: RequestParts, place: int, pick: int, others: list[str]) -> None:
    given = list(asked.headers.items())
    _pairs(given, place, pick, others)
    asked.headers = dict(given)


def _body(asked: RequestParts, place: int, pick: int, others: list[str]) -> None:
    """Change a member of the JSON, at any depth."""
    if asked.form is None and asked.body is not None:
        asked.body = _leaf(json.loads(json.dumps(asked.body)), place, pick, others)


def _leaf(value: Any, place: int, pick: int, others: list[str]) -> Any:
    members = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    if not members or place % (len(members) + 2) == 0:
        if isinstance(value, str) and pick % 2:
            return damage_value(value, pick // 2, others)
        return LEAVES[pick % len(LEAVES)]
    key, inner = members[place % len(members)]
    if pick % 11 == 0 and isinstance(value, dict):
        del value[key]
    elif pick % 11 == 1 and isinstance(value, dict):
        value[damage_value(str(key), pick, others)] = inner
    else:
        value[key] = _leaf(inner, place // (len(members) + 2), pick, others)
    return value


def _method(asked: RequestParts, place: int, pick: int, others: list[str]) -> None:
    asked.method = METHODS[pick % len(METHODS)]


def _path(asked: RequestParts, place: int, pick: int, others: list[str]) -> None:
    cut = place % (len(asked.path) + 1)
    ways = [asked.path + TAILS[pick % len(TAILS)], asked.path[:cut] or "/", asked.path.upper(), "/" + asked.path]
    asked.path = ways[pick // len(TAILS) % len(ways)]


def _kind(asked: RequestParts, place: int, pick: int, others: list[str]) -> None:
    asked.headers["content-type"] = KINDS[pick % len(KINDS)]


DAMAGES: dict[str, Callable[[RequestParts, int, int, list[str]], None]] = {
    "query": _query, "form": _form, "header": _header, "body": _body, "method": _method, "path": _path, "kind": _kind,
}  # fmt: skip
numbers = st.integers(0, 2**20)
damages = st.lists(
    st.tuples(st.sampled_from(["query", "form", "header", "body"] * 3 + list(DAMAGES)), numbers, numbers),
    min_size=1, max_size=2,
)  # fmt: skip
cuts = st.one_of(st.just(-1), st.just(-1), st.just(-1), st.integers(0, 400))
"""Where the body ends too early or has a byte too many; -1 is nowhere."""


def request_bytes(asked: RequestParts, host: str, address: str, cut: int = -1) -> bytes:
    """Return the bytes of a request."""
    body = b""
    if asked.form is not None:
        body = _encoded(asked.form).encode()
    elif asked.body is not None:
        body = json.dumps(asked.body).encode("utf-8", "surrogatepass")
    if cut >= 0:
        body = body[:cut] if cut % 2 else body[:cut] + bytes([cut % 256]) + body[cut:]
    path = "".join(
        each if 32 < ord(each) < 127 else quote_from_bytes(each.encode("utf-8", "surrogatepass")) for each in asked.path
    )
    if asked.query:
        path += ("&" if "?" in path else "?") + _encoded(asked.query)
    fields = [(name, value) for name, value in asked.headers.items() if name.lower() not in ("host", "x-forwarded-for")]
    fields += [("host", host), ("x-forwarded-for", address)]
    raw = [(_bytes(name), _bytes(value)) for name, value in fields]
    return encode_request(asked.method, path, raw, body)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _encoded(pairs: list[tuple[str, str]]) -> str:
    return "&".join(f"{quote_from_bytes(_bytes(name))}={quote_from_bytes(_bytes(value))}" for name, value in pairs)


def damage_request(asked: RequestParts, how: list[Damage], others: list[str]) -> RequestParts:
    """Return a damaged copy."""
    copy = msgspec.structs.replace(
        asked,
        query=list(asked.query),
        headers=dict(asked.headers),
        form=None if asked.form is None else list(asked.form),
    )
    for kind, place, pick in how:
        DAMAGES[kind](copy, place, pick, others)
    return copy
