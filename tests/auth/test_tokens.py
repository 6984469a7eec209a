import json
import re
import time
from typing import Any

import pytest
from joserfc.jwk import OctKey

from auth_world import make_server, run_guarded
from cases import for_each
from issuer_world import (
    AUDIENCE,
    ISSUER,
    KEYS,
    OTHER,
    claims,
    craft_token,
    key_set,
    make_many_keys,
    run_issuer,
    sign_with_public_key,
    token,
)
from millstream import auth
from wire import request

LEEWAY = 60.0
"""Seconds that clocks may differ."""

PING = request("ping", id=5)
METADATA = "https://mcp.example.com/.well-known/oauth-protected-resource/mcp"


def method(**options: Any) -> Any:
    """Return a method for the issuer with fixed keys."""
    return auth.jwt(**{"issuer": ISSUER, "audience": AUDIENCE, "jwks": key_set(), **options})


@for_each("alg", KEYS)
@for_each("kid", [True, False])
async def test_valid_tokens_identify_the_principal(alg: str, kid: bool) -> None:
    """RFC 9068."""
    found = await method().identify(token(alg=alg, **({} if kid else {"kid": None})))
    assert found is not None
    principal = found.principal
    assert (principal.subject, principal.issuer, principal.client) == ("ada", ISSUER, "desk")
    assert principal.scopes == {"orders:write"}
    assert principal.claims["exp"] > time.time()
    assert 0 < found.seconds <= 60


NOW = time.time()
WRONG_CLAIMS: dict[str, dict[str, Any]] = {
    "no issuer": {"iss": None},
    "another issuer": {"iss": "https://evil.example"},
    "an issuer that begins alike": {"iss": ISSUER + ".evil.example"},
    "an issuer with a slash": {"iss": ISSUER + "/"},
    "no audience": {"aud": None},
    "another audience": {"aud": "https://other.example/mcp"},
    "an audience that begins alike": {"aud": AUDIENCE + "2"},
    "a shorter audience": {"aud": AUDIENCE[:-1]},
    "an audience below": {"aud": AUDIENCE + "/x"},
    "other audiences": {"aud": ["https://other.example", AUDIENCE + "2"]},
    "an audience that is an object": {"aud": {AUDIENCE: 1}},
    "an audience in an array of arrays": {"aud": [[AUDIENCE]]},
    "no subject": {"sub": None},
    "an empty subject": {"sub": ""},
    "a subject that is a number": {"sub": 7},
    "a subject without an end": {"sub": "a" * 600},
    "no expiry": {"exp": None},
    "expired": {"exp": NOW - LEEWAY - 5},
    "an expiry that is a text": {"exp": str(int(NOW + 600))},
    "an expiry that is true": {"exp": True},
    "an expiry that is an array": {"exp": [NOW + 600]},
    "an expiry out of all reason": {"exp": 1e300},
    "not yet": {"nbf": NOW + LEEWAY + 7200},
    "a beginning that is a text": {"nbf": "0"},
    "made in the future": {"iat": NOW + LEEWAY + 7200},
    "made at a text": {"iat": "0"},
    "bound to a key": {"cnf": {"jkt": "x" * 43}},
    "bound to a certificate": {"cnf": {"x5t#S256": "x"}},
    "bound to nothing known": {"cnf": {}},
}


@for_each("changes", WRONG_CLAIMS.values(), ids=WRONG_CLAIMS)
async def test_tokens_with_wrong_claims_are_rejected(changes: dict[str, Any]) -> None:
    """RFC 7519 §4.1, RFC 8707."""
    assert await method().identify(token(claims(**changes))) is None


@for_each(("claim", "differs"), [("exp", -LEEWAY + 30), ("nbf", LEEWAY - 30)])
async def test_clock_skew_of_a_minute_is_tolerated(claim: str, differs: int) -> None:
    assert await method().identify(token(claims(**{claim: int(time.time()) + differs}))) is not None


async def test_tokens_may_have_several_audiences() -> None:
    """RFC 7519 §4.1.3."""
    assert await method().identify(token(claims(aud=["x", AUDIENCE]))) is not None


