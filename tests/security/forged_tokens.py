"""Forged tokens that every server must refuse; tests/auth/test_tokens.py tests each kind."""

from typing import Any

from issuer_world import AUDIENCE, ISSUER, KEYS, OTHER, claims, craft_token, key_set, sign_with_public_key, token
from millstream import auth

FORGED = {
    "none": craft_token({"alg": "none"}),
    "a public key as a secret": sign_with_public_key(KEYS["RS256"].as_pem(private=False), kid="rs"),
    "a key in the token": token(key=OTHER, jwk=OTHER.as_dict(private=False)),
    "a key somewhere else": token(key=OTHER, jku="https://evil.example/keys"),
    "something critical": craft_token(
        {"alg": "ES256", "kid": "es", "crit": ["b64"], "b64": False}, signature=b"x" * 64
    ),
    "encrypted": "a.b.c.d.e",
    "expired": token(claims(exp=1)),
    "another audience": token(claims(aud="https://other.example")),
    "huge": token(claims(padding="x" * 20_000)),
}


def judging() -> Any:
    """Return the auth method that verifies the tokens."""
    return auth.jwt(issuer=ISSUER, audience=AUDIENCE, jwks=key_set())
