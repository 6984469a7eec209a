"""Clients that authenticate by signature (`private_key_jwt`, RFC 7523 §2.2), as the extension
`io.modelcontextprotocol/oauth-client-credentials` recommends. Our own authorization server verifies the requests.
"""

import json
from base64 import urlsafe_b64decode
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import ECKey, OKPKey, RSAKey

from auth.issuing.test_sign_in_end_to_end import serving
from backend_stores import MemoryStore as ServerStore
from cases import for_each
from issuer_world import run_issuer
from issuing_world import URL, Desk, claims_of
from millstream import Client, auth
from millstream._http.client.url import parse_url
from millstream.client import AccessDenied, MemoryTokenStore, OAuth, Options
from millstream.client._oauth import Registration
from millstream.client._oauth.signing import assertion

NIGHTLY = ECKey.generate_key("P-256")
KEYS = {
    "ES256": NIGHTLY, "ES384": ECKey.generate_key("P-384"), "ES512": ECKey.generate_key("P-521"),
    "RS256": RSAKey.generate_key(2048), "Ed25519": OKPKey.generate_key("Ed25519"),
}  # fmt: skip
PAGE = "https://client.example/about.json"


def pem(key: Any) -> str:
    """Return a private key in PEM."""
    return str(key.as_pem(private=True).decode())


def public(key: Any, **more: str) -> dict[str, Any]:
    """Return the public key for the issuer."""
    return {"keys": [{**key.as_dict(private=False), **more}]}


def signed(key: Any, *taken: str, key_id: str = "") -> dict[str, str]:
    """Return the form fields that authenticate `nightly`."""
    who = Registration("nightly", "", "private_key_jwt", pem(key), key_id)
    return assertion(URL, taken, who)


def head_of(form: dict[str, str]) -> dict[str, Any]:
    """Return the header of an assertion."""
    return dict(json.loads(urlsafe_b64decode(form["client_assertion"].split(".")[0] + "==")))


@for_each("kind", KEYS)
async def test_issuers_accept_assertions_signed_with_common_keys(kind: str) -> None:
    desk = Desk(ServerStore(), clients=[auth.client("nightly", jwks=public(KEYS[kind]), scopes=["orders:read"])])
    sent = {"grant_type": "client_credentials", **signed(KEYS[kind], kind)}
    assert head_of(sent) == {"alg": kind, "typ": "JWT"}
    first, again = await desk.post("/token", sent), await desk.post("/token", sent)
    assert (first.status, again.status) == (200, 401), first.text
    claims = claims_of(sent["client_assertion"])
    assert (claims["iss"], claims["sub"], claims["aud"]) == ("nightly", "nightly", URL)
    assert claims["exp"] - claims["iat"] <= 60


async def test_signing_algorithm_follows_the_issuer() -> None:
    """RFC 8414 §2."""
    assert head_of(signed(KEYS["RS256"], "PS256", "ES256"))["alg"] == "PS256"
    assert [head_of(signed(KEYS["Ed25519"], *taken))["alg"] for taken in ((), ("Ed25519",))] == ["EdDSA", "Ed25519"]
    with pytest.raises(AccessDenied, match="accepts RS256 signatures, but this key signs with ES256"):
        signed(NIGHTLY, "RS256")
    client = auth.client("nightly", jwks=public(KEYS["RS256"], alg="PS256"), scopes=["orders:read"])
    form = {"grant_type": "client_credentials", **signed(KEYS["RS256"], "PS256")}
    assert (await Desk(ServerStore(), clients=[client]).post("/token", form)).status == 200


async def test_key_id_follows_the_registration() -> None:
    client = auth.client("nightly", jwks=public(NIGHTLY, kid="2026"), scopes=["orders:read"])
    desk = Desk(ServerStore(), clients=[client])
    for name, status in (("2026", 200), ("2025", 401), ("", 200)):
        form = {"grant_type": "client_credentials", **signed(NIGHTLY, key_id=name)}
        assert (await desk.post("/token", form)).status == status, name


