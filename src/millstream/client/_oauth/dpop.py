"""Tokens that only the holder of a key can use (DPoP, RFC 9449): the key, and a proof of it for every request.

A server that wants this says so in its challenge or its metadata. The authorization server then binds the tokens to our
key, and a thief of the token alone can do nothing with it. Servers may ask for a nonce in the proofs.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from millstream._http.client.url import Url
from millstream.client._oauth.challenges import read_challenges
from millstream.client._oauth.discovery import Issuer, Resource
from millstream.client._oauth.store import ES256, Tokens

if TYPE_CHECKING:
    from millstream.client._oauth.signing import ProofKey

SCHEME: Final = "DPoP"
_MAX_NONCE = 1024


class Proofs:
    """The proofs of one client: its keys, and the nonces that servers want now."""

    def __init__(self) -> None:
        self._keys: dict[str, ProofKey] = {}
        """By what is kept of them."""
        self._nonces: dict[str, str] = {}
        """By origin."""

    def new(self) -> str:
        """A new key, as it is kept."""
        from millstream.client._oauth.signing import ProofKey  # noqa: PLC0415  needed only for proofs

        key = ProofKey()
        self._keys[key.kept] = key
        return key.kept

    def headers(self, kept: str, method: str, url: str, token: str = "") -> Mapping[str, str]:
        """The header of a request with a proof by a key; none without a key, or with one that can't be read."""
        if not kept:
            return {}
        from millstream.client._oauth.signing import ProofKey  # noqa: PLC0415  see above

        key = self._keys.get(kept)
        try:
            key = self._keys[kept] = key or ProofKey(kept)
        except ValueError:
            return {}
        parts = urlsplit(url)
        nonce = self._nonces.get(f"{parts.scheme}://{parts.netloc}", "")
        return {SCHEME: key.proof(method, url, token=token, nonce=nonce)}

    def learn(self, url: Url | str, nonce: str) -> bool:
        """A server has said which nonce it wants from now on. Whether that can be one; a request that ran at the same
        time may have brought it before.
        """
        parts = urlsplit(str(url))
        if not 0 < len(nonce) <= _MAX_NONCE or not nonce.isprintable():
            return False
        self._nonces[f"{parts.scheme}://{parts.netloc}"] = nonce
        return True


class BoundKey(NamedTuple):
    """The key that a token is bound to, and what makes its proofs."""

    proofs: Proofs
    key: str
    """As it is kept; empty for a token that anybody could use."""

    def proof(self, method: str, url: str, token: str = "") -> Mapping[str, str]:
        """The header of one request."""
        return self.proofs.headers(self.key, method, url, token)


def key_for(
    issuer: Issuer, resource: Resource | None, challenge: str, before: Tokens | None, proofs: Proofs, *, wanted: bool
) -> BoundKey:
    """The key to bind a token to, where the issuer gives such tokens, and the server says that it takes them or we want
    them anyway: the one before, or a new one.
    """
    taken = wanted or (
        resource is not None
        and (resource.dpop_bound_access_tokens_required or ES256 in resource.dpop_signing_alg_values_supported)
    )
    if ES256 not in issuer.dpop_signing_alg_values_supported or not (taken or challenged_for_proofs(challenge)):
        return BoundKey(proofs, "")
    same = before is not None and before.issuer == issuer.issuer
    return BoundKey(proofs, (before.proof_key if before is not None and same else "") or proofs.new())


def challenged_for_proofs(challenge: str) -> bool:
    """Whether a challenge offers the scheme; of several, in whatever order."""
    return SCHEME.lower() in read_challenges(challenge).schemes


def wants_nonce(challenge: str) -> bool:
    """Whether a request was only refused because its proof had no nonce, or an old one (RFC 9449 §9)."""
    found = read_challenges(challenge)
    return SCHEME.lower() in found.schemes and found.parameters.get("error") == "use_dpop_nonce"
