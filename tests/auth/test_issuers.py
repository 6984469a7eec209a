"""An issuer's keys, metadata, and introspection responses: cached, shared by concurrent callers, and rarely fetched."""

import asyncio
import json
import ssl
import time
from base64 import b64decode
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from auth.test_tls import make
from auth_world import BOB, ROOT, make_server, run_guarded
from cases import for_each
from fleet import until
from issuer_world import AUDIENCE, ISSUER, OTHER, Issuer, claims, key_set, run_issuer, token
from millstream import auth
from millstream._oauth import metadata_urls
from millstream.auth._jose import FetchedKeys
from millstream.auth._method import Unavailable
from millstream.auth._tokens import Discovery, ask_issuer
from patience import Clock
from wire import encode_headers, encode_request, request

PING = request("ping", id=5)
CONFIGURATION = "/.well-known/openid-configuration"


def signed(issuer: Issuer, **changes: Any) -> str:
    """Return a token of the issuer."""
    return token(claims(iss=issuer.url, **changes))


async def test_issuer_keys_are_discovered() -> None:
    async with (
        run_issuer() as issuer,
        run_guarded(make_server(auth.oidc(issuer.url, audience=AUDIENCE))) as world,
    ):
        assert issuer.request_counts.total() == 0
        for number in range(3):
            reply = await world.call(signed(issuer, sub=f"ada{number}"), "who")
            assert reply.message["result"]["content"][0]["text"] == f"ada{number}"
        assert issuer.request_counts == {CONFIGURATION: 1, "/keys": 1}


async def test_unknown_key_ids_cause_one_fetch() -> None:
    async with run_issuer() as issuer:
        method = auth.jwt(issuer=issuer.url, audience=AUDIENCE, jwks=f"{issuer.url}/keys")
        assert await method.identify(signed(issuer)) is not None
        bad = [token(claims(iss=issuer.url), key=OTHER, kid=f"made-up-{number}") for number in range(1000)]
        assert set(await asyncio.gather(*map(method.identify, bad))) == {None}
        assert issuer.request_counts["/keys"] == 1


async def test_concurrent_callers_share_a_fetch() -> None:
    async with run_issuer() as issuer:
        issuer.gate = asyncio.Event()
        method = auth.jwt(issuer=issuer.url, audience=AUDIENCE, jwks=f"{issuer.url}/keys")
        waiting = [asyncio.create_task(method.identify(signed(issuer, sub=f"s{n}"))) for n in range(20)]
        await until(lambda: issuer.request_counts["/keys"] == 1)
        waiting[0].cancel()
        issuer.gate.set()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert all(each is not None and not isinstance(each, BaseException) for each in found[1:])
        assert issuer.request_counts["/keys"] == 1


async def kept_keys(issuer: Issuer) -> tuple[FetchedKeys, Clock]:
    """Return the issuer's fetched keys, and their clock."""
    clock = Clock()

    async def where() -> str:
        return f"{issuer.url}/keys"

    return FetchedKeys(where, ask_issuer, clock=clock), clock


async def test_new_issuer_keys_are_found_after_the_pause() -> None:
    async with run_issuer() as issuer:
        issuer.answers["/keys"] = key_set("RS256")
        keys, clock = await kept_keys(issuer)
        assert await keys.find("es", "ES256") == []
        issuer.answers["/keys"] = key_set("RS256", "ES256")
        clock.now += 29
        assert await keys.find("es", "ES256") == []
        clock.now += 1
        assert len(await keys.find("es", "ES256")) == 1
        assert (issuer.request_counts["/keys"], keys.epoch) == (2, 2)


async def test_removed_issuer_keys_invalidate_cached_tokens() -> None:
    async with run_issuer() as issuer:
        keys, clock = await kept_keys(issuer)
        assert len(await keys.find("es", "ES256")) == 1
        issuer.answers["/keys"] = key_set("RS256")
        clock.now += 601
        assert await keys.find("es", "ES256") == []
        assert keys.epoch == 2


