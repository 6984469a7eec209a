"""Tokens that are bound to a key (DPoP, RFC 9449): they count with a fresh proof of it, and never as bearer tokens."""

import asyncio
import hashlib
import json
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any
from urllib.parse import urlencode

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from joserfc import jws
from joserfc.jwk import ECKey, OctKey, RSAKey

from auth.test_sign_in import FORM, OWN
from auth_world import Guarded, guarded, make_server
from issuer_world import AUDIENCE, ISSUER, claims, issuing, key_set, token
from millstream import Client, auth
from millstream._http.message import Request
from millstream._limits.pool import Pool
from millstream._protocol.seal import KeyRing
from millstream._stores.memory.store import MemoryStore
from millstream.auth._method import NonceWanted
from millstream.auth._proofs import Nonces, Proofs, read_proof
from millstream.client import MemoryStore as Kept
from millstream.client import OAuth, Options
from millstream.client._oauth.proof_key import ProofKey
from processes import free_port
from wire import Reply, enveloped, routing

KEY = ECKey.generate_key("P-256")
OTHER = ECKey.generate_key("P-256")


def bound(key: Any = KEY, **changes: Any) -> str:
    """A token that is bound to a key."""
    return token(claims(cnf={"jkt": key.thumbprint()}, **changes))


def digest(text: str) -> str:
    """The hash of a token, as a proof has it."""
    return urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def proof(world: Guarded, of: str, *, key: Any = KEY, alg: str = "ES256", head: Any = None, **changes: Any) -> str:
    """A good proof for a call, but for the changes; None takes a claim away."""
    good = {"jti": f"{time.time_ns()}", "htm": "POST", "htu": f"http://127.0.0.1:{world.running.port}/mcp",
            "iat": int(time.time()), "ath": digest(of)}  # fmt: skip
    said = {name: value for name, value in {**good, **changes}.items() if value is not None}
    return signed(said, key=key, alg=alg, head=head)


