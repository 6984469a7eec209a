"""The page about errors lists every code in the sources."""

import re

import pytest

import millstream
from millstream._http import websocket as socket
from millstream._protocol import errors
from millstream._transports import open_streams
from millstream._transports import websocket as dialect
from millstream.client import _errors as client_errors
from millstream.extensions.events import _catalog
from problem_kinds import KINDS
from processes import ROOT

pytestmark = pytest.mark.check

PAGE = (ROOT / "docs/reference/errors.md").read_text("utf-8")
SOURCES = [path.read_text("utf-8") for path in (ROOT / "src/millstream").rglob("*.py")]


def is_listed(code: object) -> bool:
    """Return whether a table of the page has a row for a code."""
    return re.search(rf"^\| `?{re.escape(str(code))}`? \|", PAGE, re.MULTILINE) is not None


def codes_in(module: object) -> set[int]:
    """Return the error codes among a module's constants."""
    return {value for name, value in vars(module).items() if name.isupper() and type(value) is int and value < -30_000}


def test_exceptions_are_listed_below_their_base_class() -> None:
    public = [getattr(millstream, name) for name in millstream.__all__]
    client = [each for name, each in vars(client_errors).items() if not name.startswith("_") and name[0].isupper()]
    kinds = {each for each in (*public, *client) if isinstance(each, type) and issubclass(each, Exception)}
    path: list[str] = []
    listed: dict[str, str] = {}
    for indent, name in re.findall(r"^( *)- `(\w+)`: ", PAGE, re.MULTILINE):
        path[len(indent) // 2 :] = [name]
        listed[name] = "".join(path[-2:-1])
    bases = {each: [base.__name__ for base in each.__mro__[1:] if base in kinds] for each in kinds}
    assert listed == {each.__name__: (found or [""])[0] for each, found in bases.items()}


def test_json_rpc_codes_are_listed() -> None:
    modules = (errors, open_streams, dialect, _catalog)
    codes = set().union(*map(codes_in, modules))
    assert len(codes) > 15
    assert [code for code in codes if not is_listed(code)] == []


def test_problem_types_are_listed() -> None:
    assert [kind.slug for kind in KINDS if not is_listed(kind.slug)] == []


def test_oauth_errors_are_listed() -> None:
    named = {error for text in SOURCES for error in re.findall(r'OAuthError\(\s*"(\w+)"', text)}
    assert {"invalid_grant", "invalid_target"} <= named
    assert [error for error in named if not is_listed(error)] == []


def test_close_codes_are_listed() -> None:
    named = {value for name, value in vars(socket).items() if name.isupper() and type(value) is int}
    codes = {code for code in named if 1000 < code < 1100}
    assert codes == {1001, 1003, 1008, 1009, 1011, 1012, 1013}
    assert [code for code in codes if not is_listed(code)] == []


def test_statuses_are_listed() -> None:
    sent = {int(each) for text in SOURCES for each in re.findall(r"(?:refusal|plain_problem)\(\s*(\d{3}),", text)}
    assert {400, 404, 421, 503} <= sent
    assert [status for status in sent if not is_listed(status)] == []


def test_quoted_messages_exist() -> None:
    text = re.sub(r'"\s*\n?\s*f?"', "", "".join(SOURCES))
    quoted = [each.split("…")[0].strip() for each in re.findall(r"^\| `([A-Z][^`]{12,})`", PAGE, re.MULTILINE)]
    assert len(quoted) > 12
    assert [each for each in quoted if each not in text] == []


def test_quoted_statuses_exist() -> None:
    text = re.sub(r'"\s*\n?\s*[fb]*"', "", "".join(SOURCES))
    quoted = [each.split("…")[0].strip() for each in re.findall(r'^\| \d{3} \| "([^"]+)"', PAGE, re.MULTILINE)]
    assert quoted
    assert [each for each in quoted if each not in text] == []