RS_PEM = KEYS["RS256"].as_pem(private=False)
JWK = OTHER.as_dict(private=False)
FORGED: dict[str, str] = {
    "no signature": craft_token({"alg": "none"}),
    "no signature, spelled otherwise": craft_token({"alg": "None"}),
    "none with a signature": craft_token({"alg": "none"}, signature=b"x" * 64),
    "a public key as a secret": sign_with_public_key(RS_PEM, kid="rs"),
    "a public key as a secret, without an id": sign_with_public_key(RS_PEM),
    "somebody else's key": token(key=OTHER),
    "a key in the token": token(key=OTHER, jwk=JWK),
    "a key in the token, without an id": token(key=OTHER, jwk=JWK, kid=None),
    "the address of a key": token(key=OTHER, jku="https://evil.example/keys"),
    "the address of a certificate": token(key=OTHER, x5u="https://evil.example/cert"),
    "a certificate": token(key=OTHER, x5c=["MIIB"]),
    "an unknown key": token(kid="nobody"),
    "an id that is a path": token(kid="../../dev/null"),
    "an id that is SQL": token(kid="' OR 1=1 --"),
    "the id of a key of another kind": token(kid="rs"),
    "critical parameters": craft_token({"alg": "ES256", "kid": "es", "crit": ["exp"], "exp": 1}, signature=b"x" * 64),
    "an empty list of critical things": craft_token({"alg": "ES256", "kid": "es", "crit": []}, signature=b"x" * 64),
    "an ID token's type": token(typ="id+jwt"),
    "a logout token's type": token(typ="logout+jwt"),
    "a proof's type": token(typ="dpop+jwt"),
    "an algorithm in small letters": craft_token({"alg": "es256", "kid": "es"}, signature=b"x" * 64),
    "an algorithm that is a number": craft_token({"alg": 256, "kid": "es"}, signature=b"x" * 64),
    "an id that is a number": craft_token({"alg": "ES256", "kid": 1}, signature=b"x" * 64),
    "an empty signature": craft_token({"alg": "ES256", "kid": "es"}),
    "a signature of zeros": craft_token({"alg": "ES256", "kid": "es"}, signature=bytes(64)),
    "encrypted": "a.b.c.d.e",
    "two parts": "a.b",
    "four parts": token() + ".x",
    "no parts": "ey",
    "dots": "..",
    "no JSON": "eHh4.e30.eA",
    "an array for a header": "W10.e30.eA",
    "claims that are no object": token(b"[]"),
    "claims that are no JSON": token(b"\xff"),
    "claims without an end": token(b'{"a":' * 5000),
}


OWN_WORDS = re.compile(
    r"This isn't a signed token\.|The header has critical parameters\.|It must be a signed JWT of the type at\+jwt\."
    r"|The token's signature algorithm isn't accepted here\.|The signature is invalid\."
    r"|The signature is by an unknown key\.|Keys and tokens can have up to 16 KiB\."
)


@for_each("forged", FORGED.values(), ids=FORGED)
async def test_forged_tokens_get_401_without_text_of_the_token(forged: str) -> None:
    """CVE-2026-32597, CVE-2025-59420, CVE-2024-37568."""
    assert await method().identify(forged) is None
    async with run_guarded(make_server(method())) as world:
        reply = await world.post(forged, PING)
        if forged != "..":
            assert reply.status == 401
        reason = json.loads(reply.body)["detail"]
        assert OWN_WORDS.fullmatch(reason)
        assert reply.headers[b"www-authenticate"].decode() == (
            f'Bearer error="invalid_token", error_description="{reason}", resource_metadata="{METADATA}"'
        )


async def test_tampered_tokens_are_rejected() -> None:
    good, judge = token(), method()
    assert await judge.identify(good) is not None
    for place in (3, good.index(".") + 3, good.rindex(".") + 3):
        changed = good[:place] + ("A" if good[place] != "A" else "B") + good[place + 1 :]
        assert await judge.identify(changed) is None


@for_each("size", [5_000, 20_000, 60_000])
async def test_oversized_tokens_are_rejected(size: int) -> None:
    async with run_guarded(make_server(method())) as world:
        huge = token(claims(padding="x" * size))
        assert (await world.post(huge, PING)).status == (200 if size < 8000 else 401 if size < 40_000 else 431)


async def test_unlisted_algorithms_are_rejected() -> None:
    judge = method(algorithms=["ES256"])
    assert await judge.identify(token(alg="ES256")) is not None
    assert await judge.identify(token(alg="RS256")) is None


async def test_keys_are_used_only_for_their_algorithm() -> None:
    """RFC 7517 §4.4."""
    keys = key_set("RS256")
    keys["keys"][0]["alg"] = "PS256"
    assert await method(jwks=keys).identify(token(alg="RS256")) is None
    assert await method(jwks=keys).identify(token(alg="PS256", key=KEYS["RS256"])) is not None
    keys["keys"][0] |= {"use": "enc"}
    assert await method(jwks=keys).identify(token(alg="PS256", key=KEYS["RS256"])) is None


async def test_unknown_keys_in_a_set_are_ignored() -> None:
    keys = key_set("ES256")
    secret = OctKey.import_key("s" * 40, {"kid": "es"})
    keys["keys"] += [None, 1, {}, {"kty": "XX"}, {"kty": "EC", "crv": "P-256", "x": "!"}, secret.as_dict()]
    judge = method(jwks=keys)
    assert await judge.identify(token()) is not None
    assert await judge.identify(token(alg="HS256", key=secret)) is None


async def test_every_key_of_a_large_set_is_used() -> None:
    assert await method(jwks=make_many_keys(256)).identify(token()) is not None
    async with run_issuer() as issuer:
        issuer.answers["/keys"] = make_many_keys(256)
        judge = auth.jwt(issuer=issuer.url, audience=AUDIENCE, jwks=f"{issuer.url}/keys")
        assert await judge.identify(token(claims(iss=issuer.url))) is not None


def test_oversized_key_sets_are_rejected_at_construction() -> None:
    for make in (lambda keys: method(jwks=keys), lambda keys: auth.client("batch", jwks=keys)):
        with pytest.raises(ValueError, match="The set has 257 keys, but at most 256 are supported"):
            make(make_many_keys(257))


