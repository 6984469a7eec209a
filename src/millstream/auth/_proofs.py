"""Proofs that whoever sends a token has the key that it is bound to (DPoP, RFC 9449 §4.3, §7.1).

Each request has a proof of its own: for its method and URL, its token, and this minute. It counts once, at all workers
that share a store; while that doesn't answer, once at each.
"""

import hashlib
import hmac
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from time import time
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from millstream._http.message import Request
from millstream._limits.pool import Pool
from millstream._stores.rates import Pace
from millstream.auth._claims import LEEWAY, is_time
from millstream.auth._jose import InvalidToken, open_proof

_KEPT = 2 * LEEWAY
_MAX_KEPT = 100_000
_MAX_PROOF = 4096
_MAX_ID = 256


class Proofs:
    """The check, and the proofs that were seen."""

    __slots__ = ("_resource", "_seen", "clock")

    def __init__(self, resource: str, *, clock: Callable[[], float] = time) -> None:
        """`resource` is the URL that tokens are for, by which clients know this server."""
        self._resource = urlsplit(resource)
        self._seen: dict[bytes, float] = {}
        """Proof -> until when it could be sent again; in the order of coming."""
        self.clock: Callable[[], float] = clock

    async def holds(self, request: Request, token: bytes, thumbprint: str, pool: Pool | None) -> bool:
        """Whether a request proves that it comes from the holder of the key with this thumbprint."""
        given = [value for name, value in request.raw_headers if name == b"dpop"]
        if len(given) != 1 or len(given[0]) > _MAX_PROOF or not given[0].isascii():
            return False
        try:
            claims, found = open_proof(given[0].decode("ascii"))
        except InvalidToken:
            return False
        if not hmac.compare_digest(found.encode(), thumbprint.encode("utf-8", "surrogatepass")):
            return False
        return self._fits(claims, request, token) and await self._is_new(found, str(claims["jti"]), pool)

    def _fits(self, claims: Mapping[str, Any], request: Request, token: bytes) -> bool:
        id, at, where = claims.get("jti"), claims.get("iat"), claims.get("htu")
        digest = urlsafe_b64encode(hashlib.sha256(token).digest()).rstrip(b"=").decode()
        return (
            isinstance(id, str)
            and 0 < len(id) <= _MAX_ID
            and is_time(at)
            and abs(self.clock() - cast("float", at)) <= LEEWAY
            and claims.get("htm") == request.method
            and claims.get("ath") == digest
            and isinstance(where, str)
            and self._is_here(where, request)
        )

    def _is_here(self, where: str, request: Request) -> bool:
        """Whether a URL is that of the request, as the client sees it: a proxy may have taken TLS or a prefix off."""
        try:
            parts = urlsplit(where)
        except ValueError:
            return False
        host = request.headers.get(b"host", b"").decode("latin-1").lower()
        scheme = {"ws": "http", "wss": "https"}.get(request.scheme, request.scheme)
        origin = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme), parts.netloc.lower()
        if origin not in ((scheme, host), (self._resource.scheme, self._resource.netloc.lower())):
            return False
        own, path = request.root_path + request.path, unquote(parts.path) or "/"
        prefix = path.removesuffix(own)
        return path == own or (prefix not in (path, "") and self._resource.path.startswith(f"{prefix}/"))

    async def _is_new(self, thumbprint: str, id: str, pool: Pool | None) -> bool:
        proof, now = hashlib.sha256(f"{thumbprint} {id}".encode("utf-8", "surrogatepass")).digest(), self.clock()
        seen = self._seen
        while seen and (len(seen) >= _MAX_KEPT or next(iter(seen.values())) <= now):
            del seen[next(iter(seen))]
        if proof in seen:
            return False
        seen[proof] = now + _KEPT
        if pool is None:
            return True
        decision = await pool.take([Pace(f"dpop:{proof.hex()}", 1, int(_KEPT))])
        return decision is None or decision.taken[0].wait <= 0
