"""Signatures of JSON Web Tokens (RFC 7515, 7519), checked and made by joserfc.

A token is opened in two steps: what its header claims, then its payload with a key that was chosen without the token's
help. Keys that a token carries or points to (`jwk`, `jku`, `x5c`, `x5u`) are never looked at.
"""

from base64 import urlsafe_b64decode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import msgspec
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, OctKey, OKPKey, RSAKey
from msgspec import Struct

from millstream._protocol.json_schema import is_array, is_object

ASYMMETRIC = ("ES256", "ES384", "ES512", "Ed25519", "EdDSA", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512")
"""Algorithms whose verification needs no secret. The first two letters say which keys they take."""
_KEY_TYPES = {"ES": "EC", "Ed": "OKP", "PS": "RSA", "RS": "RSA", "HS": "oct"}
_PUBLIC = ("kty", "crv", "x", "y", "n", "e")
_MAX_KEYS = 256
"""Of one set. To read so many takes up to 25 ms; the keys of an issuer are read when they change."""
_MAX_OWN_KEYS = 64
"""Of the set that a client registers, which is read with each of its assertions."""
_MIN_RSA_BITS = 2048
_MAX_EXPONENT_BITS = 32
"""Of a public RSA key. With an exponent as long as the key, one signature takes forty times as long."""
_MIN_SECRET = 32

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class InvalidToken(Exception):
    """It isn't a token, or not one that counts here."""


class Header(Struct, frozen=True):
    """What a token says about itself before anything is known to be true."""

    alg: str
    kid: str | None = None
    typ: str = ""


class PublicKey(Struct, frozen=True):
    """A key that verifies."""

    key: Any
    type: str
    kid: str | None = None
    alg: str | None = None

    def fits(self, algorithm: str) -> bool:
        """Whether it is for signatures of this algorithm."""
        return _KEY_TYPES.get(algorithm[:2]) == self.type and self.alg in (None, algorithm)


class _Registry(jws.JWSRegistry):
    max_header_length = 4096


def read_header(token: str) -> Header:
    """What a token claims.

    Raises:
        InvalidToken: it isn't a signed token, or has something critical in its header: nothing critical is understood.
    """
    parts = token.split(".")
    if len(parts) != 3:
        raise InvalidToken("It isn't a signed token.")
    try:
        raw = cast("Mapping[str, Any]", _decode(_unpack(parts[0])))
    except (ValueError, RecursionError) as exc:
        raise InvalidToken("Its header isn't JSON.") from exc
    alg, kid, typ = raw.get("alg"), raw.get("kid"), raw.get("typ", "")
    if "crit" in raw or "b64" in raw:
        raise InvalidToken("Its header has something critical.")
    if not isinstance(alg, str) or not isinstance(typ, str) or not (kid is None or isinstance(kid, str)):
        raise InvalidToken("Its header is malformed.")
    return Header(alg, kid, typ.lower().removeprefix("application/"))


def read_payload(token: str) -> dict[str, Any]:
    """What a token claims, unverified: to find the key that verifies it, and for nothing else.

    Raises:
        InvalidToken: it has no claims.
    """
    try:
        return _decode(_unpack(token.split(".")[1]))
    except (ValueError, IndexError, RecursionError) as exc:
        raise InvalidToken("It has no claims.") from exc


def verify(token: str, key: PublicKey, algorithm: str) -> dict[str, Any]:
    """The claims of a token.

    Raises:
        InvalidToken: the signature is wrong, or there are no claims behind it.
    """
    try:
        registry = _Registry(algorithms=[algorithm], strict_check_header=False)
        return _decode(jws.deserialize_compact(token, key.key, registry=registry).payload)
    except (JoseError, ValueError, TypeError, RecursionError) as exc:
        raise InvalidToken("Its signature is wrong.") from exc


def read_keys(raw: Mapping[str, Any]) -> list[PublicKey]:
    """The keys of a set (RFC 7517) that verify signatures. Those of other kinds, and weak ones, are left out.

    Raises:
        ValueError: it isn't a set of keys, or has too many.
    """
    given = raw.get("keys")
    if not is_array(given):
        raise ValueError("It isn't a set of keys.")
    _check_number(given, _MAX_KEYS)
    found = [_read_key(each) for each in given]
    return [each for each in found if each is not None]


def public_set(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A set of keys with nothing but what verifying takes: nothing private, and nothing that is nested.

    Raises:
        ValueError: it isn't a set of keys, or has too many.
    """
    given = raw.get("keys")
    if not is_array(given) or not all(is_object(each) for each in given):
        raise ValueError("It isn't a set of keys.")
    _check_number(given, _MAX_OWN_KEYS)
    names = (*_PUBLIC, "kid", "alg", "use")
    return {"keys": [{name: each[name] for name in names if isinstance(each.get(name), str)} for each in given]}


def _check_number(given: Sequence[Any], most: int) -> None:
    """Refuse what would only be read in part: nobody would know why the tokens of the other keys don't count."""
    if len(given) > most:
        raise ValueError(f"The set has {len(given)} keys, and at most {most} are read. Leave out old ones.")


def _read_key(raw: Any) -> PublicKey | None:
    if not is_object(raw):
        return None
    values = raw
    kind = values.get("kty")
    if kind not in ("EC", "OKP", "RSA") or values.get("use", "sig") != "sig":
        return None
    if kind == "OKP" and values.get("crv") not in ("Ed25519", "Ed448"):
        return None
    try:
        # Without what is private, and without what would make the library refuse an operation we don't do.
        kept = {name: value for name, value in values.items() if name in _PUBLIC}
        key = JWKRegistry.import_key(cast("Any", kept))
        if kind == "RSA" and not _is_usual(cast("Any", key).public_key):
            return None
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    kid, alg = values.get("kid"), values.get("alg")
    return PublicKey(key, kind, kid if isinstance(kid, str) else None, alg if isinstance(alg, str) else None)


def from_pem(text: str) -> dict[str, Any]:
    """A public key as PEM, in the form of a set's member. Nothing private is taken over.

    Raises:
        ValueError: it isn't one.
    """
    if "PRIVATE" in text:
        raise ValueError("That's a private key. The server needs the public one: openssl pkey -in KEY -pubout")
    for kind in (ECKey, RSAKey, OKPKey):
        with suppress(JoseError, ValueError, TypeError):
            return dict(kind.import_key(text).as_dict(private=False))
    raise ValueError("A public key in PEM begins with -----BEGIN PUBLIC KEY-----, and is of EC, RSA or Ed25519.")


def _is_usual(key: Any) -> bool:
    """Whether an RSA key is strong, and quick to verify with."""
    return bool(key.key_size >= _MIN_RSA_BITS and key.public_numbers().e.bit_length() <= _MAX_EXPONENT_BITS)


def shared_secret(secret: str) -> PublicKey:
    """A key for HS256 and its kind.

    Raises:
        ValueError: it is short enough to be guessed.
    """
    if len(secret.encode()) < _MIN_SECRET:
        raise ValueError(f"A shared secret for tokens has at least {_MIN_SECRET} bytes.")
    return PublicKey(OctKey.import_key(secret), "oct")


def new_private_key(kid: str) -> dict[str, Any]:
    """A new key for ES256, with what is private."""
    return dict(ECKey.generate_key("P-256", {"kid": kid, "alg": "ES256", "use": "sig"}).as_dict(private=True))


def public_part(key: Mapping[str, Any]) -> dict[str, Any]:
    """What everybody may know of a key."""
    return {name: key[name] for name in ("kty", "crv", "x", "y", "kid", "alg", "use")}


def load_private_key(key: Mapping[str, Any]) -> Any:
    """What `sign` signs with."""
    return ECKey.import_key(cast("Any", {name: key[name] for name in ("kty", "crv", "x", "y", "d")}))


def sign(claims: Mapping[str, Any], key: Any, kid: str, typ: str) -> str:
    """A token, signed by ES256."""
    header = {"alg": "ES256", "typ": typ, "kid": kid}
    return jws.serialize_compact(header, msgspec.json.encode(claims), key, algorithms=["ES256"])


def _unpack(text: str) -> bytes:
    return urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