def signed(said: Any, *, key: Any = KEY, alg: str = "ES256", head: Any = None) -> str:
    """A proof that says this."""
    public = dict(key.as_dict(private=False)) if not isinstance(key, OctKey) else dict(key.as_dict())
    header = {"typ": "dpop+jwt", "alg": alg, "jwk": public, **(head or {})}
    if alg != "ES256":
        return jws.serialize_compact(header, json.dumps(said).encode(), key, algorithms=[alg])
    # By hand: what is wrong here can't be made by a library.
    parts = b".".join(urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=") for each in (header, said))
    r, s = decode_dss_signature(key.private_key.sign(parts, ec.ECDSA(hashes.SHA256())))
    return (parts + b"." + urlsafe_b64encode(r.to_bytes(32) + s.to_bytes(32)).rstrip(b"=")).decode()


async def call(world: Guarded, credential: str, *proofs: str, scheme: str = "DPoP") -> Reply:
    """Call a tool, with as many proofs."""
    headers = {name.replace("-", "_"): value for name, value in routing("tools/call", "who").items()}
    headers |= {"authorization": f"{scheme} {credential}", "host": f"127.0.0.1:{world.running.port}"}
    for number, each in enumerate(proofs):
        headers["dpop" if number == 0 else "DPoP"] = each
    body = json.dumps(enveloped("tools/call", {"name": "who", "arguments": {}})).encode()
    return await world.ask(None, "POST", "/mcp", body, **headers)


def server() -> Any:
    """One that takes tokens."""
    return make_server(auth.jwt(issuer=ISSUER, audience=AUDIENCE, jwks=key_set("ES256")))


@asynccontextmanager
async def known(*, began: float = -3600.0) -> AsyncIterator[Guarded]:
    """It, and it has run for a while: what it has seen, it knows."""
    async with guarded(server()) as world:
        assert world.runtime.guard is not None
        world.runtime.guard._began += began
        yield world


async def test_a_bound_token_counts_with_a_proof_of_its_key() -> None:
    """Each request has another one; clients with our own code make them right."""
    async with known() as world:
        credential = bound()
        for _ in range(3):
            assert (await call(world, credential, proof(world, credential))).status == 200
        ours = ProofKey()
        jwk = json.loads(urlsafe_b64decode(ours.proof("GET", "https://a.example").split(".")[0] + "=="))["jwk"]
        credential = bound(ECKey.import_key(jwk))
        for url in (f"http://127.0.0.1:{world.running.port}/mcp?x=1", AUDIENCE):
            assert (await call(world, credential, ours.proof("POST", url, token=credential))).status == 200


async def test_a_bound_token_is_no_bearer_token() -> None:
    """Not in a header, not in the form for the pages, and not after it was believed with a proof."""
    async with known() as world:
        credential = bound(scope="millstream:watch")
        assert (await call(world, credential, proof(world, credential))).status == 200
        for proofs in ((), (proof(world, credential),)):
            reply = await call(world, credential, *proofs, scheme="Bearer")
            assert (reply.status, b"invalid_token" in reply.headers[b"www-authenticate"]) == (401, True)
        form = urlencode({"key": credential, "next": "/dashboard"}).encode()
        assert (await world.ask(None, "POST", "/sign-in", form, **FORM, **OWN)).status == 403
        for jar in (f"DPoP {credential}", f"\0DPoP {credential}"):
            own = {**OWN, "cookie": f"millstream={jar}", "accept": "application/json"}
            assert (await world.ask(None, "GET", "/dashboard/history", **own)).status in (400, 401)


BAD: dict[str, dict[str, Any]] = {
    "another key": {"key": OTHER},
    "another method": {"htm": "GET"},
    "no method": {"htm": None},
    "another path": {"htu": "http://127.0.0.1/other"},
    "another host": {"htu": "http://evil.example/mcp"},
    "a path that only ends the same": {"htu": "https://mcp.example.com/other/mcp"},
    "no url": {"htu": None},
    "a broken url": {"htu": "http://["},
    "another token": {"ath": digest("other")},
    "no token": {"ath": None},
    "no id": {"jti": None},
    "an id that is no text": {"jti": 5},
    "a huge id": {"jti": "x" * 2000},
    "too old": {"iat": int(time.time()) - 10_000},
    "of the future": {"iat": int(time.time()) + 10_000},
    "a time that is a text": {"iat": "now"},
    "a time that is none": {"iat": float("nan")},
    "an endless time": {"iat": float("inf")},
    "a time that is larger than any float": {"iat": 10**400},
    "another type": {"head": {"typ": "jwt"}},
    "something critical": {"head": {"crit": ["x"]}},
    "a private key": {"head": {"jwk": KEY.as_dict(private=True)}},
    "no key": {"head": {"jwk": None}},
    "a key that is a text": {"head": {"jwk": "x"}},
    "a shared secret": {"key": OctKey.import_key("s" * 32), "alg": "HS256"},
    "somebody else's key in the header": {"key": OTHER, "head": {"jwk": KEY.as_dict(private=False)}},
}


@pytest.mark.parametrize("name", BAD)
async def test_what_is_no_proof_for_this_request_is_refused(name: str) -> None:
    """RFC 9449 §4.3, point by point. The challenge says how proofs are made."""
    async with known() as world:
        credential = bound()
        reply = await call(world, credential, proof(world, credential, **BAD[name]))
        assert reply.status == 401
        assert reply.headers[b"www-authenticate"].startswith(b'DPoP error="invalid_token"')
        assert b'algs="ES256 ' in reply.headers[b"www-authenticate"]


SAME = ["HTTPS://MCP.Example.COM/mcp", "https://mcp.example.com:443/mcp", "https://mcp.example.com:/mcp",
        "https://mcp.example.com:0443/mcp", "https://mcp.example.com/%6Dcp", "https://mcp.example.com/%6dc%70?x=1#y",
        "https://mcp.example.com/mcp?", "wss://mcp.example.com/mcp"]  # fmt: skip
OTHERS = ["http://mcp.example.com/mcp", "https://mcp.example.com:80/mcp", "https://mcp.example.com:4430/mcp",
          "https://mcp.example.com:443:443/mcp", "https://ada@mcp.example.com/mcp", "https://mcp.example.com@evil/mcp",
          "https://mcp.example.com/MCP", "https://mcp.example.com/mcp/", "https://mcp.example.com/%256Dcp",
          "//mcp.example.com/mcp", "/mcp", "mcp.example.com/mcp", "https:///mcp", "https://mcp.example.com\\/mcp",
          "https://mcp.example.com/mcp\u00e9", "https://mcp.example.com?/mcp", "ftp://mcp.example.com/mcp"]  # fmt: skip


async def test_a_url_is_compared_by_what_it_means() -> None:
    """RFC 9449 §4.3: after normalization by syntax and scheme (RFC 3986 §6.2.2, §6.2.3). A fixed defect: a default
    port that was written out was another URL.
    """
    async with known() as world:
        credential = bound()
        for url in SAME:
            assert (await call(world, credential, proof(world, credential, htu=url))).status == 200, url
        for url in OTHERS:
            assert (await call(world, credential, proof(world, credential, htu=url))).status == 401, url


@pytest.mark.parametrize(
    ("host", "url", "same"),
    [
        ("mcp.example.com", "http://mcp.example.com", True),
        ("mcp.example.com", "http://mcp.example.com?x=/", True),
        ("mcp.example.com:80", "http://mcp.example.com/", True),
        ("mcp.example.com", "http://mcp.example.com:80/", True),
        ("[::1]:80", "http://[0:0:0:0:0:0:0:1]/", True),
        ("[2001:DB8::1]", "http://[2001:db8:0::1]:80", True),
        ("mcp.example.com:8080", "http://mcp.example.com/", False),
        ("mcp.example.com", "http://mcp.example.com//", False),
        ("", "http:///", False),
        ("ada@mcp.example.com", "http://ada@mcp.example.com/", False),
    ],
)
def test_an_empty_path_is_the_root_and_a_host_may_be_written_in_several_ways(host: str, url: str, same: bool) -> None:
    """RFC 3986 §6.2.3; an address of IPv6 has many spellings."""
    shown = signed({"jti": "a", "htm": "GET", "htu": url, "iat": 1000})
    raw = [(b"host", host.encode()), (b"dpop", shown.encode())]
    request = Request("GET", "/", raw, dict(raw), scheme="http")
    assert (read_proof(request, "https://other.example/mcp", 1000.0) is not None) == same


async def test_a_proof_counts_once() -> None:
    """A replay is refused, also when both come at the same time."""
    async with known() as world:
        credential = bound()
        once = proof(world, credential)
        replies = await asyncio.gather(*(call(world, credential, once) for _ in range(4)))
        assert sorted(each.status for each in replies) == [200, 401, 401, 401]


async def test_a_proof_counts_once_at_all_workers_that_share_a_store() -> None:
    """What one worker has seen, the others refuse."""
    store = MemoryStore()
    await store.open()
    async with known() as one, known() as two:
        for world in (one, two):
            assert world.runtime.guard is not None
            world.runtime.guard.pool = Pool(store.rates)
        credential = bound()
        for first, second in ((one, two), (two, one)):
            once = proof(first, credential, htu=AUDIENCE)
            assert (await call(first, credential, once)).status == 200
            assert (await call(second, credential, once)).status == 401
    await store.close()


async def test_what_was_seen_before_a_restart_counts_no_more() -> None:
    """A fixed defect: without Redis a server that had just started took every proof of its last minutes again. It asks
    for a nonce as long as a proof could be older than itself (RFC 9449 §9), and that's no failed sign-in.
    """
    credential = bound()
    async with known() as before:
        once = proof(before, credential, htu=AUDIENCE)
        assert (await call(before, credential, once)).status == 200
    async with known(began=0.0) as world:
        for _ in range(40):
            reply = await call(world, credential, once)
            assert (reply.status, b'DPoP error="use_dpop_nonce"' in reply.headers[b"www-authenticate"]) == (401, True)
        nonce = reply.headers[b"dpop-nonce"].decode()
        shown = proof(world, credential, nonce=nonce)
        assert [(await call(world, credential, shown)).status for _ in range(2)] == [200, 401]
        for wrong in ("x", nonce[:-1], 5, ""):
            assert b"dpop-nonce" in (await call(world, credential, proof(world, credential, nonce=wrong))).headers
        assert b"dpop-nonce" not in (await call(world, credential, proof(world, credential, htm="GET"))).headers


async def test_a_nonce_of_before_the_start_is_none() -> None:
    """Whoever saw a proof then may have seen its nonce, too. That of another worker counts."""
    async with known(began=0.0) as world:
        guard = world.runtime.guard
        assert guard is not None
        nonces = Nonces(lambda: world.runtime.services.ring)
        for made, status in ((guard._began - 1, 401), (guard._began + 1, 200)):
            credential = bound()
            shown = proof(world, credential, nonce=nonces.make(made))
            assert (await call(world, credential, shown)).status == status


@pytest.mark.parametrize(("issued", "wanted"), [(999, True), (1060, True), (1061, False), (1120, False)])
async def test_no_nonce_is_asked_for_once_a_proof_is_younger_than_the_server(issued: int, wanted: bool) -> None:
    """By any clock: the one that made a proof before the start may have been a minute ahead."""
    ring = KeyRing((b"s" * 32,))
    proofs = Proofs(AUDIENCE, Nonces(lambda: ring), began=1000.0, clock=lambda: max(1000.0, issued - 30.0))
    shown = signed({"jti": "a", "htm": "GET", "htu": AUDIENCE, "iat": issued, "ath": digest("token")})
    raw = [(b"host", b"mcp.example.com"), (b"dpop", shown.encode())]
    request = Request("GET", "/mcp", raw, dict(raw))
    with pytest.raises(NonceWanted) if wanted else nullcontext():
        assert await proofs.holds(request, b"token", KEY.thumbprint(), None)


async def test_no_nonce_is_asked_for_where_the_store_remembers() -> None:
    """Redis knows what was seen, whoever starts again."""
    async with known(began=0.0) as world:
        store = MemoryStore()
        await store.open()
        assert world.runtime.guard is not None
        world.runtime.guard.pool = pool = Pool(store.rates)
        pool.lasting = True
        credential = bound()
        assert (await call(world, credential, proof(world, credential))).status == 200
        await store.close()


async def test_a_request_without_one_proof_or_with_two_is_refused() -> None:
    """RFC 9449 §4.3: exactly one header."""
    async with known() as world:
        credential = bound()
        for proofs in ((), ("",), ("x",), ("a.b.c",), ("x" * 9000,),
                       (proof(world, credential), proof(world, credential))):  # fmt: skip
            assert (await call(world, credential, *proofs)).status == 401


async def test_a_token_that_is_not_bound_counts_as_a_bearer_token_only() -> None:
    """§7.1: a scheme can't be chosen by whoever has stolen a token."""
    async with known() as world:
        plain = token()
        assert (await call(world, plain, proof(world, plain))).status == 401
        assert (await call(world, plain, scheme="Bearer")).status == 200


@pytest.mark.parametrize(
    "bond", [{"x5t#S256": "x"}, {}, {"jkt": ""}, {"jkt": 5}, "x", [], {"jkt": KEY.thumbprint(), "kid": "x"}]
)
@pytest.mark.parametrize("scheme", ["DPoP", "Bearer"])
async def test_a_token_that_is_bound_by_what_nobody_checks_here_is_refused(bond: Any, scheme: str) -> None:
    """Such as a certificate (RFC 8705): its issuer doesn't want it to be worth anything without."""
    async with known() as world:
        credential = token(claims(cnf=bond))
        assert (await call(world, credential, proof(world, credential), scheme=scheme)).status == 401


@pytest.mark.filterwarnings("ignore:Key size")
async def test_proofs_by_other_algorithms_count_if_their_keys_are_strong() -> None:
    """RSA of 2,048 bits; a weak key is none."""
    async with known() as world:
        for bits, status in ((2048, 200), (1024, 401)):
            key = RSAKey.generate_key(bits)
            credential = bound(key)
            assert (await call(world, credential, proof(world, credential, key=key, alg="RS256"))).status == status


async def test_who_guesses_at_an_address_does_not_lock_out_bound_tokens_there() -> None:
    """As with bearer tokens, one that is known already goes on; without a good proof it waits like everybody."""
    async with known() as world:
        credential = bound()
        once = proof(world, credential)
        assert (await call(world, credential, once)).status == 200
        for number in range(40):
            await call(world, f"guess{number}", scheme="Bearer")
        assert (await call(world, credential, proof(world, credential))).status == 200
        for bad in (once, proof(world, credential, htm="GET"), proof(world, credential, key=OTHER)):
            assert (await call(world, credential, bad)).status == 429
        assert (await call(world, token(), scheme="Bearer")).status == 429


async def test_clients_learn_that_tokens_may_be_bound() -> None:
    """RFC 9728 §2; where only keys count, the scheme is nothing that anybody knows."""
    async with known() as world:
        reply = await world.ask(None, "GET", "/.well-known/oauth-protected-resource/mcp")
        assert "ES256" in json.loads(reply.body)["dpop_signing_alg_values_supported"]
    async with guarded() as world:
        assert (await call(world, "x" * 20, "a.b.c")).status == 401


async def test_our_client_and_our_server_bind_tokens_without_being_told_to() -> None:
    """The server's metadata say that it takes them, the issuer's that it gives them."""
    async with issuing() as issuer:
        port = free_port()
        here = f"http://127.0.0.1:{port}/mcp"

        def give(request: bytes) -> Any:
            shown = request.partition(b"DPoP: ")[2].partition(b"\r\n")[0].decode()
            jwk = json.loads(urlsafe_b64decode(shown.split(".")[0] + "=="))["jwk"]
            said = claims(iss=issuer.url, aud=here, cnf={"jkt": ECKey.import_key(jwk).thumbprint()})
            return {"access_token": token(said), "token_type": "DPoP", "expires_in": 600}

        issuer.answers["/token"] = give
        issuer.answers["/.well-known/oauth-authorization-server"] = {
            "issuer": issuer.url, "token_endpoint": f"{issuer.url}/token",
            "jwks_uri": f"{issuer.url}/keys", "dpop_signing_alg_values_supported": ["ES256"],
        }  # fmt: skip
        methods = auth.jwt(issuer=issuer.url, audience=here, jwks=f"{issuer.url}/keys")
        async with guarded(make_server(methods), port=port):
            store = Kept()
            credentials = OAuth(store=store, client_id="desk", client_secret="s" * 32, as_itself=True)
            async with Client(here, options=Options(auth=credentials)) as client:
                for _ in range(3):
                    assert (await client.call("who")).text == "ada"
            (kept,) = store.load().tokens.values()
            assert kept.proof_key.startswith("-----BEGIN PRIVATE KEY-----")
        assert issuer.asked["/token"] == 1
