"""Clients that prove themselves by signatures (`private_key_jwt`, RFC 7523): each proof counts once."""

import json
import time
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import ECKey

from issuer_world import issuing
from issuing_world import BACK, URL, Desk
from millstream import auth
from millstream.auth._issuing.client_proof import ASSERTION

KEY = ECKey.generate_key("P-256", {"kid": "k"})
JWKS = {"keys": [KEY.as_dict(private=False)]}


def assertion(*, key: Any = KEY, alg: str = "ES256", **changes: Any) -> str:
    """A client's proof (RFC 7523)."""
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
    return jws.serialize_compact({"alg": alg, "kid": "k"}, payload, key, algorithms=[alg])


async def prove(desk: Desk, proof: str, **more: str) -> Any:
    """Ask for a token."""
    form = {"grant_type": "client_credentials", "client_assertion_type": ASSERTION, "client_assertion": proof, **more}
    return await desk.post("/token", form)


@pytest.fixture
def batch(desk: Desk) -> Desk:
    """One that knows a client with keys."""
    return Desk(desk.services.store, clients=[auth.client("batch", jwks=JWKS, scopes=["orders:read"])])


@pytest.mark.parametrize("audience", [URL, f"{URL}/token", [URL]])
async def test_a_client_proves_itself_by_a_signature_each_of_which_counts_once(batch: Desk, audience: Any) -> None:
    """RFC 7523 §3; replays are refused."""
    proof = assertion(aud=audience)
    assert (await prove(batch, proof)).status == 200
    again = await prove(batch, proof)
    assert (again.status, again.error) == (401, "invalid_client")


@pytest.mark.parametrize("changes", [
    {"iss": "other"}, {"sub": "other"}, {"aud": "https://other.example"}, {"aud": [URL, "https://other.example"]},
    {"aud": None},
    {"exp": 1}, {"exp": None}, {"exp": "soon"}, {"exp": 9e12}, {"nbf": 9e12}, {"iat": 9e12}, {"jti": None},
    {"jti": 5},
    {"key": ECKey.generate_key("P-256")},
])  # fmt: skip
async def test_a_proof_of_somebody_else_for_somebody_else_or_of_another_time_is_refused(
    batch: Desk, changes: dict[str, Any]
) -> None:
    """RFC 7523 §3."""
    reply = await prove(batch, assertion(**changes))
    assert (reply.status, reply.error) == (401, "invalid_client")


async def test_a_client_with_keys_cannot_do_without_them_nor_name_another(batch: Desk) -> None:
    """Nor use the type of another proof."""
    assert (await batch.post("/token", {"grant_type": "client_credentials", "client_id": "batch"})).status == 401
    assert (await prove(batch, assertion(), client_id="other")).status == 401
    assert (await prove(batch, assertion(), client_assertion_type="urn:x")).status == 400
    assert (await prove(batch, "not.a.token")).status == 401
    assert (await prove(batch, assertion(), client_secret="x")).status == 400


async def test_a_clients_keys_may_be_at_a_url(desk: Desk) -> None:
    """And are fetched when they are needed: in the author's own network, where the program's author has named them."""
    async with issuing() as site:
        site.answers["/jwks"] = JWKS
        client = auth.client("batch", jwks=f"{site.url}/jwks")
        desk = Desk(desk.services.store, clients=[client])
        assert (await prove(desk, assertion())).status == 200
        assert site.asked["/jwks"] == 1
        about = {"redirect_uris": [BACK], "token_endpoint_auth_method": "private_key_jwt"}
        id = (await desk.register(**about, jwks_uri=f"{site.url}/jwks"))["client_id"]
        assert (
            await prove(desk, assertion(iss=id, sub=id), grant_type="refresh_token", refresh_token="x")
        ).status == 503
        assert site.asked["/jwks"] == 1
