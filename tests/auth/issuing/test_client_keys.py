"""Client authentication with `private_key_jwt` (RFC 7523); each assertion is valid once."""

import asyncio
import json
import time
from collections import Counter
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

from cases import for_each
from issuer_world import run_issuer
from issuing_world import BACK, URL, Desk
from millstream import auth
from millstream._limits import Rate
from millstream._oauth import ASSERTION
from millstream.auth._jose import read_keys
from store_parts import BACKINGS

KEY = ECKey.generate_key("P-256", {"kid": "k"})
JWKS = {"keys": [KEY.as_dict(private=False)]}


def assertion(
    *, key: Any = KEY, alg: str = "ES256", kid: str | None = "k", typ: str | None = None, **changes: Any
) -> str:
    """Return a client assertion (RFC 7523)."""
    now = time.time()
    claims = {
        "iss": "batch",
        "sub": "batch",
        "aud": URL,
        "jti": f"{now}{changes}",
        "iat": now,
        "exp": now + 60,
        **changes,
    }
    payload = json.dumps({name: value for name, value in claims.items() if value is not None}).encode()
    head = {name: value for name, value in {"alg": alg, "kid": kid, "typ": typ}.items() if value is not None}
    return jws.serialize_compact(head, payload, key, algorithms=[alg])


async def prove(desk: Desk, proof: str, **more: str) -> Any:
    """Request a token with an assertion."""
    form = {"grant_type": "client_credentials", "client_assertion_type": ASSERTION, "client_assertion": proof, **more}
    return await desk.post("/token", form)


@pytest.fixture
def batch(desk: Desk) -> Desk:
    """Return an authorization server with a configured client that has keys."""
    return Desk(desk.services.store, clients=[auth.client("batch", jwks=JWKS, scopes=["orders:read"])])


@for_each("iat", [None, 0])
async def test_client_assertions_need_only_an_expiry(batch: Desk, iat: int | None) -> None:
    assert (await prove(batch, assertion(iat=iat))).status == 200
    claims = {"iss": "batch", "sub": "batch", "aud": URL, "jti": f"once {iat}", "exp": time.time() + 60, "iat": iat}
    payload = json.dumps(claims).encode()
    assert (await prove(batch, jws.serialize_compact({"alg": "ES256", "kid": "k"}, payload, KEY))).status == 200


@for_each("audience", [URL, f"{URL}/token", [URL]])
async def test_client_assertions_are_accepted_once(batch: Desk, audience: Any) -> None:
    """RFC 7523 §3."""
    proof = assertion(aud=audience)
    assert (await prove(batch, proof)).status == 200
    again = await prove(batch, proof)
    assert (again.status, again.error) == (401, "invalid_client")


@for_each("changes", [
    {"iss": "other"}, {"sub": "other"}, {"aud": "https://other.example"}, {"aud": [URL, "https://other.example"]},
    {"aud": None},
    {"exp": 1}, {"exp": None}, {"exp": "soon"}, {"exp": 9e12}, {"nbf": 9e12}, {"iat": 9e12}, {"jti": None},
    {"jti": 5},
    {"key": ECKey.generate_key("P-256")},
])  # fmt: skip
async def test_assertions_with_wrong_issuer_audience_or_time_are_rejected(batch: Desk, changes: dict[str, Any]) -> None:
    """RFC 7523 §3."""
    reply = await prove(batch, assertion(**changes))
    assert (reply.status, reply.error) == (401, "invalid_client")


@for_each("typ", [
    "JWT", "jwt", "client-authentication+jwt", "dpop+jwt", "at+jwt", "oauth-id-jag+jwt", "logout+jwt", "application/x",
])  # fmt: skip
async def test_signatures_made_for_other_purposes_are_rejected(batch: Desk, typ: str) -> None:
    """RFC 8725 §3.11."""
    good = typ.lower() in ("jwt", "client-authentication+jwt")
    assert (await prove(batch, assertion(typ=typ))).status == (200 if good else 401)


