import asyncio
import json
import time
from contextlib import AsyncExitStack
from typing import Any

import pytest

from cases import for_each
from issuer_world import Issuer, run_issuer
from issuing_world import BACK, RESOURCE, Browser, Clock, Desk, authorization
from millstream import Settings, auth
from millstream.auth._authorization_server.clients import client_of, judge_of
from millstream.auth.providers import OAuthClient, Provider, RegistrationDenied, User
from millstream.stores import Store
from store_parts import MemoryStore

JSON = "application/json"


async def register(desk: Desk, said: Any, peer: str = "192.0.2.1", kind: str = JSON) -> Any:
    """Return the response of `/register`."""
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    return await desk.ask("POST", "/register", body=body, content_type=kind, peer=peer)


# Registration


async def test_registration_returns_the_accepted_metadata(every_store: Store) -> None:
    """RFC 7591 §3.2.1; unknown members are ignored, and the default is a secret for Basic."""
    desk = Desk(every_store)
    about = {"client_name": "Reader\u202e\n ", "redirect_uris": [BACK, "http://127.0.0.1/cb"], "software_id": "x",
             "grant_types": ["authorization_code", "refresh_token", "client_credentials"]}  # fmt: skip
    reply = await register(desk, about)
    assert (reply.status, reply.headers["cache-control"]) == (201, "no-store")
    said = reply.message
    assert said["client_name"] == "Reader"
    assert said["grant_types"] == ["authorization_code", "refresh_token"]
    assert said["token_endpoint_auth_method"] == "client_secret_basic"
    assert said["client_secret_expires_at"] == 0
    kept = await every_store.kv.get(f"oauth-new:{said['client_id']}")
    assert kept is not None
    assert said["client_secret"].encode() not in kept
    code = (await desk.sign_in(said["client_id"]))["code"]
    assert (await desk.token(said["client_id"], code)).error == "invalid_client"
    assert (await desk.token(said["client_id"], code, client_secret=said["client_secret"])).status == 200


@for_each(("said", "error"), [
    ({"redirect_uris": ["javascript:alert(1)"]}, "invalid_redirect_uri"),
    ({"redirect_uris": []}, "invalid_redirect_uri"),
    ({"redirect_uris": [BACK] * 17}, "invalid_redirect_uri"), ({"redirect_uris": BACK}, "invalid_redirect_uri"),
    ({}, "invalid_redirect_uri"),
    ({"redirect_uris": [5]}, "invalid_redirect_uri"), ({"redirect_uris": [BACK + "#f"]}, "invalid_redirect_uri"),
    ({"redirect_uris": ["https://*.example.com/"]}, "invalid_redirect_uri"),
    ({"redirect_uris": ["http://127.0.0.1/cb"], "application_type": "web"}, "invalid_redirect_uri"),
    ({"redirect_uris": ["com.example.app:/cb"], "application_type": "web"}, "invalid_redirect_uri"),
    ({"redirect_uris": [BACK], "token_endpoint_auth_method": "tls_client_auth"}, "invalid_client_metadata"),
    ({"redirect_uris": [BACK], "grant_types": ["implicit"]}, "invalid_client_metadata"),
    ({"redirect_uris": [BACK], "dpop_bound_access_tokens": True}, "invalid_client_metadata"),
    ({"redirect_uris": [BACK], "grant_types": "authorization_code"}, "invalid_client_metadata"),
    ({"redirect_uris": [BACK], "token_endpoint_auth_method": "private_key_jwt"}, "invalid_client_metadata"),
    ({"redirect_uris": [BACK], "token_endpoint_auth_method": "private_key_jwt",
    "jwks_uri": "http://10.0.0.1/"}, "invalid_client_metadata"),
    (b"[]", "invalid_client_metadata"), (b"{", "invalid_client_metadata"), (b"\xff", "invalid_client_metadata"),
    (b'{"a":' * 5000, "invalid_client_metadata"), (b'{"redirect_uris": ["\xc0"]}', "invalid_client_metadata"),
    ({"redirect_uris": ["http://[::1"]}, "invalid_redirect_uri"),
])  # fmt: skip
async def test_invalid_registrations_are_rejected(desk: Desk, said: Any, error: str) -> None:
    """RFC 7591 §3.2.2."""
    reply = await register(desk, said)
    assert (reply.error, reply.status in (400, 413)) == (error, True)
    assert await desk.services.store.kv.keys("oauth-new:") == []


@for_each("kind", ["application/x-www-form-urlencoded", "text/plain", ""])
async def test_registration_accepts_only_json(desk: Desk, kind: str) -> None:
    assert (await register(desk, {"redirect_uris": [BACK]}, kind=kind)).status == 415