async def test_shared_secrets_verify_only_hs256() -> None:
    secret = "s" * 40
    judge = method(jwks="", secret=secret)
    assert await judge.identify(token(alg="HS256", key=OctKey.import_key(secret), kid=None)) is not None
    assert await judge.identify(token()) is None
    with pytest.raises(ValueError, match="32 bytes"):
        method(jwks="", secret="short")


@for_each("wrong", [
    {"jwks": ""}, {"secret": "s" * 40}, {"audience": ""}, {"audience": f"{AUDIENCE}#x"}, {"audience": 'a"b'},
    {"issuer": "http://issuer.example"}, {"issuer": "issuer"}, {"algorithms": ["none"]}, {"algorithms": ["HS256"]},
    {"jwks": "http://issuer.example/keys"}, {"jwks": "file:///etc/passwd"}, {"scopes": ['a"b']}, {"jwks": {}},
])  # fmt: skip
def test_insecure_token_options_are_rejected_at_construction(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        method(**wrong)


SCOPES: list[tuple[dict[str, Any], set[str]]] = [
    ({"scope": "a b"}, {"a", "b"}), ({"scope": ""}, set()), ({"scope": None, "scp": "a b"}, {"a", "b"}),
    ({"scope": None, "scp": ["a", "b", 1, None]}, {"a", "b"}), ({"scope": 5}, set()), ({"scope": {"a": 1}}, set()),
    ({"scope": "* a"}, {"a"}), ({"scope": ["*"]}, set()), ({"scope": "admin"}, {"admin", "write", "read"}),
]  # fmt: skip


@for_each(("changes", "scopes"), SCOPES)
async def test_scopes_are_read_in_every_common_form(changes: dict[str, Any], scopes: set[str]) -> None:
    """RFC 8693 §4.2."""
    found = await method(scope_includes={"admin": ["write"], "write": ["read"]}).identify(token(claims(**changes)))
    assert found is not None
    assert found.principal.scopes == scopes


async def test_tokens_without_required_scopes_get_403() -> None:
    """RFC 6750 §3.1."""
    async with run_guarded(make_server(method(scopes=["mcp:use"]))) as world:
        missing = await world.post(None, PING)
        assert missing.status == 401
        assert missing.headers[b"www-authenticate"] == (
            b'Bearer scope="mcp:use", resource_metadata="%b"' % METADATA.encode()
        )
        expired = await world.post(token(claims(exp=1)), PING)
        assert expired.status == 401
        assert b'error_description="The token has expired.", scope="mcp:use"' in expired.headers[b"www-authenticate"]
        reply = await world.post(token(), PING)
        assert reply.status == 403
        assert reply.headers[b"www-authenticate"].startswith(b'Bearer error="insufficient_scope", scope="mcp:use"')
        assert (await world.post(token(claims(scope="mcp:use")), PING)).status == 200
        reply = await world.call(token(claims(scope="mcp:use")), "order", {"isbn": "1"})
        assert b'scope="mcp:use orders:write"' in reply.headers[b"www-authenticate"]


async def test_same_subject_from_two_issuers_identifies_two_principals() -> None:
    second = auth.jwt(issuer="https://second.example", audience=AUDIENCE, jwks=key_set())
    async with run_guarded(
        make_server([method(), second, auth.keys(named_keys={"ada": "key-of-ada-0123456789"})])
    ) as world:
        keys = [token(), token(claims(iss="https://second.example")), "key-of-ada-0123456789"]
        sessions = [await world.initialize(key) for key in keys]
        for number, session in enumerate(sessions):
            statuses = [(await world.post(key, PING, mcp_session_id=session)).status for key in keys]
            assert statuses == [200 if place == number else 404 for place in range(3)]


async def test_token_cache_lasts_at_most_a_minute() -> None:
    async with run_guarded(make_server(method())) as world:
        brief = token(claims(exp=time.time() - LEEWAY + 30))
        assert (await world.post(brief, PING)).status == 200
        guard = world.runtime.guard
        assert guard is not None
        (verdict,) = guard.verdicts.values()
        assert verdict.until - time.monotonic() <= 30
        value = f"Bearer {brief}".encode()
        guard.verdicts[value] = verdict._replace(until=time.monotonic() - 1)
        assert (await world.post(brief, PING)).status == 200  # verified again, and still valid
        assert guard.verdicts[value].until > time.monotonic()


async def test_subjects_cannot_inject_into_logs_or_headers(capfd: pytest.CaptureFixture[str]) -> None:
    async with run_guarded(make_server(method(), access_log=True)) as world:
        evil = token(claims(sub='ada\r\nset-cookie: x=1\n{"level":"error"}', client_id="\x1b[2J"))
        assert (await world.call(evil, "who")).status == 200
    lines = capfd.readouterr().err.splitlines()
    assert any("set-cookie" in line for line in lines)
    assert all(json.loads(line)["level"] in ("info", "warning") for line in lines if line.startswith("{"))
    assert not any(line.startswith(("set-cookie", '{"level":"error"}')) or "\x1b" in line for line in lines)
