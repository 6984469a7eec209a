"""The key that a client wants its tokens bound to: it comes to the token endpoint with a proof (DPoP, RFC 9449 §5)."""

from millstream._http.message import Request, neighborhood
from millstream._limits.gcra import Limiter, Rate, told
from millstream.auth._issuing.answers import OAuthError
from millstream.auth._issuing.metadata import TOKEN
from millstream.auth._issuing.plan import Plan
from millstream.auth._issuing.records import Client
from millstream.auth._issuing.vault import Vault
from millstream.auth._proofs import KEPT, read_proof

RATE = Rate(600, 60)
"""Proofs of one address: each is remembered, and anybody can make them."""


class KeyProof:
    """Reads proofs. Each counts once, for as long as the store remembers; a code or refresh token comes with it."""

    def __init__(self, plan: Plan, vault: Vault) -> None:
        self._url = plan.base + TOKEN
        self._vault = vault
        self._limiter = Limiter("key-proof", RATE)

    async def key(self, request: Request, client: Client) -> str:
        """The thumbprint of the key; empty where a client wants a token that anybody could use.

        Raises:
            OAuthError: there's something else than one good proof, or none where the client has said it sends them.
        """
        if not any(name == b"dpop" for name, _ in request.raw_headers):
            if client.proves:
                raise _refused("This client has registered to have its tokens bound to a key. Send a proof.")
            return ""
        address = neighborhood(request.peer)
        wait = self._limiter.take(address)
        if wait > 0:
            head = told(self._limiter, address, wait)
            raise OAuthError("temporarily_unavailable", "Too many proofs from your address.", 429, head)
        proof = read_proof(request, self._url, self._vault.clock())
        if proof is None or not proof.holds():
            raise _refused("The DPoP header isn't one proof for this request, made just now.")
        if not await self._vault.exchange(f"oauth-proof:{proof.digest.hex()}", None, b"1", KEPT, lossy=True):
            raise _refused("The proof was used before.")
        return proof.key


def check_key(wanted: str, key: str) -> None:
    """See whether the key of a request is the one that something is bound to.

    Raises:
        OAuthError: it's bound to another one.
    """
    if wanted and key != wanted:
        raise OAuthError("invalid_grant", "It's bound to a key, and the request has no proof of that one.")


def _refused(text: str) -> OAuthError:
    return OAuthError("invalid_dpop_proof", text)
