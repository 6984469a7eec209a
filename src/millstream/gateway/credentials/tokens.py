"""Access tokens that workers share: sealed in the store, and renewed by one worker at a time.

A refresh token often counts once. So a worker takes a lease before it renews, reads the store again, and writes by
comparing: of two workers that want a new token, one asks for it, and the other finds it. A renewal runs in a task of
its own, since a caller that gives up in the middle would lose the refresh token that is on its way.
"""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from msgspec import Struct

from millstream._server.calls.services import Services
from millstream._stores.base import Map
from millstream.client._errors import ClientError, ConnectFailed
from millstream.client._oauth.store import Registration, Tokens

PATIENCE: Final = 30.0
"""Seconds for all that an authorization server is asked at once."""
_LEASE: Final = 2 * PATIENCE
_LOOK_AGAIN: Final = 0.05
_EARLY: Final = 30.0
"""Seconds before its end at which a token is renewed, or a fifth of its life if that's less."""
_MAX_CACHED: Final = 4096
_MAX_RENEWALS: Final = 1024
"""Tokens that are renewed at a time."""
_AGAIN: Final = 5.0
"""Seconds after a renewal in which another refusal by the upstream doesn't cause another renewal."""
_KIND: Final = b"gateway token"
_TOPIC: Final = "gateway-token"


class Grant(Struct, frozen=True):
    """What an authorization server gave for one upstream and one owner."""

    tokens: Tokens
    renew_at: float = 0.0
    """Unix time from which the access token is too old; 0 where it has no known end."""
    registration: Registration = msgspec.field(default_factory=Registration)
    """As which client, where this one was registered."""

    @property
    def token(self) -> str:
        """The access token."""
        return self.tokens.access_token


def make_grant(tokens: Tokens, registration: Registration | None = None, *, now: float) -> Grant:
    """Return the grant of tokens that were given now."""
    life = max(tokens.expires_at - now, 0.0)
    renew_at = tokens.expires_at - min(_EARLY, life / 5) if tokens.expires_at else 0.0
    return Grant(tokens, renew_at, registration or Registration())


Renew = Callable[[Grant | None], Awaitable[Grant | None]]
"""Gets a grant in place of one; None if there's none any more."""