@for_each(
    ("key", "words"),
    [
        ("nonsense", "PEM"),
        (pem(ECKey.generate_key("secp256k1")), "must be P-256"),
        (pem(OKPKey.generate_key("X25519")), "must be P-256"),
        (NIGHTLY.as_pem(private=False).decode(), "PEM"),
        (NIGHTLY.as_pem(private=True, password="word").decode(), "without a password"),
    ],
)
def test_keys_that_cannot_sign_are_rejected(key: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OAuth(store=MemoryTokenStore(), client_id="nightly").with_private_key(key)


def test_assertions_replace_the_client_secret() -> None:
    for given in ({}, {"client_id": "nightly", "client_secret": "s" * 32}):
        with pytest.raises(ValueError, match="no client_secret"):
            OAuth(store=MemoryTokenStore(), **given).with_private_key(pem(NIGHTLY))


async def test_jobs_authenticate_with_signed_assertions(tmp_path: Path) -> None:
    file = tmp_path / "nightly.pem"
    file.write_text(pem(NIGHTLY))
    client = auth.client("nightly", jwks=public(NIGHTLY), scopes=["orders:write"])
    async with serving(clients=[client]) as url:
        store = MemoryTokenStore()
        credentials = OAuth(store=store, client_id="nightly", client_credentials=True).with_private_key(file)
        async with Client(f"{url}/mcp", options=Options(auth=credentials)) as calling:
            assert (await calling.call("who")).text == "nightly orders:write"
        kept = store.load()
        assert not kept.registrations
        assert await credentials.sign_out(parse_url(f"{url}/mcp"))


async def test_every_request_has_a_fresh_assertion() -> None:
    async with run_issuer() as issuer:
        seen: list[str] = []

        def give(request: bytes) -> Any:
            seen.append(request.partition(b"client_assertion=")[2].partition(b"&")[0].decode())
            if len(seen) > 1:
                return {"access_token": "t", "token_type": "DPoP"}
            body = b'{"error":"use_dpop_nonce"}'
            return b"HTTP/1.1 400 x\r\nDPoP-Nonce: n\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)

        issuer.answers["/token"] = give
        issuer.answers["/.well-known/oauth-authorization-server"] = {
            "issuer": issuer.url, "token_endpoint": f"{issuer.url}/token",
            "dpop_signing_alg_values_supported": ["ES256"],
        }  # fmt: skip
        credentials = OAuth(store=MemoryTokenStore(), client_id="nightly", client_credentials=True).with_private_key(
            pem(NIGHTLY)
        )
        assert await credentials.handle_challenge(parse_url(f"{issuer.url}/mcp"), 401, "DPoP")
        assert len({*seen}) == 2


async def test_metadata_document_clients_sign_assertions() -> None:
    async with run_issuer() as issuer:
        issuer.answers["/token"] = {"access_token": "t", "token_type": "Bearer"}
        issuer.answers["/.well-known/oauth-authorization-server"] = {
            "issuer": issuer.url, "token_endpoint": f"{issuer.url}/token",
            "client_id_metadata_document_supported": True,
        }  # fmt: skip
        about: dict[str, Any] = {"client_metadata_url": PAGE, "client_credentials": True}
        url = parse_url(f"{issuer.url}/mcp")
        assert (
            await OAuth(store=MemoryTokenStore(), **about).with_private_key(pem(NIGHTLY)).handle_challenge(url, 401, "")
        )
        assert await OAuth(store=MemoryTokenStore(), **about).handle_challenge(url, 401, "")
        signing, bare = (request for request in issuer.requests if request.startswith(b"POST /token"))
        assert b"client_id=https%3A%2F%2Fclient.example%2Fabout.json" in signing
        assert b"client_assertion=" in signing
        assert b"client_assertion" not in bare


async def test_registration_does_not_choose_the_signing_key() -> None:
    async with run_issuer() as issuer:
        issuer.answers["/register"] = {
            "client_id": "me", "token_endpoint_auth_method": "private_key_jwt", "private_key": pem(NIGHTLY),
        }  # fmt: skip
        issuer.answers["/.well-known/oauth-authorization-server"] = {
            "issuer": issuer.url, "token_endpoint": f"{issuer.url}/token",
            "authorization_endpoint": f"{issuer.url}/authorize", "registration_endpoint": f"{issuer.url}/register",
            "code_challenge_methods_supported": ["S256"],
        }  # fmt: skip
        store = MemoryTokenStore()
        await OAuth(store=store).ask(parse_url(f"{issuer.url}/mcp"), 401, "")
        assert store.load().registrations[issuer.url] == Registration("me", "", "private_key_jwt")
