"""A program's provider issues tokens: clients sign in through it, and invalid requests are rejected."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from auth.issuing.test_official_client import BACK, Program, text
from cases import for_each
from compat.test_programs import programs, started
from issuing_world import VERIFIER, challenge
from millstream import Client
from millstream.client import MemoryTokenStore, OAuth, Options
from millstream.compat.fastmcp import (
    AuthorizationParams,
    AuthSettings,
    FastMCP,
    OAuthAuthorizationServerProvider,
    OAuthClientInformationFull,
)
from millstream.stores import StoreUnavailable
from patience import WAIT

pytestmark = pytest.mark.server
__all__ = ["programs"]


class Person:
    """A browser that follows redirects until they leave the server."""

    visits = 0

    async def visit(self, url: str) -> str:
        self.visits += 1
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(url))
        async with httpx2.AsyncClient(timeout=WAIT) as browser:
            while url.startswith(origin):
                reply = await browser.get(url)
                assert reply.status_code in (303, 307), reply.text
                url = reply.headers["location"]
        return url


@pytest.fixture(scope="module")
def url(programs: Path) -> Iterator[str]:
    """Run the program, and yield its URL."""
    with started(programs, "issues_tokens.py") as port:
        yield f"http://127.0.0.1:{port}"


async def test_client_signs_in(url: str) -> None:
    for path in ("/mcp", "/sse"):
        person = Person()
        oauth = OAuth(store=MemoryTokenStore(), redirect_handler=person.visit)
        async with Client(f"{url}{path}", options=Options(auth=oauth), timeout=WAIT) as client:
            assert (await client.call("secret")).text == "You may know it."
        assert person.visits == 1


async def test_official_client_signs_in_and_refreshes(url: str) -> None:
    program = Program(url)
    program.person = Person()  # type: ignore[assignment]  the same interface for another page
    async with program.connected() as client:
        assert text(await client.call_tool("secret", {})) == "You may know it."
    first, registered = program.kept.tokens, program.kept.client
    assert first is not None
    assert registered is not None
    program.auth.context.token_expiry_time = 1.0
    async with program.connected() as client:
        assert text(await client.call_tool("secret", {})) == "You may know it."
    second = program.kept.tokens
    assert second is not None
    assert second.refresh_token != first.refresh_token
    assert program.person.visits == 1
    async with httpx2.AsyncClient(base_url=url, timeout=WAIT) as http:
        form = {"client_id": registered.client_id, "client_secret": registered.client_secret}
        bearer = {"authorization": f"Bearer {second.access_token}"}
        assert (await http.post("/revoke", data={**form, "token": second.access_token})).json() == {}
        again = {**form, "grant_type": "refresh_token", "refresh_token": second.refresh_token}
        assert (await http.post("/token", data=again)).json()["error"] == "invalid_grant"
        async with asyncio.timeout(WAIT):  # the server drops cached verdicts about once a second
            while (await http.post("/mcp", json={}, headers=bearer)).status_code != 401:  # noqa: ASYNC110  no notification
                await asyncio.sleep(0.05)


CURSOR = ["cursor://anysphere.cursor-mcp/oauth/callback", "http://localhost:8787/callback"]


@pytest.fixture(scope="module")
def registered(url: str) -> dict[str, Any]:
    """Register a client, and return its metadata."""
    answer = httpx2.post(f"{url}/register", json={"redirect_uris": [BACK]}, timeout=WAIT)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    assert (found["scope"], found["client_secret_expires_at"]) == ("myscope", 0)
    return found


def asking(registered: dict[str, Any], **changes: str | None) -> dict[str, str]:
    """Return the parameters of an authorization request."""
    asked = {
        "client_id": registered["client_id"], "redirect_uri": BACK, "response_type": "code", "state": "s+1 &",
        "code_challenge": challenge(), "code_challenge_method": "S256", "scope": "myscope", **changes,
    }  # fmt: skip
    return {name: value for name, value in asked.items() if value is not None}


@for_each(
    ("changes", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"code_challenge": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"scope": "myotherscope"}, "invalid_scope"),
        ({"resource": "https://elsewhere.example"}, "invalid_target"),
        ({"state": "unwanted"}, "access_denied"),
    ],
)
def test_errors_redirect_to_the_client_with_state(
    url: str, registered: dict[str, Any], changes: dict[str, str], error: str
) -> None:
    """RFC 6749 §4.1.2.1."""
    asked = asking(registered, **changes)
    answer = httpx2.get(f"{url}/authorize", params=asked, timeout=WAIT)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith(f"{BACK}?")
    said = parse_qs(urlsplit(answer.headers["location"]).query)
    assert (said["error"], said["state"]) == ([error], [asked["state"]])


@for_each(
    "changes",
    [{"client_id": "nobody"}, {"client_id": "https://a.example/c.json"}, {"redirect_uri": "https://evil.example/"}],
)
def test_unregistered_redirect_uris_are_rejected(url: str, registered: dict[str, Any], changes: dict[str, str]) -> None:
    """RFC 6749 §4.1.2.1."""
    answer = httpx2.get(f"{url}/authorize", params=asking(registered, **changes), timeout=WAIT)
    assert answer.status_code == 400
    assert "location" not in answer.headers


def test_errors_do_not_redirect_to_self_registered_sites(url: str) -> None:
    """RFC 9700 §4.11.2."""
    back = "https://anywhere.example/back"
    registered = httpx2.post(f"{url}/register", json={"redirect_uris": [back]}, timeout=WAIT).json()
    asked = asking(registered, redirect_uri=back, response_type="token")
    answer = httpx2.get(f"{url}/authorize", params=asked, timeout=WAIT)
    assert "location" not in answer.headers
    assert "anywhere.example" in answer.text


async def test_codes_are_single_use_and_bound(url: str, registered: dict[str, Any]) -> None:
    """RFC 6749 §4.1.3, RFC 7636 §4.6."""
    back = await Person().visit(f"{url}/authorize?{httpx2.QueryParams(asking(registered))}")
    said = parse_qs(urlsplit(back).query)
    assert said["state"] == ["s+1 &"]
    form = {
        "grant_type": "authorization_code", "code": said["code"][0], "code_verifier": VERIFIER, "redirect_uri": BACK,
        "client_id": registered["client_id"], "client_secret": registered["client_secret"],
    }  # fmt: skip
    async with httpx2.AsyncClient(base_url=url, timeout=WAIT) as http:
        other = (
            await http.post("/register", json={"redirect_uris": [BACK], "token_endpoint_auth_method": "none"})
        ).json()
        assert "client_secret" not in other
        for changes, status, error in (
            ({"client_secret": "wrong"}, 401, "invalid_client"),
            ({"client_secret": ""}, 401, "invalid_client"),
            ({"client_id": other["client_id"], "client_secret": ""}, 400, "invalid_grant"),
            ({"code_verifier": "w" * 43}, 400, "invalid_grant"),
            ({"code_verifier": ""}, 400, "invalid_request"),
            ({"redirect_uri": f"{BACK}/other"}, 400, "invalid_grant"),
            ({"resource": "https://elsewhere.example"}, 400, "invalid_target"),
            ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ):
            refused = await http.post("/token", data={**form, **changes})
            assert (refused.status_code, refused.json()["error"]) == (status, error), changes
        tokens = (await http.post("/token", data=form)).json()
        assert (tokens["scope"], tokens["token_type"]) == ("myscope", "Bearer")
        assert (await http.post("/token", data=form)).json()["error"] == "invalid_grant"
        refresh = {**form, "grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
        wider = await http.post("/token", data={**refresh, "scope": "myscope myotherscope"})
        assert wider.json()["error"] == "invalid_scope"
        # A client can't revoke another client's token.
        await http.post("/revoke", data={"client_id": other["client_id"], "token": tokens["access_token"]})
        assert "access_token" in (await http.post("/token", data=refresh)).json()


@for_each(
    ("metadata", "error"),
    [
        ({"redirect_uris": ["javascript:alert(1)"]}, "invalid_redirect_uri"),
        ({"redirect_uris": ["http://evil.example/"]}, "invalid_redirect_uri"),
        ({"redirect_uris": [BACK, "data://app/back"]}, "invalid_redirect_uri"),
        ({"redirect_uris": ["hxxps://app.example.com/back"]}, "invalid_redirect_uri"),
        ({"redirect_uris": []}, "invalid_redirect_uri"),
        ({"redirect_uris": [BACK], "scope": "admin"}, "invalid_client_metadata"),
        ({"redirect_uris": [BACK], "scope": 7}, "invalid_client_metadata"),
        ({"redirect_uris": [BACK], "response_types": ["token"]}, "invalid_client_metadata"),
        ({"redirect_uris": [BACK], "token_endpoint_auth_method": "private_key_jwt"}, "invalid_client_metadata"),
        ({"redirect_uris": [BACK], "grant_types": ["client_credentials"]}, "invalid_client_metadata"),
    ],
)
def test_invalid_registrations_are_rejected(url: str, metadata: dict[str, Any], error: str) -> None:
    """RFC 7591 §3.2.2."""
    answer = httpx2.post(f"{url}/register", json=metadata, timeout=WAIT)
    assert (answer.status_code, answer.json()["error"]) == (400, error)


def test_editors_can_register_private_use_schemes(url: str) -> None:
    answer = httpx2.post(f"{url}/register", json={"redirect_uris": CURSOR}, timeout=WAIT)
    assert (answer.status_code, answer.json()["redirect_uris"]) == (201, CURSOR), answer.text
    asked = asking(answer.json(), redirect_uri=CURSOR[0], response_type="token")
    back = httpx2.get(f"{url}/authorize", params=asked, timeout=WAIT)
    assert back.headers["location"].startswith(f"{CURSOR[0]}?error=unsupported_response_type")


def test_metadata_matches_the_endpoints_and_allows_any_origin(url: str) -> None:
    """RFC 8414, RFC 9728."""
    answer = httpx2.get(
        f"{url}/.well-known/oauth-authorization-server", headers={"origin": "https://page.example"}, timeout=WAIT
    )
    assert answer.headers["access-control-allow-origin"]
    assert answer.json() == {
        "issuer": url,
        "authorization_endpoint": f"{url}/authorize",
        "token_endpoint": f"{url}/token",
        "registration_endpoint": f"{url}/register",
        "revocation_endpoint": f"{url}/revoke",
        "scopes_supported": ["myotherscope", "myscope"],
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": ["authorization_code", "refresh_token"],
        "token_endpoint_auth_methods_supported": ["none", "client_secret_basic", "client_secret_post"],
        "revocation_endpoint_auth_methods_supported": ["none", "client_secret_basic", "client_secret_post"],
        "code_challenge_methods_supported": ["S256"],
    }


@for_each("issuer", ["http://myapp.com", "ftp://a.example", "https://a.example/?q"])
def test_invalid_issuers_are_rejected(issuer: str) -> None:
    """RFC 8414 §2."""

    class Nobody(OAuthAuthorizationServerProvider[Any, Any, Any]):
        pass

    with pytest.raises(ValueError, match="issuer_url"):
        FastMCP("x", auth_server_provider=Nobody(), auth=AuthSettings(issuer_url=issuer))


async def test_provider_receives_the_requested_resource() -> None:
    """RFC 8707 §2.1."""
    received: list[AuthorizationParams] = []

    class Recorder(OAuthAuthorizationServerProvider[Any, Any, Any]):
        async def get_client(self, client_id: str) -> OAuthClientInformationFull:
            return OAuthClientInformationFull(
                client_id=client_id, redirect_uris=[BACK], scope="myscope", token_endpoint_auth_method="none"
            )

        async def authorize(self, client: OAuthClientInformationFull, params: AuthorizationParams) -> str:
            received.append(params)
            return "https://shop.example/login"

    mcp = FastMCP("x", auth_server_provider=Recorder(), auth=AuthSettings(issuer_url="https://shop.example"))
    transport = httpx2.ASGITransport(app=mcp.streamable_http_app())
    async with (
        mcp.session_manager.run(),
        httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http,
    ):
        for resource in ("https://shop.example/mcp", "", None):
            answer = await http.get("/authorize", params=asking({"client_id": "a"}, resource=resource))
            assert answer.headers["location"] == "https://shop.example/login"
    assert [params.resource for params in received] == ["https://shop.example/mcp", None, None]


async def test_optional_endpoints_are_served_only_if_enabled() -> None:
    failures: list[Exception] = [StoreUnavailable("no store"), RuntimeError("no database")]

    class Broken(OAuthAuthorizationServerProvider[Any, Any, Any]):
        async def get_client(self, client_id: str) -> Any:
            raise failures.pop()

    mcp = FastMCP("x", auth_server_provider=Broken(), auth=AuthSettings(issuer_url="https://shop.example"))
    app = mcp.streamable_http_app()
    transport = httpx2.ASGITransport(app=app)
    async with (
        mcp.session_manager.run(),
        httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http,
    ):
        said = (await http.get("/.well-known/oauth-authorization-server")).json()
        assert not {"registration_endpoint", "revocation_endpoint"} & said.keys()
        for path in ("/register", "/revoke"):
            assert (await http.post(path)).status_code in (401, 404)
        broken = await http.get("/authorize", params={"client_id": "a"})
        assert (broken.status_code, broken.json()["error"]) == (500, "server_error")
        away = await http.get("/authorize", params={"client_id": "a"})
        assert (away.status_code, away.headers["retry-after"]) == (503, "5")
