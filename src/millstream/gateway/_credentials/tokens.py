"""Access tokens that workers share: sealed in the store, and renewed by one worker at a time.

Many refresh tokens can be used only once. A worker takes a lease before it renews, reads the store again, and writes
with compare-and-set, so of two workers that need a new token, one requests it and the other reads it. A renewal runs in
its own task, because a canceled caller would otherwise lose the new refresh token.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from msgspec import Struct

from millstream._recent import Recent
from millstream._server.calls.services import Services
from millstream._tasks import has_failed
from millstream.auth._authorization_server.signing import Vault
from millstream.client import ClientError, ConnectFailed
from millstream.client._oauth.store import Registration, Tokens
from millstream.stores import Claim

ISSUER_TIMEOUT = 30.0
"""Total seconds for the requests of one renewal to an authorization server."""
_LEASE = 2 * ISSUER_TIMEOUT
_RENEWAL_MARGIN = 30.0
"""Seconds before expiry at which a token is renewed, or a fifth of its lifetime if that's less."""
_MAX_CACHED = 4096
_MAX_RENEWALS = 1024
"""Maximum concurrent renewals."""
_MIN_RENEWAL_INTERVAL = 5.0
"""Seconds after a renewal during which another refusal by the upstream doesn't cause another renewal."""
_KIND = b"gateway token"
_TOPIC = "gateway-token"


class StoredGrant(Struct, frozen=True):
    """Tokens of an authorization server for one upstream and one owner."""

    tokens: Tokens
    renew_at: float = 0.0
    """Unix time at which to renew the access token; 0 if its expiry is unknown."""
    registration: Registration = msgspec.field(default_factory=Registration)
    """The client registration that the tokens were issued to, if any."""

    @property
    def token(self) -> str:
        """The access token."""
        return self.tokens.access_token

    @property
    def has_expired(self) -> bool:
        """Whether the access token has expired."""
        return 0 < self.tokens.expires_at <= time.time()

    @property
    def has_ended(self) -> bool:
        """Whether only its user can renew it."""
        return not self.tokens.refresh_token and self.has_expired


def make_grant(tokens: Tokens, registration: Registration | None = None, *, now: float) -> StoredGrant:
    """Return a grant for tokens that were just issued."""
    life = max(tokens.expires_at - now, 0.0)
    renew_at = tokens.expires_at - min(_RENEWAL_MARGIN, life / 5) if tokens.expires_at else 0.0
    return StoredGrant(tokens, renew_at, registration or Registration())


Renew = Callable[[StoredGrant | None], Awaitable[StoredGrant | None]]
"""Returns the successor of a grant, or None if it has ended."""


