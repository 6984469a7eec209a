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

from millstream._oauth import s256
from millstream.client._errors import AccessDenied
from millstream.client._oauth import ES256, Registration

_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
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
_Key = ECKey | RSAKey | OKPKey


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
    return {"client_assertion_type": _ASSERTION, "client_assertion": _sign(header, claims, key)}


class ProofKey:
    """A P-256 key that tokens are bound to."""

    def __init__(self, pem: str = "") -> None:
        """Generate a key, or load one from `pem`.

        Raises:
            ValueError: `pem` isn't such a key.
        """
        try:
            self._key = ECKey.import_key(pem) if pem else ECKey.generate_key("P-256")
        except (JoseError, TypeError) as exc:
            raise ValueError("This isn't a private key.") from exc
        if not self._key.is_private or self._key.curve_name != "P-256":
            raise ValueError("This isn't a P-256 private key.")
        jwk = {name: value for name, value in self._key.as_dict(private=False).items() if name != "kid"}
        self._header = {"typ": "dpop+jwt", "alg": ES256, "jwk": jwk}

    @property
    def pem(self) -> str:
        """The private key as text."""
        return self._key.as_pem(private=True).decode()

    def proof(self, method: str, url: str, *, token: str = "", nonce: str = "") -> str:
        """Return a proof for one request (RFC 9449 §4.2).

        Args:
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
        return _sign(self._header, claims, self._key)


def load_key(pem: str) -> tuple[_Key, tuple[str, ...]]:
    """Return a private key in PEM, and the algorithms it signs with.

    Raises:
        ValueError: The key can't sign.
    """
    key: _Key | None = None
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


def _sign(header: Mapping[str, Any], claims: Mapping[str, Any], key: _Key) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # EdDSA has a newer name, which few issuers support
        return jws.serialize_compact(dict(header), msgspec.json.encode(claims), key, algorithms=[header["alg"]])