async def test_known_keys_work_for_a_day_during_an_outage() -> None:
    async with run_issuer() as issuer:
        keys, clock = await kept_keys(issuer)
        assert len(await keys.find("es", "ES256")) == 1
        issuer.answers["/keys"] = b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n"
        clock.now += 3600
        assert len(await keys.find("es", "ES256")) == 1
        clock.now += 86_400
        with pytest.raises(Unavailable):
            await keys.find("es", "ES256")


@for_each("failing", ["/keys", CONFIGURATION])
async def test_issuer_that_fails_at_first_is_retried_after_five_seconds(
    failing: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    async with run_issuer() as issuer:
        saved = issuer.answers.pop(failing)
        discovery = Discovery(issuer.url, clock=clock)
        keys = FetchedKeys(discovery.keys_url, ask_issuer, retry=discovery.retry, clock=clock)
        for _ in range(3):
            with pytest.raises(Unavailable):
                await keys.find("es", "ES256")
        assert issuer.request_counts[failing] == 1
        assert failing != CONFIGURATION or "retry after 5 seconds" in caplog.text
        issuer.answers[failing] = saved
        clock.now += 4.9
        with pytest.raises(Unavailable):
            await keys.find("es", "ES256")
        clock.now += 0.2
        assert len(await keys.find("es", "ES256")) == 1
    caplog.clear()


async def test_key_lookup_is_retried_soon_after_a_failure() -> None:
    async with run_issuer() as issuer:
        issuer.answers["/keys"] = key_set("RS256")
        keys, clock = await kept_keys(issuer)
        await keys.find("rs", "RS256")
        clock.now += 31
        issuer.answers["/keys"] = b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n"
        assert await keys.find("es", "ES256") == []
        issuer.answers["/keys"] = key_set("ES256")
        clock.now += 5
        assert len(await keys.find("es", "ES256")) == 1


async def test_error_for_an_untrusted_issuer_certificate_mentions_the_variable(tmp_path: Path) -> None:
    cert, key = make(tmp_path, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0, ssl=context)
    async with server:
        issuer = f"https://localhost:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(Unavailable) as caught:
            await Discovery(issuer).metadata()
    assert "SSL_CERT_FILE" in caught.value.why
    assert "SSL_CERT_FILE" not in str(caught.value)


async def test_issuer_outage_gets_503_and_keys_still_work() -> None:
    async with run_issuer() as issuer:
        issuer.answers.clear()
        both = [auth.oidc(issuer.url, audience=AUDIENCE), auth.keys("a-key-that-works")]
        async with run_guarded(make_server(both)) as world:
            reply = await world.post(signed(issuer), PING)
            assert (reply.status, reply.headers[b"retry-after"]) == (503, b"5")
            assert (await world.post("a-key-that-works", PING)).status == 200


async def test_issuer_outage_does_not_affect_keys_that_look_like_tokens() -> None:
    async with run_issuer() as issuer:
        issuer.answers.clear()
        key = signed(issuer)
        async with run_guarded(make_server([auth.oidc(issuer.url, audience=AUDIENCE), auth.keys(key)])) as world:
            assert (await world.post(key, PING)).status == 200
            assert (await world.post(signed(issuer, sub="eve"), PING)).status == 503


@for_each("changes", [{"issuer": "https://evil.example"}, {"issuer": None}, {"jwks_uri": "file:///x"},
                                     {"jwks_uri": "http://192.0.2.1/keys"}, {"jwks_uri": 5}])  # fmt: skip
async def test_metadata_with_wrong_issuer_or_urls_is_rejected(changes: dict[str, Any]) -> None:
    """RFC 8414 §3.3."""
    async with run_issuer() as issuer:
        issuer.answers[CONFIGURATION] |= changes
        with pytest.raises(Unavailable):
            await auth.oidc(issuer.url, audience=AUDIENCE).identify(signed(issuer))
        assert issuer.request_counts["/keys"] == 0


def test_metadata_is_fetched_from_the_specified_urls() -> None:
    assert metadata_urls("https://a.example/tenant/") == [
        "https://a.example/.well-known/oauth-authorization-server/tenant",
        "https://a.example/.well-known/openid-configuration/tenant",
        "https://a.example/tenant/.well-known/openid-configuration",
    ]
    assert len(metadata_urls("https://a.example")) == 2


async def test_metadata_fetches_are_cached_and_failures_paused() -> None:
    async with run_issuer() as issuer:
        clock = Clock()
        discovery = Discovery(issuer.url, clock=clock)
        saved, issuer.answers = issuer.answers, {}
        for _ in range(3):
            with pytest.raises(Unavailable):
                await discovery.metadata()
        assert issuer.request_counts[CONFIGURATION] == 1
        issuer.answers = saved
        clock.now += 10
        assert (await discovery.metadata())["issuer"] == issuer.url
        issuer.answers = {}
        clock.now += 4000
        assert (await discovery.metadata())["issuer"] == issuer.url


# Introspection


def introspected(issuer: Issuer, **options: Any) -> Any:
    """Return an introspection method for the issuer."""
    given = {"issuer": issuer.url, "audience": AUDIENCE, "endpoint": f"{issuer.url}/introspect",
             "client": "mill:stream", "secret": "s%cret/"}  # fmt: skip
    return auth.introspection(**{**given, **options})


def answers(issuer: Issuer, tokens: dict[str, Any]) -> None:
    """Set the endpoint's responses for tokens."""

    def answer(asked: bytes) -> bytes:
        body = asked.partition(b"\r\n\r\n")[2].decode()
        found = json.dumps(tokens.get(parse_qs(body)["token"][0], {"active": False})).encode()
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(found), found)

    issuer.answers["/introspect"] = answer


