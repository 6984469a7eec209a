from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import pytest

from cases import for_each
from issuing_world import BACK, OTHER, RESOURCE, URL, Browser, Desk, authorization, challenge, claims_of
from millstream import auth
from millstream.auth._authorization_server.records import check_redirect, named_by

REFUSED = [
    "javascript:alert(1)", "data:text/html,x", "http://app.example.com/back", "https://app.example.com/back#f",
    "https://*.example.com/back", "https://user@app.example.com/back", "file:///etc/passwd",
    "myapp:/back", "myapp:back", "",
    "//x",
    "https://app.example.com/a b", "https://app.example.com/\nx", "https://app.example.com/é", "vbscript:x",
    "about:blank",
    "http://127.0.0.1.evil.example/", "http://localhost.evil.example/", "http://[::2]/", "https:///x",
    "https://a:99999/",
    "https://app.example.com\\@evil.example/", "blob:https://app.example.com/x",
    *(f"{each}://app.example.com/back" for each in (
        "JavaScript", "javascript", "data", "file", "vbscript", "blob", "about", "view-source", "filesystem", "ws",
        "ftp", "httpx", "https-app", "http+app", "hxxps", "htp", "shttp", "https.example.app", "ms-msdt", "search-ms",
        "web+app", "mailto", "ssh", "intent", "chrome-extension", "ab", "1app", "my_app",
        # Regressions: each was accepted as an app's scheme.
        "googlechrome", "GoogleChromes", "x-safari-https", "touch-http", "firefox", "brave", "res", "www.example.com",
        "jnlp", "x-man-page", "itms-services", "shortcuts", "afp", "cifs", "gopher",
    )),
    "cursor://", "cursor:///oauth/callback", "cursor://user@anysphere.cursor-mcp/cb", "cursor://a b/cb", "cursor://a/b#c",
    "https://app.example.com/" + "a" * 2000,
]  # fmt: skip


@for_each("uri", REFUSED)
def test_invalid_redirect_uris_are_rejected(uri: str) -> None:
    """RFC 9700 §2.1, RFC 8252 §7."""
    with pytest.raises(ValueError, match="redirect URI"):
        check_redirect(uri)


@for_each(
    "uri",
    [
        BACK, "http://127.0.0.1:1234/cb", "http://[::1]/cb", "http://localhost:1/", "com.example.app:/cb",
        "cursor://anysphere.cursor-mcp/oauth/callback", "vscode://publisher.extension/callback?x=1", "zed://oauth/back",
        "vscode-insiders://publisher.extension/callback", "systemprompt://oauth/callback",
    ],
)  # fmt: skip
def test_valid_redirect_uris_are_accepted(uri: str) -> None:
    """RFC 8252 §7.1 and §7.3."""
    check_redirect(uri)


@for_each(("registered", "asked", "same"), [
    (BACK, BACK, True), (BACK, BACK + "/", False), (BACK, BACK + "?x=1", False), (BACK, BACK.upper(), False),
    (BACK, "https://app.example.com:443/back", False), (BACK, "https://app.example.com/%62ack", False),
    ("http://127.0.0.1/cb", "http://127.0.0.1:5000/cb", True),
    ("http://127.0.0.1:1/cb", "http://127.0.0.1:2/cb", True),
    ("http://127.0.0.1/cb", "http://127.0.0.1:5000/other", False),
    ("http://127.0.0.1/cb", "http://localhost:5/cb", False),
    ("http://127.0.0.1/cb", "https://127.0.0.1:5000/cb", False), ("http://[::1]/cb", "http://[::1]:9/cb", True),
    ("http://127.0.0.1/cb", "http://127.0.0.1:5@evil.example/cb", False),
    ("http://127.0.0.1/cb", "http://127.0.0.1:5/cb#", False),
    ("http://127.0.0.1/cb", "http://[::1", False), ("http://127.0.0.1/cb", "http://127.0.0.1:x/cb", False),
    ("http://127.0.0.1/cb?a=1", "http://127.0.0.1:5/cb?a=2", False),
    ("https://app.example.com:1/cb", "https://app.example.com:2/cb", False),
])  # fmt: skip
def test_redirect_uris_match_exactly_except_loopback_ports(registered: str, asked: str, same: bool) -> None:
    """OAuth 2.1 §2.3.1 and RFC 8252 §7.3."""
    assert named_by((registered,), asked) is same


