"""Proofs that whoever sends a token has the key that it is bound to (DPoP, RFC 9449 §4.3, §7.1).

Each request has a proof of its own: for its method and URL, its token, and this minute. It counts once, at all workers
that share a store; while that doesn't answer, once at each. Signatures are looked at last: whoever sends proofs that
are for something else, or that were seen before, costs next to nothing.

What was seen before this process began may be forgotten, and so may what was seen before a memory was full. As long as
a proof could be of that time, it takes a nonce of ours that is younger (§9): nobody can have sent it before.
"""

import hashlib
import hmac
import math
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from secrets import token_bytes
from time import time
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from millstream._http.hosts import parse_authority
from millstream._http.message import Request, neighborhood
from millstream._limits.gcra import Limiter, Rate, told
from millstream._limits.pool import Pool
from millstream._protocol.seal import NONCE_BYTES, KeyRing
from millstream._stores.rates import Pace
from millstream.auth._claims import LEEWAY, is_time
from millstream.auth._jose import InvalidToken, open_proof
from millstream.auth._method import Forging, NonceWanted

KEPT = 2 * LEEWAY
"""Seconds in which a proof could be sent again."""
_MAX_KEPT = 100_000
_MAX_PROOF = 4096
_MAX_ID = 256
_FORGED = Rate(30, 60)
"""Wrong signatures from one address, for one key."""
_MAX_FORGERS = 10_000
_NONCE = b"dpop nonce"
_WEB = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_PORTS = {"http": b"80", "https": b"443"}
_URL = re.compile(r"[\x21-\x7e]{1,4096}")


class Proof(Struct, frozen=True):
    """A proof that is for the request that it came with, if its signature `holds`."""

    key: str
    """The thumbprint of its key."""
    id: str
    issued: float
    claims: Mapping[str, Any]
    holds: Callable[[], bool]
    """Looks at the signature."""

    @property
    def digest(self) -> bytes:
        """What is kept of a proof that was seen."""
        return hashlib.sha256(f"{self.key} {self.id}".encode("utf-8", "surrogatepass")).digest()


class Nonces:
    """Nonces of a server, by whichever of its workers."""

    __slots__ = ("_ring",)

    def __init__(self, ring: Callable[[], KeyRing]) -> None:
        self._ring = ring

    def make(self, now: float) -> str:
        """A new one."""
        return self._ring().seal(_NONCE, str(now).encode(), token_bytes(NONCE_BYTES))

    def is_since(self, began: float, nonce: object) -> bool:
        """Whether somebody was given this one since then."""
        made = self._ring().open(_NONCE, nonce) if isinstance(nonce, str) else None
        return made is not None and float(made) >= began


