"""Cached verdicts on credentials, and sign-outs from the pages, which end them."""

import logging
from collections.abc import Callable
from hashlib import sha256
from typing import Any, NamedTuple

from millstream._override import override
from millstream._protocol.errors import LocalError
from millstream._protocol.principal import Principal
from millstream._recent import Recent
from millstream._stores.base import Store

logger = logging.getLogger("millstream")

_MAX_ENTRIES = 4096
_MAX_PER_PRINCIPAL = 256
"""Maximum entries of one principal when the cache is full."""


class Verdict(NamedTuple):
    """A verdict on a credential, and its expiry."""

    principal: Principal
    until: float


class Verdicts(dict[bytes, Verdict]):
    """Normalized ``Authorization`` value -> verdict, in order of insertion.

    A lookup is one dictionary access; all bookkeeping happens on insertion. A principal with many valid credentials can
    fill the cache, but then evicts only its own entries. Otherwise it could force a signature check or a request to the
    issuer for each request of other callers.
    """

    def __init__(self) -> None:
        super().__init__()
        self._by_principal: dict[str, dict[bytes, None]] = {}
        """`Principal.id` -> its entries, in the same order."""

    def keep(self, value: bytes, verdict: Verdict) -> None:
        """Cache a verdict. A full cache drops the oldest one, or its principal's oldest at `_MAX_PER_PRINCIPAL`."""
        if value in self:
            del self[value]
        id = verdict.principal.id
        while len(self) >= _MAX_ENTRIES:
            mine = self._by_principal.get(id, {})
            del self[next(iter(mine if len(mine) >= _MAX_PER_PRINCIPAL else self))]
        self[value] = verdict
        self._by_principal.setdefault(id, {})[value] = None

    @override
    def __delitem__(self, value: bytes) -> None:
        id = self[value].principal.id
        super().__delitem__(value)
        mine = self._by_principal[id]
        del mine[value]
        if not mine:
            del self._by_principal[id]

    @override
    def clear(self) -> None:
        """Drop all verdicts."""
        super().clear()
        self._by_principal.clear()


_TOPIC = "signed-out"
_MARK = b"\0"
_EVERYWHERE = "*"
"""Before a principal's id, in place of a cookie's digest."""


class SignedOut:
    """The sign-outs known to one worker.

    After a sign-out, the cookie becomes invalid on every worker, and its streams are closed. The store records a
    sign-out for the cookie's lifetime. A worker queries it for each new cookie, and again every minute; requests
    without a cookie cost nothing.

    While the store is unavailable, a worker relies on earlier announcements. Afterward it checks all cookies again and
    closes their streams; browsers reconnect. An in-memory store loses sign-outs on restart, but a restart also
    invalidates all cookies, unless ``MILLSTREAM_SECRET_KEY`` is set.
    """

    def __init__(self, store: Store, verdicts: dict[bytes, Any]) -> None:
        """Subscribe to announcements. `verdicts` contains cached verdicts on cookies under `verdict_key`."""
        self._store = store
        self._verdicts = verdicts
        self._digests: Recent[str, None] = Recent(_MAX_ENTRIES)
        """Digests of signed-out cookies; the oldest are dropped first."""
        self._to_close: Recent[tuple[str, float], None] = Recent(_MAX_ENTRIES)
        """Owners and expiries of streams to close; the oldest are dropped first."""
        self._everywhere: Recent[str, float] = Recent(_MAX_ENTRIES)
        """Principal id -> the time at which the user signed out everywhere; the oldest are dropped first."""
        self._in_use: Recent[tuple[str, int], float] = Recent(_MAX_ENTRIES)
        """Owner and rounded expiry of cookies in use -> exact expiry; the oldest are dropped first."""
        self.stop: Callable[[], None] = store.bus.subscribe(_TOPIC, self._on_announcement, interrupted=self._drop)
        """Unsubscribes from announcements."""

    async def add(self, cookie: str, id: str, until: float, seconds: float) -> None:
        """Record that a user has signed out.

        Args:
            cookie: The user's cookie.
            id: Id of the principal.
            until: Expiry of the streams opened with the cookie.
            seconds: Remaining lifetime of the cookie.
        """
        await self._announce(_digest(cookie), id, until, b"1", seconds)

    async def add_everywhere(self, id: str, now: float, seconds: float) -> None:
        """Record that a user has signed out in every browser.

        Args:
            id: Id of the principal.
            now: Time of the sign-out. Cookies issued until then are invalid.
            seconds: Maximum lifetime of a cookie.
        """
        await self._announce(_EVERYWHERE, id, now, str(now).encode(), seconds)

    async def _announce(self, name: str, id: str, when: float, value: bytes, seconds: float) -> None:
        said = f"{name} {when} {id}".encode()
        self._on_announcement(said)
        key = f"{name}{id}" if name == _EVERYWHERE else name
        try:
            await self._store.kv.put(f"signed-out:{key}", value, max(1.0, seconds))
            await self._store.bus.publish(_TOPIC, said)
        except LocalError as exc:
            logger.warning("A user signed out of the pages, but the other workers can't be notified: %s", exc)

    async def has(self, cookie: str) -> bool:
        """Return whether the user of a cookie has signed out."""
        if self.was_notified(cookie):
            return True
        try:
            return await self._store.kv.get(f"signed-out:{_digest(cookie)}") is not None
        except LocalError:
            return False

    async def has_everywhere(self, id: str, issued: float) -> bool:
        """Return whether a user has signed out everywhere since a cookie was issued."""
        try:
            found = await self._store.kv.get(f"signed-out:{_EVERYWHERE}{id}")
        except LocalError:
            found = None
        return issued <= max(float(found or 0), self._everywhere.get(id) or 0)

    def was_notified(self, cookie: str) -> bool:
        """Return whether this worker has received the cookie's sign-out, perhaps while checking the cookie."""
        return _digest(cookie) in self._digests

    def note_use(self, id: str, until: float) -> None:
        """Record that a cookie is in use on this worker; see `add` for the arguments."""
        self._in_use.keep((id, round(until)), until)

    def end(self, opened: Callable[[str, float], None]) -> None:
        """Call `opened` once with the owner and expiry of each signed-out cookie, to close its streams."""
        found = list(self._to_close)
        self._to_close.clear()
        for owner, until in found:
            opened(owner, until)

    def _on_announcement(self, data: bytes) -> None:
        name, until, id = data.decode("utf-8", "replace").split(" ", 2)
        if name == _EVERYWHERE:
            self._everywhere.keep(id, float(until))
            self._drop(id)
            return
        self._digests.keep(name, None)
        self._to_close.keep((id, float(until)), None)
        if (known := _key(name)) in self._verdicts:
            del self._verdicts[known]

    def _drop(self, owner: str | None = None) -> None:
        """Close the streams opened with cookies, of one owner or of all, and check those cookies again.

        All are closed after announcements may have been missed.
        """
        for key, until in [each for each in self._in_use.items() if owner in (None, each[0][0])]:
            self._to_close.keep((key[0], until), None)
            del self._in_use[key]
        for each, verdict in list(self._verdicts.items()):
            if each.startswith(_MARK) and (owner is None or verdict.principal.id == owner):
                del self._verdicts[each]


def verdict_key(cookie: str) -> bytes:
    """Return the cache key of a cookie's verdict."""
    return _key(_digest(cookie))


def _key(digest: str) -> bytes:
    # Headers can't contain a zero byte, so no credential equals this key.
    return _MARK + digest.encode()


def _digest(cookie: str) -> str:
    # A sealed value has only one valid encoding.
    return sha256(cookie.encode("utf-8", "surrogatepass")).hexdigest()
