"""Sender-constrained tokens (DPoP, RFC 9449), and tokens from an organization's identity provider."""

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from joserfc import jws
from joserfc.jwk import ECKey

from cases import for_each
from issuer_world import Issuer, run_issuer
from millstream._http.client.pool import ConnectionPool
from millstream._http.client.url import parse_url
from millstream.client import AccessDenied, IdentityProvider, MemoryTokenStore, OAuth, WorkloadIdentity
from millstream.client._endpoint import Endpoint
from millstream.client._oauth.endpoints import Proofs, challenged_for_proofs, wants_nonce
from millstream.client._oauth.signing import load_proof_key, new_proof_key, proof
from patience import WAIT

METADATA = "/.well-known/oauth-authorization-server"
JAG = "urn:ietf:params:oauth:token-type:id-jag"


def opened(sent: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the header and claims of a proof, after checking its signature."""
    head = json.loads(base64.urlsafe_b64decode(sent.split(".", maxsplit=1)[0] + "=="))
    found = jws.deserialize_compact(sent, ECKey.import_key(head["jwk"]), algorithms=["ES256"])
    return head, json.loads(found.payload or b"")


def test_proofs_follow_rfc_9449() -> None:
    key = load_proof_key(new_proof_key())
    head, claims = opened(proof(key, "POST", "https://a.example/mcp?x=1#y", token="abc", nonce="n"))
    assert (head["typ"], head["alg"], sorted(head["jwk"])) == ("dpop+jwt", "ES256", ["crv", "kty", "x", "y"])
    assert (claims["htm"], claims["htu"], claims["nonce"]) == ("POST", "https://a.example/mcp", "n")
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"abc").digest()).rstrip(b"=").decode()
    assert claims["ath"] == digest
    assert abs(claims["iat"] - time.time()) < 3600
    again, bare = opened(proof(key, "GET", "https://a.example"))
    assert (again["jwk"], bare["htu"]) == (head["jwk"], "https://a.example/")
    assert bare["jti"] != claims["jti"]
    assert not {"ath", "nonce"} & bare.keys()


@for_each(
    ("challenge", "offers", "nonce"),
    [
        ("DPoP", True, False),
        ('dpop algs="ES256"', True, False),
        ('Bearer realm="a, DPoP b", DPoP algs="ES256"', True, False),
        ('Bearer realm="x, DPoP y"', False, False),
        ("Bearer, DPoP", True, False),
        ('DPoP error="use_dpop_nonce", resource_metadata="https://a.example"', True, True),
        ('Bearer error="use_dpop_nonce"', False, False),
        ("", False, False),
    ],
)
def test_challenges_show_dpop_support(challenge: str, offers: bool, nonce: bool) -> None:
    assert (challenged_for_proofs(challenge), wants_nonce(challenge)) == (offers, nonce)


def test_nonces_are_kept_per_origin_and_bounded() -> None:
    proofs, key = Proofs(), new_proof_key()
    assert proofs.learn("https://a.example/token", "one")
    assert proofs.learn("https://a.example/other", "one")
    assert not proofs.learn("https://a.example", "")
    assert not proofs.learn("https://a.example", "x" * 5000)
    assert not proofs.learn("https://a.example", "a\r\nb")
    assert opened(proofs.headers(key, "GET", "https://a.example/x")["DPoP"])[1]["nonce"] == "one"
    assert "nonce" not in opened(proofs.headers(key, "GET", "https://b.example/x")["DPoP"])[1]
    assert proofs.headers("", "GET", "https://a.example") == proofs.headers("damaged", "GET", "https://a.example") == {}


@asynccontextmanager
async def authorization_server(
    answer: Callable[[bytes], Any], **more: Any
) -> AsyncIterator[tuple[Issuer, dict[str, str]]]:
    """Run an authorization server that responds with a function, and a server that accepts its tokens."""
    async with run_issuer() as issuer:
        issuer.answers[METADATA] = {"issuer": issuer.url, "token_endpoint": f"{issuer.url}/token", **more}
        issuer.answers["/token"] = answer
        issuer.answers["/.well-known/oauth-protected-resource/mcp"] = {
            "resource": f"{issuer.url}/mcp", "authorization_servers": [issuer.url],
        }  # fmt: skip
        yield issuer, {"mcp": f"{issuer.url}/mcp"}


def header_of(request: bytes, name: bytes) -> str:
    """Return one header of a raw request."""
    lines = request.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    found = [line.partition(b": ")[2] for line in lines if line.lower().startswith(name.lower() + b":")]
    assert len(found) <= 1
    return found[0].decode() if found else ""


def oauth() -> OAuth:
    """Return a login that acts for itself."""
    return OAuth(store=MemoryTokenStore(), client_id="desk", client_secret="s" * 32, client_credentials=True)


async def test_tokens_are_bound_if_both_servers_support_it() -> None:
    given = {"access_token": "bound", "token_type": "DPoP", "expires_in": 3600}
    async with authorization_server(lambda _: given, dpop_signing_alg_values_supported=["ES256"]) as (issuer, urls):
        url, credentials = parse_url(urls["mcp"]), oauth()
        assert await credentials.handle_challenge(url, 401, 'DPoP algs="ES256"')
        head, claims = opened(header_of(issuer.requests[-1], b"dpop"))
        assert (claims["htm"], claims["htu"]) == ("POST", f"{issuer.url}/token")
        sent = [await credentials.headers(url, "POST", "/mcp?x=1") for _ in range(2)]
        assert [each["Authorization"] for each in sent] == ["DPoP bound"] * 2
        proofs = [opened(each["DPoP"]) for each in sent]
        assert [each[1]["htu"] for each in proofs] == [urls["mcp"]] * 2
        assert [each[0]["jwk"] for each in proofs] == [head["jwk"]] * 2
        assert len({each[1]["jti"] for each in proofs}) == 2


@for_each(
    ("challenge", "algorithms", "kind"),
    [("Bearer", ["ES256"], "Bearer"), ("DPoP", ["RS256"], "Bearer"), ("DPoP", ["ES256"], "Bearer")],
)
async def test_unbound_tokens_are_sent_as_bearer(challenge: str, algorithms: list[str], kind: str) -> None:
    given = {"access_token": "plain", "token_type": kind}
    async with authorization_server(lambda _: given, dpop_signing_alg_values_supported=algorithms) as (_, urls):
        credentials = oauth()
        assert await credentials.handle_challenge(parse_url(urls["mcp"]), 401, challenge)
        assert await credentials.headers(parse_url(urls["mcp"]), "POST", "/mcp") == {"Authorization": "Bearer plain"}


async def test_known_token_endpoint_nonces_are_sent() -> None:
    """§8: one more request, not a loop."""

    def wanting(request: bytes) -> Any:
        if opened(header_of(request, b"dpop"))[1].get("nonce") == "fresh":
            return {"access_token": "bound", "token_type": "DPoP"}
        body = b'{"error":"use_dpop_nonce"}'
        nonce = b"fresh" if b"client_credentials" in request else b""
        return b"HTTP/1.1 400 Bad\r\nDPoP-Nonce: %b\r\ncontent-length: %d\r\n\r\n%b" % (nonce, len(body), body)

    async with authorization_server(wanting, dpop_signing_alg_values_supported=["ES256"]) as (issuer, urls):
        credentials = oauth()
        assert await credentials.handle_challenge(parse_url(urls["mcp"]), 401, "DPoP")
        assert issuer.request_counts["/token"] == 2
        assert credentials.learn_nonce(parse_url(urls["mcp"]), "next", 'DPoP error="use_dpop_nonce"')
        assert credentials.learn_nonce(parse_url(urls["mcp"]), "next", 'DPoP error="use_dpop_nonce"')
        assert not credentials.learn_nonce(parse_url(urls["mcp"]), "next", 'DPoP error="invalid_token"')
        assert not credentials.learn_nonce(parse_url(urls["mcp"]), "", 'DPoP error="use_dpop_nonce"')
        issuer.answers["/token"] = lambda _: (
            b'HTTP/1.1 400 Bad\r\nDPoP-Nonce: other\r\ncontent-length: 26\r\n\r\n{"error":"use_dpop_nonce"}'
        )
        with pytest.raises(AccessDenied, match="use_dpop_nonce"):
            await oauth().handle_challenge(parse_url(urls["mcp"]), 401, "DPoP")
        assert issuer.request_counts["/token"] == 4


async def test_concurrent_requests_share_a_nonce() -> None:

    def wanting(request: bytes) -> Any:
        if opened(header_of(request, b"dpop"))[1].get("nonce") == "shared":
            return {}
        head = b'WWW-Authenticate: DPoP error="use_dpop_nonce"\r\nDPoP-Nonce: shared\r\n'
        return b"HTTP/1.1 401 No\r\n%bcontent-length: 0\r\n\r\n" % head

    given = {"access_token": "bound", "token_type": "DPoP", "expires_in": 3600}
    async with authorization_server(lambda _: given, dpop_signing_alg_values_supported=["ES256"]) as (issuer, urls):
        url, credentials = parse_url(urls["mcp"]), oauth()
        assert await credentials.handle_challenge(url, 401, "DPoP")
        issuer.answers["/mcp"], issuer.gate = wanting, asyncio.Event()
        pool = ConnectionPool(url, max_connections=2, max_body=1000, connect_timeout=WAIT, tls=None)
        endpoint = Endpoint(url, {}, pool, credentials)
        asked = [asyncio.create_task(endpoint.send("POST", {}, repeatable=True)) for _ in range(2)]
        async with asyncio.timeout(WAIT):
            while issuer.request_counts["/mcp"] < 2:  # noqa: ASYNC110  no event signals it
                await asyncio.sleep(0)
            issuer.gate.set()
            assert [(await each).status for each in asked] == [200, 200]
        assert (issuer.request_counts["/mcp"], issuer.request_counts["/token"]) == (4, 1)
        await pool.close()


@for_each("path", ["/token", METADATA, "/register"])
async def test_deeply_nested_responses_are_rejected(path: str) -> None:
    body = b'{"more":' + b"[" * 20_000
    deep = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    async with authorization_server(lambda _: deep) as (issuer, urls):
        credentials = oauth()
        if path == "/register":
            places = {"registration_endpoint": issuer.url + path, "authorization_endpoint": f"{issuer.url}/authorize"}
            issuer.answers[METADATA] |= {**places, "code_challenge_methods_supported": ["S256"]}
            credentials = OAuth(
                store=MemoryTokenStore(), redirect_handler=lambda *_: pytest.fail("no login page must open")
            )
        issuer.answers[path] = deep
        with pytest.raises(AccessDenied):
            await credentials.handle_challenge(parse_url(urls["mcp"]), 401, "Bearer")
        assert issuer.request_counts[path] >= 1


async def test_identity_provider_token_is_sent_only_to_the_provider() -> None:
    token = {"access_token": "granted", "token_type": "Bearer"}
    async with authorization_server(lambda _: token) as (issuer, urls), run_issuer() as home:
        home.answers["/.well-known/openid-configuration"] = {"issuer": home.url, "token_endpoint": f"{home.url}/token"}
        home.answers["/token"] = {"access_token": "the-grant", "issued_token_type": JAG, "token_type": "N_A"}

        async def fresh() -> str:
            return "the-id-token"

        identity = IdentityProvider(home.url, id_token=fresh, client_id="desk-at-home")
        credentials = OAuth(store=MemoryTokenStore(), client_id="desk", client_secret="s" * 32).with_identity_provider(
            identity
        )
        assert await credentials.handle_challenge(parse_url(urls["mcp"]), 401, 'Bearer scope="orders:read"')
        asked = parse_qs(home.requests[-1].partition(b"\r\n\r\n")[2].decode())
        assert asked == {
            "grant_type": ["urn:ietf:params:oauth:grant-type:token-exchange"], "requested_token_type": [JAG],
            "audience": [issuer.url], "resource": [urls["mcp"]], "subject_token": ["the-id-token"],
            "subject_token_type": ["urn:ietf:params:oauth:token-type:id_token"], "scope": ["orders:read"],
            "client_id": ["desk-at-home"],
        }  # fmt: skip
        bought = parse_qs(issuer.requests[-1].partition(b"\r\n\r\n")[2].decode())
        assert (bought["assertion"], bought["grant_type"]) == (
            ["the-grant"], ["urn:ietf:params:oauth:grant-type:jwt-bearer"],
        )  # fmt: skip
        assert header_of(issuer.requests[-1], b"authorization").startswith("Basic ")
        assert not any(b"the-id-token" in each for each in issuer.requests)
        assert await credentials.headers(parse_url(urls["mcp"]), "POST", "/mcp") == {"Authorization": "Bearer granted"}


@for_each(
    "answer",
    [
        {"error": "access_denied", "error_description": "not for you"},
        {"access_token": "x", "issued_token_type": "urn:ietf:params:oauth:token-type:access_token"},
        {"issued_token_type": JAG},
        [],
    ],
)
async def test_invalid_grants_are_not_sent(answer: Any) -> None:
    async with authorization_server(lambda _: {}) as (issuer, urls), run_issuer() as home:
        home.answers["/.well-known/openid-configuration"] = {"issuer": home.url, "token_endpoint": f"{home.url}/token"}
        home.answers["/token"] = answer
        identity = IdentityProvider(home.url, id_token="t", client_id="desk-at-home")
        credentials = OAuth(store=MemoryTokenStore(), client_id="desk").with_identity_provider(identity)
        with pytest.raises(AccessDenied, match="didn't issue a grant for"):
            await credentials.handle_challenge(parse_url(urls["mcp"]), 401, "Bearer")
        assert issuer.request_counts["/token"] == 0


async def test_workload_token_is_read_again_each_time(tmp_path: Path) -> None:
    """RFC 7523 §2.1."""
    file = tmp_path / "token"
    file.write_text("first\n", "utf-8")
    token = {"access_token": "granted", "token_type": "Bearer"}
    async with authorization_server(lambda _: token) as (issuer, urls):
        credentials = OAuth(store=MemoryTokenStore()).with_identity_provider(WorkloadIdentity(issuer.url, token=file))
        for said in ("first", "second"):
            file.write_text(f"{said}\n", "utf-8")
            assert await credentials.handle_challenge(parse_url(urls["mcp"]), 401, 'Bearer scope="orders:read"')
            asked = parse_qs(issuer.requests[-1].partition(b"\r\n\r\n")[2].decode())
            assert asked == {
                "grant_type": ["urn:ietf:params:oauth:grant-type:jwt-bearer"], "assertion": [said],
                "resource": [urls["mcp"]], "scope": ["orders:read"],
            }  # fmt: skip
        assert await credentials.headers(parse_url(urls["mcp"]), "POST", "/mcp") == {"Authorization": "Bearer granted"}
        file.unlink()
        with pytest.raises(AccessDenied, match="identity can't be read"):
            await credentials.handle_challenge(parse_url(urls["mcp"]), 401, "Bearer")


async def test_workload_token_is_sent_only_to_its_issuer() -> None:
    async with authorization_server(lambda _: {}) as (issuer, urls):
        credentials = OAuth(store=MemoryTokenStore()).with_identity_provider(
            WorkloadIdentity("https://login.example", token="t")
        )
        with pytest.raises(AccessDenied, match=r"is for https://login\.example"):
            await credentials.handle_challenge(parse_url(urls["mcp"]), 401, "Bearer")
        assert issuer.request_counts["/token"] == 0
