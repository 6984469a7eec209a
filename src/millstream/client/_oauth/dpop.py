"""Sender-constrained tokens (DPoP, RFC 9449): the key, and a proof for every request.

A server announces DPoP in its challenge or its metadata. The authorization server binds the tokens to our key, so a
stolen token is useless without the key. Servers may require a nonce in the proofs.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from millstream._http.client.url import Url
from millstream.client._oauth.discovery import IssuerMetadata, ProtectedResource, read_challenges
from millstream.client._oauth.store import ES256, Tokens

if TYPE_CHECKING:
    from millstream.client._oauth.signing import ProofKey

SCHEME = "DPoP"
_MAX_NONCE = 1024


class Proofs:
    """The keys of one client, and the nonces that servers currently require."""

    def __init__(self) -> None:
        self._keys: dict[str, ProofKey] = {}
        """Keys by PEM."""
        self._nonces: dict[str, str] = {}
        """Nonces by origin."""

    def new(self) -> str:
        """Create a key, and return its PEM."""
        from millstream.client._oauth.signing import ProofKey  # noqa: PLC0415  needed only for proofs

        key = ProofKey()
        self._keys[key.pem] = key
        return key.pem

    def headers(self, pem: str, method: str, url: str, token: str = "") -> Mapping[str, str]:
        """Return the proof header for a request. It's empty if there's no key, or if the key is invalid."""
        if not pem:
            return {}
        from millstream.client._oauth.signing import ProofKey  # noqa: PLC0415  see above

        key = self._keys.get(pem)
        try:
            key = self._keys[pem] = key or ProofKey(pem)
        except ValueError:
            return {}
        parts = urlsplit(url)
        nonce = self._nonces.get(f"{parts.scheme}://{parts.netloc}", "")
        return {SCHEME: key.proof(method, url, token=token, nonce=nonce)}

    def authorize(self, tokens: Tokens, method: str, url: str) -> Mapping[str, str]:
        """Return the headers that send a token, with a proof if it's bound to a key."""
        proof = self.headers(tokens.proof_key, method, url, tokens.access_token)
        return {"Authorization": f"{SCHEME if proof else 'Bearer'} {tokens.access_token}", **proof}

    def learn(self, url: Url | str, nonce: str) -> bool:
        """Store the nonce that a server requires from now on. Return whether the nonce is valid."""
        parts = urlsplit(str(url))
        if not 0 < len(nonce) <= _MAX_NONCE or not nonce.isprintable():
            return False
        self._nonces[f"{parts.scheme}://{parts.netloc}"] = nonce
        return True


def key_for(
    issuer: IssuerMetadata,
    resource: ProtectedResource | None,
    challenge: str,
    before: Tokens | None,
    proofs: Proofs,
    *,
    wanted: bool,
) -> str:
    """Return the private key in PEM to bind a token to, or an empty string for a bearer token.

    A token is bound if the issuer supports DPoP, and the server accepts it or we require it. Reuse the previous key if
    there is one.
    """
    accepted = wanted or (
        resource is not None
        and (resource.dpop_bound_access_tokens_required or ES256 in resource.dpop_signing_alg_values_supported)
    )
    if ES256 not in issuer.dpop_signing_alg_values_supported or not (accepted or challenged_for_proofs(challenge)):
        return ""
    known = before.proof_key if before is not None and before.issuer == issuer.issuer else ""
    return known or proofs.new()


def challenged_for_proofs(challenge: str) -> bool:
    """Return whether a challenge offers DPoP, alone or among other schemes."""
    return SCHEME.lower() in read_challenges(challenge).schemes


def wants_nonce(challenge: str) -> bool:
    """Return whether a request was refused only because its proof had no nonce or an old one (RFC 9449 §9)."""
    found = read_challenges(challenge)
    return SCHEME.lower() in found.schemes and found.parameters.get("error") == "use_dpop_nonce"