async def test_clients_with_keys_must_use_them(batch: Desk) -> None:
    assert (await batch.post("/token", {"grant_type": "client_credentials", "client_id": "batch"})).status == 401
    assert (await prove(batch, assertion(), client_id="other")).status == 401
    assert (await prove(batch, assertion(), client_assertion_type="urn:x")).status == 400
    assert (await prove(batch, "not.a.token")).status == 401
    assert (await prove(batch, assertion(), client_secret="x")).status == 400


@for_each(("key", "alg"), [
    (KEY, "ES256"), (RSAKey.generate_key(2048), "RS256"), (OKPKey.generate_key("Ed25519"), "Ed25519"),
])  # fmt: skip
async def test_client_keys_may_be_public_keys_in_pem(desk: Desk, key: Any, alg: str) -> None:
    pem = key.as_pem(private=False).decode()
    desk = Desk(desk.services.store, clients=[auth.client("batch", jwks=pem, scopes=["orders:read"])])
    assert (await prove(desk, assertion(key=key, alg=alg, kid=None))).status == 200
    assert (await prove(desk, assertion(key=ECKey.generate_key("P-256"), kid=None))).status == 401


@for_each(("pem", "words"), [
    (KEY.as_pem(private=True).decode(), "private key"),
    ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "starting with"),
    (OKPKey.generate_key("X25519").as_pem(private=False).decode(), "None of the keys for the client batch can verify"),
])  # fmt: skip
def test_unusable_pem_keys_in_the_configuration_are_rejected(pem: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        auth.client("batch", jwks=pem)


def test_key_set_as_text_is_rejected_with_the_forms_to_use() -> None:
    with pytest.raises(
        ValueError, match=r"URL of a key set, a key as PEM, or a key set as a dict: json\.loads\(text\)"
    ):
        auth.client("batch", jwks=json.dumps(JWKS))


async def test_client_keys_can_be_fetched_from_a_url(desk: Desk) -> None:
    async with run_issuer() as site:
        site.answers["/jwks"] = JWKS
        client = auth.client("batch", jwks=f"{site.url}/jwks")
        desk = Desk(desk.services.store, clients=[client])
        assert (await prove(desk, assertion())).status == 200
        assert site.request_counts["/jwks"] == 1
        about = {"redirect_uris": [BACK], "token_endpoint_auth_method": "private_key_jwt"}
        id = (await desk.register(**about, jwks_uri=f"{site.url}/jwks"))["client_id"]
        assert (
            await prove(desk, assertion(iss=id, sub=id), grant_type="refresh_token", refresh_token="x")
        ).status == 503
        assert site.request_counts["/jwks"] == 1


async def test_unknown_key_ids_do_not_refetch_client_keys(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.auth._authorization_server.clients._MAX_KEYS", 3)
    async with run_issuer() as site:
        site.answers["/jwks"] = JWKS
        desk = Desk(desk.services.store, clients=[auth.client("batch", jwks=f"{site.url}/jwks")])
        assert (await prove(desk, assertion())).status == 200
        about = {"redirect_uris": [BACK], "token_endpoint_auth_method": "private_key_jwt"}
        for number in range(9):
            id = (await desk.register(**about, jwks_uri=f"{site.url}/{number}"))["client_id"]
            assert (await prove(desk, assertion(iss=id, sub=id))).status == 503
        site.answers.clear()
        assert (await prove(desk, assertion())).status == 200
        assert site.request_counts == {"/jwks": 1}


async def test_key_set_fetches_are_limited_per_caller(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.auth._authorization_server.clients._LOOKUPS", Rate(2, 60))
    desk = Desk(desk.services.store)
    about = {"redirect_uris": [BACK], "token_endpoint_auth_method": "private_key_jwt"}
    ids = [(await desk.register(**about, jwks_uri=f"http://127.0.0.1:9/{number}"))["client_id"] for number in range(4)]
    replies = [await prove(desk, assertion(iss=id, sub=id)) for id in ids]
    assert [reply.status for reply in replies] == [503] * 4
    assert ["looked up" in reply.text for reply in replies] == [False, False, True, True]


async def test_deeply_nested_key_sets_are_rejected(desk: Desk) -> None:
    async with run_issuer() as site:
        body = b'{"keys":' + b"[" * 20_000
        site.answers["/jwks"] = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        desk = Desk(desk.services.store, clients=[auth.client("batch", jwks=f"{site.url}/jwks")])
        reply = await prove(desk, assertion())
        assert (reply.status, reply.error) == (503, "temporarily_unavailable")


async def test_registration_keeps_only_verification_keys(desk: Desk) -> None:
    odd = {**KEY.as_dict(private=True), "x5c": [[[]]], "key_ops": ["verify"], "oth": {"a": {}}, "alg": ["ES256"]}
    about = {"redirect_uris": [BACK], "token_endpoint_auth_method": "private_key_jwt"}
    said = await desk.register(**about, jwks={"keys": [odd], "more": [[[]]]})
    assert said["jwks"] == {"keys": [{name: odd[name] for name in ("kty", "crv", "x", "y", "kid")}]}
    (kept,) = await desk.services.store.kv.keys("oauth-new:")
    raw = await desk.services.store.kv.get(kept)
    assert raw is not None
    assert str(odd["d"]).encode() not in raw
    id = said["client_id"]
    form = {"grant_type": "refresh_token", "refresh_token": "x"}
    assert (await prove(desk, assertion(iss=id, sub=id), **form)).error == "invalid_grant"
    for strange in ({}, {"keys": {}}, {"keys": ["x"]}, {"keys": [{"kty": "EC"}] * 65}):
        body = json.dumps({**about, "jwks": strange}).encode()
        reply = await desk.ask("POST", "/register", body=body, content_type="application/json")
        assert (reply.status, reply.error) == (400, "invalid_client_metadata")


def test_keys_with_slow_verification_are_ignored() -> None:
    numbers = RSAKey.generate_key(2048).public_key.public_numbers()
    for exponent, there in ((3, True), (65537, True), (2**32 - 1, True), (2**32 + 1, False), (2**2047 + 1, False)):
        known = RSAPublicNumbers(exponent, numbers.n).public_key()
        found = read_keys({"keys": [RSAKey.import_key(known).as_dict(private=False)]})
        assert bool(found) == there, exponent


@pytest.mark.parametrize("kid", [None, "a"])
async def test_tokens_are_checked_against_only_a_few_keys(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, kid: str | None
) -> None:
    tried: list[object] = []

    def count(found: jws.CompactSignature, key: Any, **options: Any) -> bool:
        tried.append(key)
        return verify(found, key, **options)

    verify = jws.validate_compact
    monkeypatch.setattr(jws, "validate_compact", count)
    others = [{**ECKey.generate_key("P-256").as_dict(private=False), "kid": "a"} for _ in range(64)]
    about = {"redirect_uris": [BACK], "token_endpoint_auth_method": "private_key_jwt", "jwks": {"keys": others}}
    id = (await desk.register(**about))["client_id"]
    reply = await prove(desk, assertion(iss=id, sub=id, kid=kid))
    assert (reply.status, len(tried)) == (401, 8)


async def test_registered_and_configured_clients_have_separate_assertion_quotas(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.auth._authorization_server.clients._PROOFS", Rate(5, 60))
    desk = Desk(desk.services.store, clients=[auth.client("batch", jwks=JWKS)])
    about = {"redirect_uris": [BACK], "token_endpoint_auth_method": "private_key_jwt", "jwks": JWKS}
    id = (await desk.register(**about))["client_id"]
    replies = [await prove(desk, assertion(iss=id, sub=id, jti=f"{number}")) for number in range(8)]
    assert [reply.status for reply in replies] == [400] * 5 + [429] * 3, "it may not use client_credentials"
    assert len(await desk.services.store.kv.keys("oauth-jti:")) == 5
    for _ in range(8):
        assert (await prove(desk, assertion())).status == 200


@pytest.mark.server
async def test_concurrent_wrong_secrets_are_throttled() -> None:
    backing = BACKINGS["redis"]()
    desk = Desk(await backing.worker())
    id = (await desk.register(token_endpoint_auth_method="client_secret_post"))["client_id"]
    form = {"grant_type": "refresh_token", "refresh_token": "x", "client_id": id}
    replies = await asyncio.gather(*(desk.post("/token", {**form, "client_secret": f"{n}"}) for n in range(100)))
    found = Counter(reply.status for reply in replies)
    assert found.keys() == {401, 429}
    assert 30 <= found[401] < 30 + 8
    await backing.close()