class SharedTokens:
    """The grants of one upstream."""

    def __init__(
        self,
        services: Services,
        prefix: str,
        *,
        ttl: float,
        lossy: bool,
        on_change: Callable[[str], None] = lambda name: None,
        on_interruption: Callable[[], None] = lambda: None,
        discard: Callable[[str, StoredGrant], Awaitable[object]] | None = None,
    ) -> None:
        """Share grants through the store of a server.

        Args:
            services: Services of the server.
            prefix: Prefix of the store keys, after the kind and a colon.
            ttl: Seconds for which a grant without an expiry is kept.
            lossy: Whether a grant can be obtained again without a user.
            on_change: Called with the name of a grant that a worker has stored or removed.
            on_interruption: Called after such messages may have been lost.
            discard: Called with a renewed grant that was removed during its renewal.
        """
        self._services = services
        self._vault = Vault(services)
        self._prefix = prefix
        self._topic = f"{_TOPIC}:{prefix}"
        self._ttl = ttl
        self._lossy = lossy
        self._on_change = on_change
        self._on_interruption = on_interruption
        self._discard = discard
        self._cache: Recent[str, StoredGrant] = Recent(_MAX_CACHED)
        self._change_count = 0
        """Counter of possible changes in the store."""
        self._renewals: dict[str, asyncio.Task[StoredGrant | None]] = {}
        self._renewal_times: Recent[str, float] = Recent(_MAX_CACHED)
        """Name -> time of this worker's last renewal after a refusal."""
        self._stop = services.store.bus.subscribe(self._topic, self._on_message, interrupted=self._forget_all)

    async def close(self) -> None:
        """Stop after finishing running renewals, which may be receiving a refresh token."""
        self._stop()
        while self._renewals:
            await asyncio.wait(list(self._renewals.values()))

    def _forget_all(self) -> None:
        self._change_count += 1
        self._cache.clear()
        self._on_interruption()

    def _on_message(self, data: bytes) -> None:
        name = data.decode("utf-8", "replace")
        self._change_count += 1
        self._cache.pop(name, None)
        self._on_change(name)

    # Stored grants

    def _key(self, name: str) -> str:
        return self._prefix + name

    async def load(self, name: str) -> StoredGrant | None:
        """Return the stored grant of a name, even if it has expired."""
        found = self._cache.get(name)
        if found is None:
            _, found = await self._read(name)
        return found

    async def _read(self, name: str) -> tuple[bytes | None, StoredGrant | None]:
        key, change_count = self._key(name), self._change_count
        raw = await self._services.store.kv.get(key)
        found = None if raw is None else self._vault.open(_KIND, raw.decode("latin-1"), StoredGrant, key.encode())
        if change_count == self._change_count:  # else it may have been removed since
            self._remember(name, found)
        return raw, found

    def _remember(self, name: str, grant: StoredGrant | None) -> None:
        if grant is None:
            self._cache.pop(name, None)
        else:
            self._cache.keep(name, grant)

    def _seal(self, name: str, grant: StoredGrant) -> bytes:
        return self._vault.seal(_KIND, grant, self._key(name).encode()).encode()

    def _lifetime(self, grant: StoredGrant) -> float:
        until = grant.tokens.expires_at
        lasts = grant.tokens.refresh_token or not until
        return self._ttl if lasts else max(until - time.time(), 1.0)

    async def put(self, name: str, grant: StoredGrant) -> None:
        """Store a grant, replacing any other, and notify all workers."""
        await self._services.store.kv.put(
            self._key(name), self._seal(name, grant), self._lifetime(grant), lossy=self._lossy
        )
        await self._notify_workers(name)

    async def remove(self, name: str) -> StoredGrant | None:
        """Remove a grant on all workers, and return it."""
        _, grant = await self._read(name)
        await self._services.store.kv.delete(self._key(name))
        await self._notify_workers(name)
        return grant

    async def _notify_workers(self, name: str) -> None:
        self._change_count += 1
        self._cache.pop(name, None)
        await self._services.store.bus.publish(self._topic, name.encode())

    # Fresh grants

    async def get(self, name: str, renew: Renew) -> StoredGrant | None:
        """Return the grant of a name, renewed if its token is about to expire.

        Raises:
            ClientError: It has expired, and can't be renewed at the moment.
        """
        found = await self.load(name)
        if found is not None and not _needs_renewal(found):
            return found
        return await self._renewal(name, found, renew)

    async def replace(self, name: str, refused: str, renew: Renew) -> bool:
        """Renew a grant whose access token the upstream has refused.

        Returns:
            Whether a retry makes sense, because there's another token.

        Raises:
            ClientError: The grant can't be renewed at the moment.
        """
        _, found = await self._read(name)
        if found is not None and found.token != refused:
            return True
        last = self._renewal_times.get(name)
        if last is not None and time.monotonic() - last < _MIN_RENEWAL_INTERVAL:
            return False
        self._renewal_times.keep(name, time.monotonic())
        fresh = await self._renewal(name, found, renew)
        return fresh is not None and fresh.token != refused

    async def _renewal(self, name: str, old: StoredGrant | None, renew: Renew) -> StoredGrant | None:
        task = self._renewals.get(name)
        if task is None:
            if len(self._renewals) >= _MAX_RENEWALS:
                raise ConnectFailed("Too many access tokens are being renewed at once. Try again later.")
            task = asyncio.get_running_loop().create_task(self._renew(name, old, renew))
            self._renewals[name] = task
            task.add_done_callback(lambda done: self._forget(name, done))
        return await asyncio.shield(task)

    def _forget(self, name: str, done: asyncio.Task[Any]) -> None:
        if self._renewals.get(name) is done:
            del self._renewals[name]
        has_failed(done)  # its callers may have been canceled

    async def _renew(self, name: str, old: StoredGrant | None, renew: Renew) -> StoredGrant | None:
        try:
            async with (
                asyncio.timeout(2 * _LEASE),
                Claim(self._services.store.kv, f"gateway-lease:{self._prefix}{name}", _LEASE).hold(),
            ):
                raw, found = await self._read(name)
                if found is not None and not _needs_renewal(found) and (old is None or found.token != old.token):
                    return found  # another worker was faster
                async with asyncio.timeout(ISSUER_TIMEOUT):
                    fresh = await renew(found)
        except TimeoutError:
            raise ConnectFailed("The authorization server took too long. Try again later.") from None
        except ClientError:
            if old is not None and not old.has_expired:
                return old  # it's still valid for a while
            raise
        return await self._write(name, raw, fresh)

    async def _write(self, name: str, raw: bytes | None, fresh: StoredGrant | None) -> StoredGrant | None:
        kv, key = self._services.store.kv, self._key(name)
        sealed = None if fresh is None else self._seal(name, fresh)
        ttl = 1.0 if fresh is None else self._lifetime(fresh)
        if raw is None and sealed is None:
            return None
        change_count = self._change_count
        if await kv.compare_and_set(key, raw, sealed, ttl, lossy=self._lossy):
            if change_count == self._change_count:
                self._remember(name, fresh)
            if fresh is None:
                await self._notify_workers(name)
            return fresh
        # It was removed or replaced in between: the user's action wins.
        _, found = await self._read(name)
        if found is None and fresh is not None and self._discard is not None:
            await self._discard(name, fresh)
        return found


def _needs_renewal(grant: StoredGrant) -> bool:
    return 0 < grant.renew_at <= time.time()
