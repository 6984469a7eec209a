import re

from cases import for_each
from millstream._web.pages import asset, pages
from millstream.auth._sign_in import _REQUEST_PATHS

CALL = re.compile(
    r"(?<![\w.#])(?<!function )(?:fetch(?:Json)?|post|new Feed|new WebSocket)"
    r"\(\s*(?:new URL\()?((?:`[^`]*`|\"[^\"]*\"|[^,)\s])+)"
)
SCRIPTS = sorted(path for path in pages() if path.endswith(".js"))
OPEN = {"/livez", "/sign-out"}
"""What anybody may ask."""
NAMED = {
    ("chat/playground.js", "address"): ["/chat/playground/talk"],
    ("docs/operation.js", "path"): ["/tools/x"],
    ("dom.js", "path"): [],
    ("hub.js", "String(this.#url"): ["/ws"],
    ("hub.js", "path"): ["/publish", "/members"],
    ("hub.js", "this.#url"): ["/ws"],
    ("hub.js", "url"): [],
    ("inspect/sign-in.js", "route(server"): ["/inspect/sign-in/x"],
    ("mcp/transports.js", "this.#postUrl"): ["/mcp"],
    ("mcp/transports.js", "this.#url"): ["/mcp", "/inspect/via/x", "/ws"],
    ("shell/connection.js", "path"): [],
}
"""What is called by a name, in which file: the paths that it stands for, where the caller doesn't write them down."""
ELSEWHERE = {"inspect/exports.js"}
"""What these write is run by others."""
DEVELOPING = {"/inspect/log"}
"""`millstream dev` serves these to this machine, without a cookie."""
BY_HAND = {"/approvals/", "/connections", "/inspect/app", "/mcp/sse/"}
"""Paths that a form, a frame, or an operator's own page requests with the same cookie."""


def called(script: str) -> list[str]:
    """The paths that a script calls."""
    name = script.removeprefix("/assets/")
    found: list[str] = []
    for target in CALL.findall(asset(script).body.decode()):
        if target[0] in '"`':
            found.append("/" + re.split(r"[?$]", target[1:-1])[0])
        else:
            assert (name, target) in NAMED, f"{name} calls {target}: say in NAMED which path that is."
            found += NAMED[name, target]
    return found


def accepted(path: str) -> bool:
    """Whether the cookie counts for a path."""
    return path in OPEN or any(path.startswith(each) if each.endswith("/") else path == each for each in _REQUEST_PATHS)


@for_each("script", [each for each in SCRIPTS if each.removeprefix("/assets/") not in ELSEWHERE])
def test_pages_call_only_what_their_cookie_allows(script: str) -> None:
    assert [path for path in called(script) if not accepted(path) and path not in DEVELOPING] == []


def test_cookie_allows_only_requests_that_pages_make() -> None:
    paths = {path for script in SCRIPTS if script.removeprefix("/assets/") not in ELSEWHERE for path in called(script)}
    needless = [
        each
        for each in _REQUEST_PATHS
        if not any(path.startswith(each) if each.endswith("/") else path == each for path in paths)
    ]
    assert set(needless) == BY_HAND


def test_named_page_calls_exist() -> None:
    told = {
        (script.removeprefix("/assets/"), target)
        for script in SCRIPTS
        for target in CALL.findall(asset(script).body.decode())
        if target[0] not in '"`' and script.removeprefix("/assets/") not in ELSEWHERE
    }
    assert told == set(NAMED)