class SharedTokens:
    """The grants of one upstream."""

    __slots__ = ("_cached", "_changed", "_discard", "_lossy", "_missed", "_news", "_prefix", "_renewals", "_renewed",
                 "_services", "_stop", "_topic", "_ttl")  # fmt: skip

    def __init__(
        self,
        services: Services,
        prefix: str,
        *,
        ttl: float,
        lossy: bool,
        changed: Callable[[str], None] = lambda name: None,
        missed: Callable[[], None] = lambda: None,
        discard: Callable[[str, Grant], Awaitable[object]] | None = None,
    ) -> None:
        """Share them by the store of a server.

        Args:
            services: of the server.
            prefix: of their keys in the store, with the kind and a colon in front.
            ttl: seconds for which a grant without an end is kept.
            lossy: a grant can be had again without a person.
            changed: called with the name of a grant that a worker has put or removed.
            missed: called after such news may have been lost.
            discard: what becomes of a grant that was renewed and is of no use, because it was removed in between.
        """
        self._services = services
        self._prefix = prefix
        self._topic = f"{_TOPIC}:{prefix}"
        self._ttl = ttl
        self._lossy = lossy
        self._changed = changed
        self._missed = missed
        self._discard = discard
        # Process
        self._cached: OrderedDict[str, Grant] = OrderedDict()
        self._news = 0
        """How often something may have changed in the store."""
        self._renewals: dict[str, asyncio.Task[Grant | None]] = {}
        self._renewed: OrderedDict[str, float] = OrderedDict()
        """Name -> when this worker last renewed it because it was refused."""
        self._stop = services.store.bus.subscribe(self._topic, self._hear, interrupted=self._forget_all)

    async def close(self) -> None:
        """Stop. Renewals that run are finished first: a refresh token may be on its way."""
        self._stop()
        while self._renewals:
            await asyncio.wait(list(self._renewals.values()))

    def _forget_all(self) -> None:
        self._news += 1
        self._cached.clear()
        self._missed()

    def _hear(self, data: bytes) -> None:
        name = data.decode("utf-8", "replace")
        self._news += 1
        self._cached.pop(name, None)
        self._changed(name)

    # What there is

    def _place(self, name: str) -> str:
        return self._prefix + name

    async def load(self, name: str) -> Grant | None:
        """Return the grant of a name as it is, however old."""
        found = self._cached.get(name)
        if found is None:
            _, found = await self._read(name)
        return found

    async def _read(self, name: str) -> tuple[bytes | None, Grant | None]:
        place, news = self._place(name), self._news
        raw = await self._services.store.kv.get(place)
        plain = None if raw is None else self._services.ring.open(_KIND, raw.decode("latin-1"), place.encode())
        try:
            found = None if plain is None else msgspec.msgpack.decode(plain, type=Grant)
        except msgspec.MsgspecError:
            found = None
        if news == self._news:  # else it may have been removed since
            self._remember(name, found)
        return raw, found

    def _remember(self, name: str, grant: Grant | None) -> None:
        self._cached.pop(name, None)
        if grant is not None:
            self._cached[name] = grant
            if len(self._cached) > _MAX_CACHED:
                self._cached.popitem(last=False)

    def _sealed(self, name: str, grant: Grant) -> bytes:
        services = self._services
        plain = msgspec.msgpack.encode(grant)
        return services.ring.seal(_KIND, plain, services.nonce(), self._place(name).encode()).encode()

    def _life(self, grant: Grant) -> float:
        until = grant.tokens.expires_at
        lasts = grant.tokens.refresh_token or not until
        return self._ttl if lasts else max(until - time.time(), 1.0)

    async def put(self, name: str, grant: Grant) -> None:
        """Keep a grant in place of any other, and tell all workers."""
        await self._services.store.kv.put(
            self._place(name), self._sealed(name, grant), self._life(grant), lossy=self._lossy
        )
        await self._tell(name)

    async def remove(self, name: str) -> Grant | None:
        """Remove a grant on all workers, and return it."""
        _, grant = await self._read(name)
        await self._services.store.kv.delete(self._place(name))
        await self._tell(name)
        return grant

    async def _tell(self, name: str) -> None:
        self._news += 1
        self._cached.pop(name, None)
        await self._services.store.bus.publish(self._topic, name.encode())

    # What is fresh

    async def get(self, name: str, renew: Renew) -> Grant | None:
        """Return the grant of a name, renewed if its token is about to expire.

        Raises:
            ClientError: it has expired, and can't be renewed now.
        """
        found = await self.load(name)
        if found is not None and not _is_old(found):
            return found
        return await self._renewal(name, found, renew)

    async def replace(self, name: str, refused: str, renew: Renew) -> bool:
        """Renew a grant whose access token the upstream has refused.

        Returns:
            Whether another attempt is worthwhile: there's another token now.

        Raises:
            ClientError: it can't be renewed now.
        """
        _, found = await self._read(name)
        if found is not None and found.token != refused:
            return True
        last = self._renewed.get(name)
        if last is not None and time.monotonic() - last < _AGAIN:
            return False
        self._renewed.pop(name, None)
        self._renewed[name] = time.monotonic()
        if len(self._renewed) > _MAX_CACHED:
            self._renewed.popitem(last=False)
        fresh = await self._renewal(name, found, renew)
        return fresh is not None and fresh.token != refused

    async def _renewal(self, name: str, old: Grant | None, renew: Renew) -> Grant | None:
        task = self._renewals.get(name)
        if task is None:
            if len(self._renewals) >= _MAX_RENEWALS:
                raise ConnectFailed("Too many access tokens are renewed at once. Try again later.")
            task = asyncio.get_running_loop().create_task(self._renew(name, old, renew))
            self._renewals[name] = task
            task.add_done_callback(lambda done: self._forget(name, done))
        return await asyncio.shield(task)

    def _forget(self, name: str, done: asyncio.Task[Any]) -> None:
        if self._renewals.get(name) is done:
            del self._renewals[name]
        if not done.cancelled():
            done.exception()  # its callers may have given up

    async def _renew(self, name: str, old: Grant | None, renew: Renew) -> Grant | None:
        try:
            async with (
                asyncio.timeout(2 * _LEASE),
                lease(self._services.store.kv, f"gateway-lease:{self._prefix}{name}"),
            ):
                raw, found = await self._read(name)
                if found is not None and not _is_old(found) and (old is None or found.token != old.token):
                    return found  # another worker was faster
                async with asyncio.timeout(PATIENCE):
                    fresh = await renew(found)
        except TimeoutError:
            raise ConnectFailed("The authorization server took too long.") from None
        except ClientError:
            if old is not None and not _has_ended(old):
                return old  # it's good for a while
            raise
        return await self._write(name, raw, fresh)

    async def _write(self, name: str, raw: bytes | None, fresh: Grant | None) -> Grant | None:
        kv, place = self._services.store.kv, self._place(name)
        sealed = None if fresh is None else self._sealed(name, fresh)
        ttl = 1.0 if fresh is None else self._life(fresh)
        if raw is None and sealed is None:
            return None
        news = self._news
        if await kv.compare_and_set(place, raw, sealed, ttl, lossy=self._lossy):
            if news == self._news:
                self._remember(name, fresh)
            if fresh is None:
                await self._tell(name)
            return fresh
        # It was removed or replaced in between: what the person did counts.
        _, found = await self._read(name)
        if found is None and fresh is not None and self._discard is not None:
            await self._discard(name, fresh)
        return found


def _is_old(grant: Grant) -> bool:
    return 0 < grant.renew_at <= time.time()


def _has_ended(grant: Grant) -> bool:
    return 0 < grant.tokens.expires_at <= time.time()


@asynccontextmanager
async def lease(kv: Map, place: str) -> AsyncGenerator[None]:
    """Be the only worker inside for a name. A worker that dies inside blocks the others for a minute at most."""
    mine = secrets.token_bytes(16)
    # Another worker may have it, and nothing here would hear that it's over.
    while not await kv.compare_and_set(place, None, mine, _LEASE):  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_AGAIN)
    try:
        yield
    finally:
        # One that took too long is over, and another may have begun.
        await kv.compare_and_set(place, mine, None, 1.0)