async def test_excess_registrations_are_throttled_and_do_not_evict_active_clients(desk: Desk) -> None:
    used = (await desk.register())["client_id"]
    await desk.sign_in(used)
    assert await desk.services.store.kv.keys("oauth-client:") == [f"oauth-client:{used}"]
    replies = [await register(desk, {"redirect_uris": [BACK]}) for _ in range(101)]
    assert (replies[-1].status, "retry-after" in replies[-1].headers) == (429, True)
    assert (await register(desk, {"redirect_uris": [BACK]}, peer="203.0.113.5")).status == 201
    kinds = desk.services.store.kv.kinds  # type: ignore[attr-defined]  a memory store
    assert set(kinds["oauth-new"].lossy[""]) == set(kinds["oauth-new"].values)
    assert not kinds["oauth-client"].lossy


async def test_registration_flood_does_not_block_other_addresses() -> None:
    store = MemoryStore(max_value_bytes=64 * 1024)
    await store.open()
    desk = Desk(store)
    used = (await desk.register())["client_id"]
    given = await desk.tokens(used)
    for number in range(500):
        about = {"redirect_uris": [f"{BACK}/{number}"], "client_name": "x" * 80}
        assert (await register(desk, about, peer=f"10.0.{number // 250}.{number % 250}")).status == 201
    assert 10 < len(await store.kv.keys("oauth-new:")) < 400
    assert (await desk.refresh(used, given["refresh_token"])).status == 200
    assert (await desk.tokens((await desk.register())["client_id"]))["access_token"]