@for_each("changes", [
    {"client_id": "nobody"}, {"client_id": None}, {"redirect_uri": "https://evil.example/"},
    {"redirect_uri": BACK + "/x"},
    {"client_id": ["{id}", "{id}"]}, {"redirect_uri": [BACK, BACK]},
    {"redirect_uri": [BACK, "https://evil.example/"]},
])  # fmt: skip
async def test_unknown_clients_and_redirect_uris_never_cause_a_redirect(desk: Desk, changes: dict[str, Any]) -> None:
    """OAuth 2.1 §4.1.2.1."""
    id = (await desk.register())["client_id"]
    changes = {name: [each.replace("{id}", id) for each in value] if name == "client_id" and value and value != "nobody"
               else value for name, value in changes.items()}  # fmt: skip
    reply = await desk.ask("GET", "/authorize", query=authorization(**{"client": id, **_named(changes)}))
    assert reply.status == 400
    assert "location" not in reply.headers
    assert "evil.example" not in reply.text


def _named(changes: dict[str, Any]) -> dict[str, Any]:
    return {
        "client" if name == "client_id" and not isinstance(value, list) else name: value
        for name, value in changes.items()
    }


def knows(desk: Desk) -> Desk:
    """Return an authorization server with a configured client."""
    return Desk(desk.services.store, clients=[auth.client("ours", redirect_uris=[BACK])])


async def test_errors_do_not_redirect_to_self_registered_uris(
    desk: Desk,
) -> None:
    """RFC 9700 §4.11.2."""
    id = (await desk.register())["client_id"]
    browser = Browser(desk)
    for changes in ({"scope": 'a"b'}, {"prompt": "none"}, {"response_type": "token"}):
        page = await browser.open(id, **changes)
        assert (page.status, "location" in page.headers) == (400, False)
        assert "Go back to app.example.com" in page.text
        assert f'href="{BACK}?error=' in page.text
    await browser.answer(await browser.open(id))
    assert (await browser.open(id, scope='a"b')).answer["error"] == "invalid_scope"
    native = (await desk.register(redirect_uris=["http://127.0.0.1/cb"]))["client_id"]
    reply = await desk.ask(
        "GET", "/authorize", query=authorization(native, redirect_uri="http://127.0.0.1:9/cb", scope='a"b')
    )
    assert reply.answer["error"] == "invalid_scope"


@for_each(("changes", "error"), [
    ({"response_type": "token"}, "unsupported_response_type"), ({"response_type": None}, "invalid_request"),
    ({"response_type": "code id_token"}, "unsupported_response_type"),
    ({"response_mode": "fragment"}, "invalid_request"),
    ({"code_challenge": None}, "invalid_request"), ({"code_challenge_method": "plain"}, "invalid_request"),
    ({"code_challenge_method": None}, "invalid_request"), ({"code_challenge": "short"}, "invalid_request"),
    ({"code_challenge": "é" * 43}, "invalid_request"), ({"resource": "https://evil.example/mcp"}, "invalid_target"),
    ({"resource": f"{RESOURCE}2"}, "invalid_target"), ({"resource": f"{RESOURCE}#f"}, "invalid_target"),
    ({"resource": "mcp"}, "invalid_target"), ({"resource": "https://["}, "invalid_target"),
    ({"resource": "https://[x]/mcp"}, "invalid_target"), ({"resource": "://"}, "invalid_target"),
    ({"scope": " ".join(f"s{n}" for n in range(65))}, "invalid_scope"),
    ({"scope": 'a"b'}, "invalid_scope"),
    ({"scope": ["orders:read", "orders:write"]}, "invalid_request"), ({"prompt": "none"}, "login_required"),
    ({"prompt": "none login"}, "invalid_request"), ({"prompt": "create"}, "invalid_request"),
    ({"request": "x"}, "request_not_supported"), ({"request_uri": "urn:x"}, "request_not_supported"),
    ({"code_challenge": [challenge(), challenge()]}, "invalid_request"),
])  # fmt: skip
async def test_invalid_requests_redirect_with_error_state_and_issuer(
    desk: Desk, changes: dict[str, Any], error: str
) -> None:
    """OAuth 2.1 §4.1.2.1, RFC 7636 §4.4.1, RFC 8707 §2, RFC 9207 §2."""
    desk = knows(desk)
    reply = await desk.ask("GET", "/authorize", query=authorization("ours", **changes))
    assert reply.status == 303
    assert reply.location.startswith(f"{BACK}?")
    assert (reply.answer["error"], reply.answer["state"], reply.answer["iss"]) == (error, "st", URL)
    assert "code" not in reply.answer


