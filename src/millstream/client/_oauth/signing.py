"""Signatures of a client: authentication (`private_key_jwt`, RFC 7523 §2.2), and proofs of possession (DPoP, RFC
9449). No secret leaves this machine.
"""

import secrets
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import msgspec
from joserfc import jws
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, OKPKey, RSAKey

from millstream._oauth import ASSERTION, s256
from millstream.client._errors import AccessDenied
from millstream.client._oauth import ES256, Registration

_SECONDS = 60
"""Seconds that an assertion is valid."""
_MIN_RSA_BITS = 2048
_ALGORITHMS = {
    "P-256": ("ES256",),
    "P-384": ("ES384",),
    "P-521": ("ES512",),
    "Ed25519": ("EdDSA", "Ed25519"),
    "RSA": ("RS256", "PS256"),
}
"""Algorithms by key type, the most widely supported first."""
Key = ECKey | RSAKey | OKPKey


def assertion(issuer: str, supported: Sequence[str], who: Registration) -> dict[str, str]:
    """Return the form fields that authenticate the client in one request, because assertions are single-use.

    Raises:
        AccessDenied: The issuer supports no algorithm of the key.
    """
    key, algorithms = load_key(who.private_key)
    algorithm = next((each for each in algorithms if not supported or each in supported), "")
    if not algorithm:
        theirs, ours = ", ".join(supported), " or ".join(algorithms)
        raise AccessDenied(f"{issuer} accepts {theirs} signatures, but this key signs with {ours}.")
    now = int(time.time())
    claims = {
        "iss": who.client_id,
        "sub": who.client_id,
        "aud": issuer,
        "jti": secrets.token_urlsafe(16),
        "iat": now,
        "exp": now + _SECONDS,
    }
    header = {"alg": algorithm, "typ": "JWT", **({"kid": who.key_id} if who.key_id else {})}
    return {"client_assertion_type": ASSERTION, "client_assertion": _sign(header, claims, key)}


def new_proof_key() -> str:
    """Return a new private key in PEM that tokens can be bound to."""
    return ECKey.generate_key("P-256").as_pem(private=True).decode()


def load_proof_key(pem: str) -> Key:
    """Return a key from `new_proof_key`.

    Raises:
        ValueError: It isn't such a key.
    """
    key, algorithms = load_key(pem)
    if ES256 not in algorithms:
        raise ValueError("This isn't a P-256 private key.")
    return key


def proof(key: Key, method: str, url: str, *, token: str = "", nonce: str = "") -> str:
    """Return a proof of possession for one request (RFC 9449 §4.2).

    Args:
        key: The key that the token is bound to.
        method: HTTP method.
        url: URL of the request. Its query is ignored.
        token: Access token sent in the same request.
        nonce: Nonce that the server requires.
    """
    parts = urlsplit(url)
    claims = {
        "jti": secrets.token_urlsafe(16),
        "htm": method,
        "htu": f"{parts.scheme}://{parts.netloc}{parts.path or '/'}",
        "iat": int(time.time()),
        **({"ath": s256(token)} if token else {}),
        **({"nonce": nonce} if nonce else {}),
    }
    jwk = {name: value for name, value in key.as_dict(private=False).items() if name != "kid"}
    return _sign({"typ": "dpop+jwt", "alg": ES256, "jwk": jwk}, claims, key)


def load_key(pem: str) -> tuple[Key, tuple[str, ...]]:
    """Return a private key in PEM, and the algorithms it signs with.

    Raises:
        ValueError: The key can't sign.
    """
    key: Key | None = None
    for kind in (ECKey, RSAKey, OKPKey):
        with suppress(JoseError, ValueError, TypeError):
            key = key or kind.import_key(pem)
    if key is None or not key.is_private:
        raise ValueError("The private key must be in PEM, without a password: -----BEGIN PRIVATE KEY-----")
    if isinstance(key, RSAKey):
        algorithms = _ALGORITHMS["RSA"] if key.public_key.key_size >= _MIN_RSA_BITS else ()
    else:
        algorithms = _ALGORITHMS.get(key.curve_name, ())
    if not algorithms:
        raise ValueError("The private key must be P-256, P-384, P-521, Ed25519, or RSA with at least 2048 bits.")
    return key, algorithms


def _sign(header: Mapping[str, Any], claims: Mapping[str, Any], key: Key) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # EdDSA has a newer name, which few issuers support
        return jws.serialize_compact(dict(header), msgspec.json.encode(claims), key, algorithms=[header["alg"]])