async def test_introspection_results_are_cached() -> None:
    """RFC 7662 §2."""
    async with run_issuer() as issuer:
        answers(issuer, {"opaque+/=": {**claims(iss=None), "active": True}})
        async with run_guarded(make_server(introspected(issuer))) as world:
            for _ in range(3):
                assert (await world.call("opaque+/=", "who")).message["result"]["content"][0]["text"] == "ada"
            assert issuer.request_counts["/introspect"] == 1
            head = issuer.requests[0].decode()
            assert head.startswith("POST /introspect HTTP/1.1\r\n")
            basic = head.split("authorization: Basic ")[1].split("\r\n")[0]
            assert b64decode(basic) == b"mill%3Astream:s%25cret%2F"
            assert (await world.post("unknown", PING)).status == 401


async def test_known_credentials_are_not_introspected() -> None:
    async with run_issuer() as issuer:
        answers(issuer, {"opaque": {**claims(iss=None), "active": True}})
        signed = auth.jwt(issuer=ISSUER, audience=AUDIENCE, jwks=key_set("ES256"))
        methods = [introspected(issuer), auth.keys(ROOT), signed]
        async with run_guarded(make_server(methods, auth_key=BOB)) as world:
            for credential in (ROOT, BOB, token()):
                assert (await world.post(credential, PING)).status == 200
            assert issuer.request_counts["/introspect"] == 0
            assert (await world.post("opaque", PING)).status == 200
            assert issuer.request_counts["/introspect"] == 1


@for_each("changes", [
    {"active": False}, {"active": "true"}, {"active": 1}, {"aud": "https://other.example"}, {"aud": None},
    {"exp": time.time() - 100}, {"exp": "never"}, {"sub": None, "client_id": None},
    {"sub": None, "username": "ada"}, {"iss": "https://other.example"}, {"token_type": "DPoP"},
    {"cnf": {"jkt": "x"}}, {"cnf": {"x5t#S256": "x"}}, {"cnf": 7},
    {"token_type": 7}, {"sub": None}, {"sub": ""},
])  # fmt: skip
async def test_inactive_tokens_are_rejected(changes: dict[str, Any]) -> None:
    async with run_issuer() as issuer:
        said: dict[str, Any] = {**claims(iss=None), "active": True, **changes}
        answers(issuer, {"t": {name: value for name, value in said.items() if value is not None}})
        assert await introspected(issuer).identify("t") is None


