"""The public keys of an issuer: fixed, or fetched and cached.

A set is fetched on first use, after ten minutes, and when a token has an unknown key id, because issuers rotate keys;
but at most every 30 seconds. Concurrent callers share one fetch. While the issuer is unavailable, cached keys stay
valid for a day.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import Any

from millstream._http.client.fetch import FetchedDocument, OutboundError
from millstream._protocol.jsonrpc import MALFORMED, decoder
from millstream.auth._jose import PublicKey, read_keys
from millstream.auth._method import Unavailable
from millstream.auth._single_flight import SingleFlight

logger = logging.getLogger("millstream")

Get = Callable[[str], Awaitable[FetchedDocument]]
"""Fetches a URL."""

_MAX_AGE = 600.0
_MAX_STALE_AGE = 86_400.0
_MAX_TRIED = 8
"""Maximum keys tried per token. Each costs a verification, and clients supply their own sets."""
_MIN_INTERVAL = 30.0
"""Minimum seconds between two fetches."""

_NO_KEYS = "An issuer's tokens can't be verified, because its keys can't be fetched. %s"

_decode = decoder(dict[str, Any])


class FixedKeys:
    """Fixed keys."""

    epoch = 0

    def __init__(self, keys: list[PublicKey]) -> None:
        self._keys = keys

    async def find(self, kid: str | None, algorithm: str) -> list[PublicKey]:
        """Return the keys that may have made a signature."""
        return select_keys(self._keys, kid, algorithm)

    async def prefetch(self) -> None:
        """Do nothing."""


class FetchedKeys:
    """Keys at a URL."""

    def __init__(
        self,
        url: Callable[[], Awaitable[str]],
        get: Get,
        *,
        retry: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Create the set. `url` returns the URL of the keys; `retry` allows it to repeat a failed discovery at once."""
        # Configuration
        self._url = url
        self._get = get
        self._retry = retry
        self._clock = clock
        # State
        self._keys: list[PublicKey] = []
        self._raw: Mapping[str, Any] = {}
        self._last_fetch = float("-inf")
        self._last_attempt = float("-inf")
        self._flight = SingleFlight[None]()
        self.epoch = 0
        """Number of times the keys have changed."""

    async def prefetch(self) -> None:
        """Fetch the keys before the first token. If that fails, the first token triggers another fetch."""
        try:
            await self.find("", "")
        except Unavailable:
            self._last_attempt = self._last_fetch
            self._retry()

    async def find(self, kid: str | None, algorithm: str) -> list[PublicKey]:
        """Return the keys that may have made a signature.

        Raises:
            Unavailable: the keys can't be fetched.
        """
        now = self._clock()
        found = select_keys(self._keys, kid, algorithm)
        is_old = now - self._last_fetch > _MAX_AGE
        if (not found or is_old) and (self._flight.runs("keys") or now - self._last_attempt >= _MIN_INTERVAL):
            self._last_attempt = now
            await self._flight.run("keys", self._load)
            found = select_keys(self._keys, kid, algorithm)
        if self._clock() - self._last_fetch > _MAX_STALE_AGE:
            raise Unavailable("The keys of the issuer can't be fetched. Try again later.")
        return found

    async def _load(self) -> None:
        url = ""
        try:
            url = await self._url()
            raw = _decode((await self._get(url)).body)
            keys = read_keys(raw)
        except Unavailable as exc:
            logger.warning(_NO_KEYS, exc.why)
            return
        except (OutboundError, *MALFORMED) as exc:
            logger.warning(_NO_KEYS, f"{url}: {exc}")
            return
        self._last_fetch = self._clock()
        if raw != self._raw:
            self._raw, self._keys = raw, keys
            self.epoch += 1


def select_keys(keys: list[PublicKey], kid: str | None, algorithm: str) -> list[PublicKey]:
    """Return the keys that support an algorithm and have the id `kid`, or any id if it's None; at most `_MAX_TRIED`."""
    return [each for each in keys if (kid is None or each.kid == kid) and each.fits(algorithm)][:_MAX_TRIED]
