"""Crowds of proofs (DPoP, RFC 9449) that aren't right: signatures take long, so few of them are looked at.

How long that takes doesn't matter here. What is counted is how many signatures are looked at, and what is kept.
"""

import time
from typing import Any

import pytest
from joserfc.jwk import ECKey, RSAKey

from auth.test_bound_tokens import KEY, OTHER, bound, call, digest, known, proof, signed
from auth_world import ALICE, Guarded, guarded, make_server
from issuer_world import AUDIENCE, ISSUER, key_set
from millstream import auth
from millstream._http.message import Request
from millstream._protocol.seal import KeyRing
from millstream.auth import _jose
from millstream.auth._method import Forging
from millstream.auth._proofs import Nonces, Proofs

MANY = 200
NOW = 1000.0
ALLOWED = 30
"""Wrong signatures of one address, for one key."""


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The algorithms of all signatures that are looked at."""
    found: list[str] = []
    verify = _jose.verify

    def noting(token: str, key: Any, algorithm: str) -> Any:
        found.append(algorithm)
        return verify(token, key, algorithm)

    monkeypatch.setattr(_jose, "verify", noting)
    return found


def forged(text: str) -> str:
    """The same proof, with a signature that is none."""
    return f"{text.rpartition('.')[0]}.{'A' * 86}"


def stop_clocks(world: Guarded) -> None:
    """Nothing that was refused comes back, and nothing that is known is looked at again, however long a test takes."""
    guard, now = world.runtime.guard, time.monotonic()
    assert guard is not None
    assert guard._proofs is not None, "there was a proof"
    for each in (guard, guard._failures, guard._proofs.forged):
        each.clock = lambda: now


async def test_few_signatures_of_forged_proofs_are_looked_at(looked: list[str]) -> None:
    """A fixed defect: whoever had seen one request could have the server check as many signatures as they liked, two
    for each request. The holder of the key had a good one before, and whoever has another credential isn't slowed.
    """
    methods = [auth.keys(ALICE), auth.jwt(issuer=ISSUER, audience=AUDIENCE, jwks=key_set("ES256"))]
    async with guarded(make_server(methods)) as world:
        assert world.runtime.guard is not None
        world.runtime.guard._began -= 3600.0
        credential = bound()
        assert (await call(world, credential, proof(world, credential))).status == 200
        assert (await world.call(ALICE, "who")).status == 200
        stop_clocks(world)
        looked.clear()
        replies = [await call(world, credential, forged(proof(world, credential))) for _ in range(MANY)]
        assert {each.status for each in replies[:ALLOWED]} == {401}
        assert {each.status for each in replies[ALLOWED:]} == {429}
        assert b"retry-after" in replies[-1].headers
        assert len(looked) <= ALLOWED + 1
        assert (await world.call(ALICE, "who")).status == 200


async def test_no_signature_is_looked_at_of_a_proof_that_cannot_count(looked: list[str]) -> None:
    """A fixed defect: a replay, and a proof for something else, cost as much as a good one. Nor does any of them keep
    the holder of the key from going on.
    """
    async with known() as world:
        credential = bound()
        once = proof(world, credential)
        assert (await call(world, credential, once)).status == 200
        stop_clocks(world)
        looked.clear()
        big = RSAKey.generate_key(2048)
        wrong = [
            once,
            proof(world, credential, ath=digest("another")),
            proof(world, credential, htm="GET"),
            proof(world, credential, htu="http://127.0.0.1:1/mcp"),
            proof(world, credential, iat=1),
            proof(world, credential, iat=1e308),
            proof(world, credential, jti="x" * 300),
            proof(world, credential, key=OTHER),
            proof(world, credential, key=big, alg="RS256"),
            proof(world, credential, more="x" * 5000),
            proof(world, credential, head={"jwk": {"kty": "EC", "crv": "P-256", "x": 5, "y": ["x"]}}),
            proof(world, credential, head={"jwk": {"kty": ["EC"], "x": {}}}),
            proof(world, credential, head={"jwk": {**KEY.as_dict(private=False), "crv": "P-521"}}),
        ]
        for number in range(MANY):
            reply = await call(world, credential, wrong[number % len(wrong)])
            assert reply.status in (401, 429), wrong[number % len(wrong)]
        assert looked == []
        assert (await call(world, credential, proof(world, credential))).status == 200


async def test_whoever_forges_from_one_address_slows_nobody_elsewhere_and_leaves_nothing(looked: list[str]) -> None:
    """Wrong signatures count for an address and a key together. What is kept of forgers is bounded."""
    told = [NOW]
    proofs = Proofs(AUDIENCE, Nonces(lambda: KeyRing([b"k" * 32])), began=-3600.0, clock=lambda: told[0])
    thumbprint = KEY.thumbprint()

    def request(peer: str, name: str, key: ECKey = KEY, *, good: bool = False) -> Request:
        said = {"jti": name, "htm": "POST", "htu": AUDIENCE, "iat": NOW, "ath": digest("token")}
        shown = signed(said, key=key)
        raw = [(b"host", b"127.0.0.1"), (b"dpop", (shown if good else forged(shown)).encode())]
        return Request("POST", "/mcp", raw, dict(raw), peer=peer)

    async def holds(*given: Any, **more: Any) -> bool:
        return await proofs.holds(request(*given, **more), b"token", thumbprint, None)

    for number in range(ALLOWED):
        # Each address of a customer's IPv6 network, and both ways to write an address of IPv4, count as one.
        assert not await holds(("2001:db8::1", "2001:db8::ffff:2")[number % 2], f"{number}")
    for peer in ("2001:db8::3", "2001:0DB8:0:0:1::"):
        with pytest.raises(Forging):
            await holds(peer, "more")
    assert len(looked) == ALLOWED
    assert await holds("2001:db8:0:1::1", "good", good=True)
    assert await holds("192.0.2.1", "another good one", good=True)
    assert len(proofs._seen) == 2
    assert len(proofs.forged) == 1
    proofs.forged._max_keys = 50
    for number in range(120):
        assert not await holds(f"192.0.2.{number}", f"one of {number}")
    assert len(proofs.forged) <= 50
    assert len(proofs._seen) == 2
    told[0] += 59
    assert await holds("2001:db8::1", "a good one again", good=True)
