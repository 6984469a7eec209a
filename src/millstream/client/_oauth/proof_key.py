"""A key that tokens are bound to, and its proofs (DPoP, RFC 9449)."""

import hashlib
import secrets
import time
from urllib.parse import urlsplit

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from millstream.client._oauth.signing import ecdsa, packed
from millstream.client._oauth.store import ES256

_SIZE = 32
"""Bytes of a number of P-256."""


class ProofKey:
    """A key of P-256."""

    def __init__(self, kept: str = "") -> None:
        """Make a new one, or take one that was kept.

        Raises:
            ValueError: what was kept isn't one.
        """
        if kept:
            found = serialization.load_pem_private_key(kept.encode(), None)
            if not isinstance(found, ec.EllipticCurvePrivateKey) or not isinstance(found.curve, ec.SECP256R1):
                raise ValueError("It isn't a key of P-256.")
            self._key = found
        else:
            self._key = ec.generate_private_key(ec.SECP256R1())
        numbers = self._key.public_key().public_numbers()
        jwk = {"crv": "P-256", "kty": "EC", "x": _number(numbers.x), "y": _number(numbers.y)}
        self._head = packed(msgspec.json.encode({"typ": "dpop+jwt", "alg": ES256, "jwk": jwk}))

    @property
    def kept(self) -> str:
        """The key as text, with what is private."""
        kind, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        return self._key.private_bytes(kind, form, serialization.NoEncryption()).decode()

    def proof(self, method: str, url: str, *, token: str = "", nonce: str = "") -> str:
        """A proof for one request (RFC 9449 §4.2).

        Args:
            method: of HTTP.
            url: where the request goes; its query doesn't count.
            token: that is sent with it.
            nonce: that the server has asked for.
        """
        parts = urlsplit(url)
        claims = {
            "jti": secrets.token_urlsafe(16),
            "htm": method,
            "htu": f"{parts.scheme}://{parts.netloc}{parts.path or '/'}",
            "iat": int(time.time()),
            **({"ath": packed(hashlib.sha256(token.encode()).digest())} if token else {}),
            **({"nonce": nonce} if nonce else {}),
        }
        signed = f"{self._head}.{packed(msgspec.json.encode(claims))}"
        return f"{signed}.{packed(ecdsa(self._key, signed.encode()))}"


def _number(value: int) -> str:
    return packed(value.to_bytes(_SIZE))