async def test_tokens_without_a_subject_need_an_option() -> None:
    async with run_issuer() as issuer:
        said = {"active": True, **claims(iss=None, sub=None, client_id="desk")}
        answers(issuer, {"nobody": said, "named": {**said, "username": "ada"}, "person": {**said, "sub": "ada"}})
        assert await introspected(issuer).identify("nobody") is None
        method = introspected(issuer, client_tokens=True)
        found = [await method.identify(each) for each in ("nobody", "named", "person")]
        assert [each and each.principal.subject for each in found] == ["desk", None, "ada"]


async def test_introspection_failure_gets_503() -> None:
    async with run_issuer() as issuer:
        for bad in (
            b"HTTP/1.1 500 x\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]",
            b'HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"a":"\xc0"}',
            b"",
        ):
            issuer.answers["/introspect"] = bad
            with pytest.raises(Unavailable):
                await introspected(issuer).identify("t")


async def test_concurrent_introspections_are_limited() -> None:
    async with run_issuer() as issuer:
        issuer.gate = asyncio.Event()
        answers(issuer, {})
        method = introspected(issuer)
        waiting = [asyncio.create_task(method.identify(f"t{number % 100}")) for number in range(200)]
        await until(lambda: issuer.request_counts["/introspect"] == 64)
        issuer.gate.set()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert issuer.request_counts["/introspect"] == 64
        assert sum(isinstance(each, Unavailable) for each in found) == 72


# Metadata of the server


@for_each("lane", [True, False], ids=["lane", "asgi"])
async def test_resource_metadata_is_public_at_every_url(lane: bool) -> None:
    """RFC 9728 §3."""
    async with run_issuer() as issuer:
        method = auth.oidc(issuer.url, audience="https://mcp.example.com/shop/mcp", scopes=["mcp:use"])
        async with run_guarded(make_server(method), lane=lane) as world:
            missing = await world.post(None, PING)
            url = missing.headers[b"www-authenticate"].split(b'resource_metadata="')[1].rstrip(b'"').decode()
            assert url == "https://mcp.example.com/.well-known/oauth-protected-resource/shop/mcp"
            root = "/.well-known/oauth-protected-resource"
            for path in (root, f"{root}/mcp", f"{root}/shop/mcp"):
                for origin in ({}, {"origin": "https://evil.example"}):
                    reply = await world.ask(None, "GET", path, **origin)
                    assert reply.status == 200
                    assert reply.message == {
                        "resource": "https://mcp.example.com/shop/mcp",
                        "authorization_servers": [issuer.url],
                        "scopes_supported": ["mcp:use", "orders:write", "secrets"],
                        "bearer_methods_supported": ["header"],
                        "resource_name": "guarded",
                    }
                    if origin:
                        assert reply.headers[b"access-control-allow-origin"] == b"*"
                preflight = await world.ask(
                    None, "OPTIONS", path, origin="https://a.example", access_control_request_method="GET",
                    access_control_request_headers="mcp-protocol-version",
                )  # fmt: skip
                assert (preflight.status, preflight.headers[b"access-control-allow-origin"]) == (204, b"*")
                evil = {"host": "evil.example"}
                peer = await world.running.connect()
                await peer.send(encode_request("GET", path, encode_headers(evil), b""))
                assert (await peer.reply())[0] == 421


async def test_authorization_server_metadata_is_served_at_the_origin_for_old_clients() -> None:
    """MCP 2025-03-26, basic/authorization."""
    async with run_issuer() as issuer:
        issuer.answers[CONFIGURATION]["token_endpoint"] = f"{issuer.url}/token"
        async with run_guarded(make_server(auth.oidc(issuer.url, audience=AUDIENCE))) as world:
            reply = await world.ask(None, "GET", "/.well-known/oauth-authorization-server")
            assert reply.message == issuer.answers[CONFIGURATION]
            issuer.answers.clear()
        async with run_guarded(make_server(auth.oidc(issuer.url, audience=AUDIENCE))) as world:
            assert (await world.ask(None, "GET", "/.well-known/oauth-authorization-server")).status == 503


async def test_servers_with_only_keys_have_no_metadata() -> None:
    async with run_guarded() as world:
        for path in ("/.well-known/oauth-protected-resource", "/.well-known/oauth-authorization-server"):
            assert (await world.ask(None, "GET", path)).status == 404
