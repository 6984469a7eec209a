"""How a client shows who it is by a signature (`private_key_jwt`, RFC 7523 §2.2): nothing secret leaves this machine.

Each assertion is for one issuer, ends after a minute, and counts once, so every request has one of its own.
"""

import base64
import secrets
import time
from collections.abc import Callable, Mapping
from functools import partial

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from millstream.client._errors import AccessDenied
from millstream.client._oauth.discovery import Issuer
from millstream.client._oauth.store import Registration

_KIND = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_SECONDS = 60
_MIN_RSA_BITS = 2048
_SHA = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
"""By the bits of a curve."""
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_PSS = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
_Sign = Callable[[bytes], bytes]


def assertion(issuer: Issuer, who: Registration) -> dict[str, str]:
    """The part of a form that says who we are.

    Raises:
        AccessDenied: the issuer takes no signature that our key can make.
    """
    ways = _ways(who.private_key)
    taken = issuer.token_endpoint_auth_signing_alg_values_supported
    algorithm = next((each for each in ways if not taken or each in taken), "")
    if not algorithm:
        theirs, ours = ", ".join(taken), " or ".join(ways)
        raise AccessDenied(f"{issuer.issuer} takes signatures by {theirs}, and this key makes {ours}.", 401)
    now = int(time.time())
    claims = {
        "iss": who.client_id,
        "sub": who.client_id,
        "aud": issuer.issuer,
        "jti": secrets.token_urlsafe(16),
        "iat": now,
        "exp": now + _SECONDS,
    }
    head = {"alg": algorithm, "typ": "JWT", **({"kid": who.key_id} if who.key_id else {})}
    signed = f"{packed(msgspec.json.encode(head))}.{packed(msgspec.json.encode(claims))}"
    made = f"{signed}.{packed(ways[algorithm](signed.encode()))}"
    return {"client_assertion_type": _KIND, "client_assertion": made}


def check_key(pem: str) -> str:
    """A private key as PEM, if it's one that signs.

    Raises:
        ValueError: it isn't.
    """
    _ways(pem)
    return pem


def ecdsa(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """A signature as RFC 7518 §3.4 has it: two numbers of the curve's size."""
    size = (key.key_size + 7) // 8
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(_SHA[key.key_size])))
    return r.to_bytes(size) + s.to_bytes(size)


def packed(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _ways(pem: str) -> Mapping[str, _Sign]:
    """The algorithms of a key, the one that most issuers know first."""
    try:
        key = serialization.load_pem_private_key(pem.encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("The private key is a text in PEM without a password: -----BEGIN PRIVATE KEY-----") from None
    found: Mapping[str, _Sign] = {}
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        found = {_CURVES[key.curve.name]: partial(ecdsa, key)}
    elif isinstance(key, rsa.RSAPrivateKey) and key.key_size >= _MIN_RSA_BITS:
        rs, ps = (partial(key.sign, padding=each, algorithm=_SHA[256]) for each in (padding.PKCS1v15(), _PSS))
        found = {"RS256": rs, "PS256": ps}
    elif isinstance(key, ed25519.Ed25519PrivateKey):
        found = {"EdDSA": key.sign, "Ed25519": key.sign}
    if not found:
        raise ValueError("The private key is one of P-256, P-384, P-521, Ed25519, or RSA with at least 2048 bits.")
    return found