class Proofs:
    """The check, and the proofs that were seen."""

    __slots__ = ("_began", "_nonces", "_resource", "_seen", "clock", "forged")

    def __init__(self, resource: str, nonces: Nonces, *, began: float, clock: Callable[[], float] = time) -> None:
        """`resource` is the URL that tokens are for, by which clients know this server. This process `began` then, and
        knows nothing of before.
        """
        self._resource = resource
        self._nonces = nonces
        self._began = began
        self._seen: dict[bytes, float] = {}
        """Proof -> until when it could be sent again; in the order of coming."""
        self.forged: Limiter = Limiter("proof", _FORGED, clock=clock, max_keys=_MAX_FORGERS)
        """Wrong signatures, by address and key."""
        self.clock: Callable[[], float] = clock

    async def holds(self, request: Request, token: bytes, thumbprint: str, pool: Pool | None) -> bool:
        """Whether a request proves that it comes from the holder of the key with this thumbprint.

        Raises:
            NonceWanted: it would with a nonce.
            Forging: there were too many like it with wrong signatures.
        """
        now = self.clock()
        proof = read_proof(request, self._resource, now)
        if proof is None or not hmac.compare_digest(proof.key.encode(), thumbprint.encode("utf-8", "surrogatepass")):
            return False
        digest = urlsafe_b64encode(hashlib.sha256(token).digest()).rstrip(b"=").decode()
        if proof.claims.get("ath") != digest:
            return False
        if proof.digest in self._seen or not self._holds(proof, request.peer):
            return False
        self._make_room(now)
        forgets = pool is None or not pool.lasting
        if forgets:
            self._check_age(proof, self._began)
        self._seen[proof.digest] = now + KEPT
        if pool is None:
            return True
        decision = await pool.take([Pace(f"dpop:{proof.digest.hex()}", 1, int(KEPT))])
        if decision is None:  # the store doesn't answer, and nobody else knows what was before
            self._check_age(proof, self._began)
            return True
        if decision.taken[0].wait > 0:
            return False
        if forgets and decision.forgot is not None:
            self._check_age(proof, self.clock() - decision.forgot)
        return True

    def _holds(self, proof: Proof, peer: str) -> bool:
        """Whether a proof is signed by its key. Somebody who has seen a request of somebody else can make up proofs
        that lack nothing else: they are refused unseen, once an address has sent too many with the same key.

        Raises:
            Forging: it has.
        """
        sender = f"{neighborhood(peer)} {proof.key}"
        wait = self.forged.wait(sender)
        if wait > 0:
            raise Forging(told(self.forged, sender, wait))
        if proof.holds():
            return True
        self.forged.take(sender)
        return False

    def _make_room(self, now: float) -> None:
        seen = self._seen
        while seen and next(iter(seen.values())) <= now:
            del seen[next(iter(seen))]
        if len(seen) >= _MAX_KEPT:
            # Whoever fills it would otherwise have older proofs count again. A nonce that was made just now is too old.
            seen.clear()
            self._began = math.nextafter(max(now, self._began), math.inf)

    def _check_age(self, proof: Proof, forgotten: float) -> None:
        """What was seen until `forgotten` may be unknown.

        Raises:
            NonceWanted: the proof may be of that time.
        """
        if proof.issued <= forgotten + LEEWAY and not self._nonces.is_since(forgotten, proof.claims.get("nonce")):
            raise NonceWanted(self._nonces.make(max(self.clock(), forgotten)))


def read_proof(request: Request, resource: str, now: float) -> Proof | None:
    """The proof of a request to a resource, its signature unseen. None: there's none for it."""
    given = [value for name, value in request.raw_headers if name == b"dpop"]
    if len(given) != 1 or len(given[0]) > _MAX_PROOF or not given[0].isascii():
        return None
    try:
        signed = open_proof(given[0].decode("ascii"))
    except InvalidToken:
        return None
    claims = signed.claims
    id, at, where = claims.get("jti"), claims.get("iat"), claims.get("htu")
    fits = (
        isinstance(id, str)
        and 0 < len(id) <= _MAX_ID
        and is_time(at)
        and abs(now - cast("float", at)) <= LEEWAY
        and claims.get("htm") == request.method
        and isinstance(where, str)
        and _is_at(where, request, resource)
    )
    return Proof(signed.thumbprint, cast("str", id), cast("float", at), claims, signed.holds) if fits else None


def _is_at(where: str, request: Request, resource: str) -> bool:
    """Whether a URL is that of the request, as the client sees it: a proxy may have taken TLS or a prefix off. Neither
    query nor fragment counts.
    """
    named = origin_of(where)
    host = request.headers.get(b"host", b"").decode("latin-1")
    if named is None or named not in (origin_of(f"{request.scheme}://{host}"), origin_of(resource)):
        return False
    own, path = request.root_path + request.path, unquote(urlsplit(where).path) or "/"
    prefix = path.removesuffix(own)
    return path == own or (prefix not in (path, "") and urlsplit(resource).path.startswith(f"{prefix}/"))


def origin_of(url: str) -> tuple[str, object, bytes] | None:
    """The origin of a URL as it's compared (RFC 3986 §6.2.2, §6.2.3): the case of scheme and host, a port that is the
    scheme's own, and the spelling of an IPv6 address don't matter. None where there is none, or it has a user.
    """
    try:
        parts = urlsplit(url) if _URL.fullmatch(url) else None
    except ValueError:
        return None
    scheme = _WEB.get(parts.scheme) if parts is not None else None
    host = parse_authority(parts.netloc.removesuffix(":").encode("ascii")) if parts is not None else None
    if scheme is None or host is None:
        return None
    return scheme, host.address or host.name, (host.port or _PORTS[scheme]).lstrip(b"0")