@for_each("state", [b"a b+c%&=?#/\\", "schön 🌊".encode(), b"\xff\xfe\x00\x01", b"x" * 4096, b"<script>"])
async def test_state_is_returned_byte_for_byte(desk: Desk, state: bytes) -> None:
    """OAuth 2.1 §4.1.2."""
    desk = knows(desk)
    query = authorization("ours", state=None) + "&state=" + quote(state, safe="")
    page = await Browser(desk).ask("GET", "/authorize", query=query)
    browser = Browser(desk)
    page = await browser.ask("GET", "/authorize", query=query)
    for reply in (await browser.answer(page), await desk.ask("GET", "/authorize", query=query + "&prompt=none")):
        raw = [each for each in urlsplit(reply.location).query.split("&") if each.startswith("state=")]
        assert raw == ["state=" + quote(state, safe="")]


async def test_missing_state_is_not_added_and_long_state_is_rejected(desk: Desk) -> None:
    desk, id = knows(desk), "ours"
    assert "state" not in await desk.sign_in(id, state=None)
    reply = await desk.ask("GET", "/authorize", query=authorization(id, state="x" * 4097))
    assert reply.answer["error"] == "invalid_request"


async def test_duplicate_state_is_rejected(desk: Desk) -> None:
    """OAuth 2.1 §3.1."""
    desk, id = knows(desk), "ours"
    reply = await desk.ask("GET", "/authorize", query=authorization(id, state=["a", "b"]))
    assert reply.answer == {
        "error": "invalid_request",
        "error_description": reply.answer["error_description"],
        "iss": URL,
    }


async def test_redirect_uri_query_is_kept(desk: Desk) -> None:
    """OAuth 2.1 §2.3."""
    id = (await desk.register(redirect_uris=[f"{BACK}?tenant=1"]))["client_id"]
    answer = await desk.sign_in(id, redirect_uri=f"{BACK}?tenant=1")
    assert {"tenant", "code", "state", "iss"} == set(answer)


async def test_single_redirect_uri_may_be_omitted(desk: Desk) -> None:
    """OAuth 2.1 §2.3.3."""
    id = (await desk.register())["client_id"]
    code = (await desk.sign_in(id, redirect_uri=None))["code"]
    assert (await desk.token(id, code, redirect_uri=None)).status == 200
    two = (await desk.register(redirect_uris=[BACK, BACK + "2"]))["client_id"]
    assert (await desk.ask("GET", "/authorize", query=authorization(two, redirect_uri=None))).status == 400


@for_each("resource", [RESOURCE + "/", RESOURCE.replace("https://mcp", "HTTPS://MCP"), None])
async def test_resources_are_compared_as_canonical_urls(desk: Desk, resource: str | None) -> None:
    """MCP 2025-06-18, basic/authorization."""
    id = (await desk.register())["client_id"]
    assert claims_of((await desk.tokens(id, resource=resource))["access_token"])["aud"] == RESOURCE


async def test_token_request_can_narrow_several_resources(desk: Desk) -> None:
    """RFC 8707 §2.2."""
    id = (await desk.register())["client_id"]
    both = [RESOURCE, OTHER]
    assert claims_of((await desk.tokens(id, resource=both))["access_token"])["aud"] == both
    code = (await desk.sign_in(id, resource=both))["code"]
    given = (await desk.token(id, code, resource=OTHER)).message
    assert claims_of(given["access_token"])["aud"] == OTHER
    assert await desk.who(given["access_token"]) is None
    again = (await desk.refresh(id, given["refresh_token"], resource=RESOURCE)).message
    assert await desk.who(again["access_token"]) is not None
    narrow = (await desk.tokens(id, resource=OTHER))["refresh_token"]
    for resource in (RESOURCE, "https://[", "https://a]b/mcp"):
        assert (await desk.refresh(id, narrow, resource=resource)).error == "invalid_target"


async def test_unknown_scopes_are_dropped_if_others_are_known(desk: Desk) -> None:
    """OAuth 2.1 §3.2.2.1."""
    id = (await desk.register())["client_id"]
    given = await desk.tokens(id, scope="openid orders:read offline_access")
    assert given["scope"] == "orders:read"


async def test_queries_with_a_hundred_parameters_are_rejected(desk: Desk) -> None:
    query = urlencode([(f"p{number}", "x") for number in range(100)])
    assert (await desk.ask("GET", "/authorize", query=query)).status == 400