async def test_providers_limit_the_scopes_a_user_can_grant(desk: Desk) -> None:
    allowed = ["orders:read", "orders:write"]

    class Ours(Provider):
        async def grantable(self, user: User, client: OAuthClient, scopes: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(each for each in scopes if each in allowed)

    desk = Desk(desk.services.store, provider=Ours(), scopes=["shop:use"])
    id = (await desk.register())["client_id"]
    given = await desk.tokens(id, scope="orders:read orders:write")
    assert given["scope"] == "shop:use orders:read orders:write"
    allowed.remove("orders:write")
    assert (await desk.refresh(id, given["refresh_token"])).message["scope"] == "shop:use orders:read"


async def test_disabled_registration_removes_its_path_and_metadata(desk: Desk) -> None:
    closed = Desk(desk.services.store, registration=False)
    assert "/register" not in closed.paths
    assert "registration_endpoint" not in (await closed.ask("GET", "/.well-known/oauth-authorization-server")).message


async def test_providers_can_reject_clients_and_define_their_own(desk: Desk) -> None:
    class Ours(Provider):
        async def find_client(self, client_id: str) -> OAuthClient | None:
            return auth.client("ours", redirect_uris=[BACK]) if client_id == "ours" else None

        async def check_registration(self, client: OAuthClient) -> None:
            raise RegistrationDenied("Ask the office.")

        async def claims(self, *_: Any) -> dict[str, object]:
            return {"tenant": 7, "sub": "root", "scope": "*"}

    desk = Desk(desk.services.store, provider=Ours())
    reply = await register(desk, {"redirect_uris": [BACK]})
    assert (reply.status, reply.message["error_description"]) == (403, "Ask the office.")
    found = await desk.who((await desk.tokens("ours"))["access_token"])
    assert found is not None
    assert found.principal.claims["tenant"] == 7
    assert found.principal.subject == "ada"
    assert found.principal.scopes == frozenset()


# Client ID metadata documents

HERE = "http://127.0.0.1:8000"


def described(issuer: Issuer, **changes: Any) -> str:
    """Serve a metadata document on this machine, and return its URL."""
    url = f"{issuer.url}/client.json"
    said = {"client_id": url, "client_name": "Reader", "redirect_uris": [BACK], **changes}
    document(issuer, json.dumps({name: value for name, value in said.items() if value is not None}).encode())
    return url


def document(
    issuer: Issuer, body: bytes, head: bytes = b"content-type: application/json\r\n", status: str = "200 OK"
) -> None:
    """Return the server's response."""
    issuer.answers["/client.json"] = b"HTTP/1.1 %b\r\n%bcontent-length: %d\r\n\r\n%b" % (
        status.encode(),
        head,
        len(body),
        body,
    )


async def test_client_metadata_documents_are_fetched_once(desk: Desk) -> None:
    """MCP 2025-11-25, basic/authorization."""
    desk = Desk(desk.services.store, url=HERE, audience=RESOURCE)
    async with run_issuer() as site:
        id = described(site, grant_types=["authorization_code", "refresh_token"])
        browser = Browser(desk)
        page = await browser.open(id)
        assert f"127.0.0.1:{site.port}" in page.text
        code = (await browser.answer(page)).answer["code"]
        given = (await desk.token(id, code)).message
        assert (await desk.refresh(id, given["refresh_token"])).status == 200
        assert site.request_counts["/client.json"] == 1
        assert await desk.services.store.kv.keys("oauth-client:") == []


@for_each("changes", [
    {"client_id": "https://other.example/client.json"}, {"client_id": None}, {"redirect_uris": ["javascript:x"]},
    {"redirect_uris": None}, {"client_secret": "x"}, {"token_endpoint_auth_method": "client_secret_basic"},
    {"token_endpoint_auth_method": "private_key_jwt"}, {"client_name": "x" * 6000}, {"grant_types": ["implicit"]},
])  # fmt: skip
async def test_metadata_documents_for_other_clients_are_rejected(desk: Desk, changes: dict[str, Any]) -> None:
    """draft-ietf-oauth-client-id-metadata-document §4."""
    desk = Desk(desk.services.store, url=HERE)
    async with run_issuer() as site:
        id = described(site, **changes)
        for _ in range(2):
            assert (await desk.ask("GET", "/authorize", query=authorization(id))).status == 400
        assert site.request_counts["/client.json"] == 2


@for_each(("body", "head", "status"), [
    (b"{}", b"content-type: text/html\r\n", "200 OK"), (b"not json", b"content-type: application/json\r\n", "200 OK"),
    (b"[]", b"content-type: application/json\r\n", "200 OK"),
    (b"", b"location: http://127.0.0.1:1/x\r\n", "302 Found"),
    (b"{}", b"content-type: application/json\r\n", "404 Not Found"),
    (b"{}", b"content-type: application/json\r\n", "201 Created"),
])  # fmt: skip
async def test_invalid_metadata_documents_are_rejected(desk: Desk, body: bytes, head: bytes, status: str) -> None:
    desk = Desk(desk.services.store, url=HERE)
    async with run_issuer() as site:
        document(site, body, head, status)
        reply = await desk.ask("GET", "/authorize", query=authorization(f"{site.url}/client.json"))
        assert reply.status == 400


async def test_metadata_documents_can_be_switched_off(desk: Desk) -> None:
    """Clients then register, as RFC 8414 metadata without `client_id_metadata_document_supported` tells them to."""
    desk = Desk(desk.services.store, url=HERE, metadata_documents=False)
    said = (await desk.ask("GET", "/.well-known/oauth-authorization-server")).message
    assert "client_id_metadata_document_supported" not in said
    assert said["registration_endpoint"] == f"{HERE}/register"
    async with run_issuer() as site:
        reply = await desk.ask("GET", "/authorize", query=authorization(described(site)))
        assert (reply.status, site.request_counts["/client.json"]) == (400, 0)
        assert "Register the client instead." in reply.text
    client = await desk.register()
    assert (await desk.tokens(client["client_id"], resource=None))["access_token"]


async def test_page_for_an_unreachable_document_mentions_the_setting(desk: Desk) -> None:
    desk = Desk(desk.services.store, url=HERE)
    async with run_issuer() as site:
        id = described(site)
    reply = await desk.ask("GET", "/authorize", query=authorization(id))
    assert reply.status == 400
    assert "metadata_documents=False" in reply.text


@for_each(("control", "asked"), [
    (b"", 1), (b"cache-control: no-store\r\n", 3), (b"cache-control: max-age=0\r\n", 3),
    (b"cache-control: max-age=9\r\n", 1),
])  # fmt: skip
async def test_metadata_documents_are_cached_according_to_their_headers(desk: Desk, control: bytes, asked: int) -> None:
    """RFC 9111."""
    clock = Clock()
    desk = Desk(desk.services.store, url=HERE, clock=clock)
    async with run_issuer() as site:
        id = described(site)
        body = site.answers["/client.json"].partition(b"\r\n\r\n")[2]
        document(site, body, b"content-type: application/json\r\n" + control)
        for _ in range(3):
            assert (await desk.ask("GET", "/authorize", query=authorization(id, resource=None))).status == 200
        assert site.request_counts["/client.json"] == asked
        clock.now += 400
        await desk.ask("GET", "/authorize", query=authorization(id))
        assert site.request_counts["/client.json"] == asked + 1


@for_each("id", [
    "https://app.example.com", "https://app.example.com/", "https://app.example.com/x#f",
    "https://app.example.com/a/../b",
    "https://app.example.com/a/./b", "https://app.example.com/%2e%2e/b", "https://u:p@app.example.com/x",
    "http://app.example.com/x",
    "ftp://app.example.com/x", "https:///x", "https://" + "a" * 70 + ".example/x", "https://127.0.0.1/x",
    "https://[::1]/x",
    "http://127.0.0.1:1/x", "https://localhost/x", "https://169.254.169.254/latest", "https://10.0.0.1/x", "://",
    "x://y",
])  # fmt: skip
async def test_invalid_and_private_client_urls_are_not_fetched(desk: Desk, id: str) -> None:
    """draft-ietf-oauth-client-id-metadata-document §3 and §8.6."""
    reply = await desk.ask("GET", "/authorize", query=authorization(id))
    assert (reply.status, "location" in reply.headers) == (400, False)


def test_only_development_servers_fetch_loopback_client_urls() -> None:
    assert not judge_of(here=False)("127.0.0.1")
    assert judge_of(here=True)("127.0.0.1")
    assert judge_of(here=True)("::1")
    assert not judge_of(here=True)("10.0.0.1")
    assert not judge_of(here=True)("169.254.169.254")


async def test_remote_callers_cannot_trigger_loopback_fetches(desk: Desk) -> None:
    desk = Desk(desk.services.store, url=HERE, audience=RESOURCE)
    async with run_issuer() as site:
        id = described(site)
        for _ in range(2):
            shown = await desk.ask("GET", "/authorize", query=authorization(id), peer="192.0.2.7")
            assert shown.status == 400
            form = {"grant_type": "refresh_token", "client_id": id, "refresh_token": "x"}
            assert (await desk.post("/token", form, peer="192.0.2.7")).status == 401
        assert site.request_counts["/client.json"] == 0
        assert (await desk.ask("GET", "/authorize", query=authorization(id))).status == 200


async def test_document_fetches_are_shared_and_limited_per_address(
    desk: Desk,
) -> None:
    desk = Desk(desk.services.store, url=HERE, audience=RESOURCE)
    async with run_issuer() as site:
        id = described(site)
        replies = await asyncio.gather(*(desk.ask("GET", "/authorize", query=authorization(id)) for _ in range(20)))
        assert {each.status for each in replies} == {200}
        assert site.request_counts["/client.json"] == 1
        begun = time.monotonic()
        for number in range(70):
            site.answers[f"/{number}"] = {}
            await desk.ask("GET", "/authorize", query=authorization(f"{site.url}/{number}"))
        allowed = 60 + int(time.monotonic() - begun)  # the limit allows one more each second
        assert 0 < sum(site.request_counts.values()) <= allowed + 1


# Configured clients


@for_each("options", [
    {}, {"redirect_uris": ["javascript:x"]}, {"redirect_uris": [BACK], "secret": "short"},
    {"secret": "x" * 32, "jwks": {"keys": [{}]}},
    {"jwks": {"keys": []}}, {"jwks": "http://10.0.0.1/"}, {"redirect_uris": [BACK], "scopes": ["a b"]},
])  # fmt: skip
def test_invalid_configured_clients_are_rejected(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        auth.client("x", **options)


def test_names_are_shown_without_control_and_bidi_characters() -> None:
    said = {"client_name": "a\u202eb\u200b\r\n\tc" + "x" * 200, "redirect_uris": [BACK]}
    name = client_of("x", said, "registered", methods=("none",), default="none").name
    assert name == ("a b c" + "x" * 200)[:80]


@for_each("kind", [{}, [], 7, True, "robot", None])
async def test_unknown_application_types_are_ignored(desk: Desk, kind: Any) -> None:
    """RFC 7591 §2."""
    assert "application_type" not in await desk.register(application_type=kind)


async def test_clients_that_wait_too_long_get_a_retry_error(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.auth._method.PATIENCE", 0)
    checks = desk.running._token.clients._checks
    async with AsyncExitStack() as stack:
        for _ in range(checks._at_once):
            await stack.enter_async_context(checks.hold(desk.peer))
        reply = await desk.post("/token", {"grant_type": "authorization_code", "code": "a"})
        assert (reply.status, reply.message["error"]) == (503, "temporarily_unavailable")
    reply = await desk.post("/token", {"grant_type": "authorization_code", "code": "a"})
    assert reply.message["error"] != "temporarily_unavailable"


async def test_the_limits_of_registrations_and_wrong_secrets_are_settings(desk: Desk) -> None:
    settings = Settings(limit_registrations="3/day", limit_failed_sign_ins="2/day")
    desk = Desk(desk.services.store, settings=settings)
    about = {"redirect_uris": [BACK]}
    statuses = [(await register(desk, about, "192.0.2.7")).status for _ in range(5)]
    assert statuses == [201] * 3 + [429] * 2
    assert (await register(desk, about, "192.0.2.8")).status == 201
    id = (await desk.register())["client_id"]
    secretive = (await desk.register(token_endpoint_auth_method="client_secret_post"))["client_id"]
    form = {"grant_type": "refresh_token", "refresh_token": "x", "client_id": secretive}
    statuses = [(await desk.post("/token", {**form, "client_secret": f"{number}"})).status for number in range(4)]
    assert statuses == [401] * 2 + [429] * 2
    assert (await desk.tokens(id))["access_token"]
