"""Cookies whose people have signed out: no copy of one counts any more, at any worker, and what it opened ends.

The store keeps which they were for as long as they would have counted. A worker asks it when a cookie is new to it, and
again each minute; requests without a cookie cost nothing. While the store doesn't answer, a worker goes by what it has
heard; afterwards it asks about each cookie again, and ends what they opened, for browsers come back. A store that keeps
nothing over a restart forgets them, and the cookies end with it unless ``MILLSTREAM_KEY`` is set.
"""

import logging
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from millstream._protocol.errors import LocalError
from millstream._stores.base import Store

logger = logging.getLogger("millstream")

_TOPIC = "signed-out"
_MAX_HEARD = 4096
_MARK = b"\0"


class SignedOut:
    """Those cookies, as one worker knows them."""

    __slots__ = ("_ended", "_heard", "_met", "_store", "_verdicts", "stop")

    def __init__(self, store: Store, verdicts: dict[bytes, Any]) -> None:
        """`verdicts` has what is known of cookies, by `kept_as`."""
        self._store = store
        self._verdicts = verdicts
        self._heard: dict[str, None] = {}
        """Digests of cookies; the oldest go first."""
        self._ended: dict[tuple[str, float], None] = {}
        """Whose, and until when it would have counted, since the last look; the oldest go first."""
        self._met: dict[tuple[str, int], float] = {}
        """Whose, and until when it counts, to a second; and exactly. The oldest go first."""
        self.stop: Callable[[], None] = store.bus.subscribe(_TOPIC, self._hear, interrupted=self._missed)
        """Hear no more."""

    async def add(self, cookie: str, id: str, until: float, seconds: float) -> None:
        """A person has signed out.

        Args:
            cookie: that stands for them.
            id: of the principal.
            until: when what the cookie opened would have ended.
            seconds: for which the cookie would have counted.
        """
        name = _digest(cookie)
        said = f"{name} {until} {id}".encode()
        self._hear(said)
        try:
            await self._store.kv.put(f"signed-out:{name}", b"1", max(1.0, seconds))
            await self._store.bus.publish(_TOPIC, said)
        except LocalError as exc:
            logger.warning("Somebody has signed out of the pages, and the other workers don't hear of it: %s", exc)

    async def has(self, cookie: str) -> bool:
        """Whether the person of a cookie has signed out."""
        if self.heard(cookie):
            return True
        try:
            return await self._store.kv.get(f"signed-out:{_digest(cookie)}") is not None
        except LocalError:
            return False

    def heard(self, cookie: str) -> bool:
        """Whether this worker has heard of it lately: while it looked into the cookie, for example."""
        return _digest(cookie) in self._heard

    def met(self, id: str, until: float) -> None:
        """A cookie counts here, and may open something: see `add` for whose it is, and until when."""
        _note(self._met, (id, round(until)), until)

    def end(self, opened: Callable[[str, float], None]) -> None:
        """End what they opened: `opened` hears whose it is, and until when it would have gone on; of each once."""
        found, self._ended = list(self._ended), {}
        for owner, until in found:
            opened(owner, until)

    def _hear(self, data: bytes) -> None:
        name, until, id = data.decode("utf-8", "replace").split(" ", 2)
        _note(self._heard, name)
        _note(self._ended, (id, float(until)))
        if (known := _named(name)) in self._verdicts:
            del self._verdicts[known]

    def _missed(self) -> None:
        """Somebody may have signed out elsewhere: what any cookie has opened ends, and the store is asked again."""
        for (id, _), until in self._met.items():
            _note(self._ended, (id, until))
        self._met.clear()
        for each in [each for each in self._verdicts if each.startswith(_MARK)]:
            del self._verdicts[each]


def kept_as(cookie: str) -> bytes:
    """Under what a verdict about a cookie is kept."""
    return _named(_digest(cookie))


def _named(digest: str) -> bytes:
    # No header can have a zero byte: nobody gets at a verdict by sending its name as a credential.
    return _MARK + digest.encode()


def _digest(cookie: str) -> str:
    # What is sealed opens in one spelling only.
    return sha256(cookie.encode("utf-8", "surrogatepass")).hexdigest()


def _note(kept: dict[Any, Any], what: Any, about: Any = None) -> None:
    kept.pop(what, None)
    while len(kept) >= _MAX_HEARD:
        del kept[next(iter(kept))]
    kept[what] = about
