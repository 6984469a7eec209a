"""The public keys of an issuer: given, or fetched and kept.

A set is fetched when it is first needed and again when it is old; an unknown key id fetches it too, since issuers
change keys, but not more often than every half minute, however many tokens name such ids. All who wait share one fetch.
While the issuer does not answer, the keys that are known go on to count for a day.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import Any

import msgspec

from millstream._http.client.fetch import FetchedDocument, OutboundError
from millstream.auth._jose import PublicKey, read_keys
from millstream.auth._method import Unavailable
from millstream.auth._single_flight import SingleFlight

logger = logging.getLogger("millstream")

Get = Callable[[str], Awaitable[FetchedDocument]]
"""Fetches a URL."""

_OLD = 600.0
_TOO_OLD = 86_400.0
_MAX_TRIED = 8
"""Keys with which one token is tried: each takes a signature's time, and clients bring sets of their own."""
_PAUSE = 30.0
"""Seconds between two fetches, whatever the reason."""

_NO_KEYS = "Nobody can sign in with an issuer's tokens, because its keys can't be fetched. %s"

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class GivenKeys:
    """Keys that do not change."""

    epoch = 0

    def __init__(self, keys: list[PublicKey]) -> None:
        self._keys = keys

    async def find(self, kid: str | None, algorithm: str) -> list[PublicKey]:
        """The keys that may have signed."""
        return select_keys(self._keys, kid, algorithm)

    async def prefetch(self) -> None:
        """Nothing to do."""


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
        """`url` finds out where the keys are; after `retry`, it asks again even if it has done so just now."""
        # Configuration
        self._url = url
        self._get = get
        self._retry = retry
        self._clock = clock
        # Process
        self._keys: list[PublicKey] = []
        self._raw: Mapping[str, Any] = {}
        self._fetched = float("-inf")
        self._tried = float("-inf")
        self._flight = SingleFlight[None]()
        self.epoch = 0
        """How often the keys have changed."""

    async def prefetch(self) -> None:
        """Have the keys before a token comes. An issuer that starts after this server is asked by the first token."""
        try:
            await self.find("", "")
        except Unavailable:
            self._tried = self._fetched
            self._retry()

    async def find(self, kid: str | None, algorithm: str) -> list[PublicKey]:
        """The keys that may have signed.

        Raises:
            Unavailable: they cannot be had.
        """
        now = self._clock()
        found = select_keys(self._keys, kid, algorithm)
        if (not found or now - self._fetched > _OLD) and (self._flight.runs("keys") or now - self._tried >= _PAUSE):
            self._tried = now
            await self._flight.run("keys", self._load)
            found = select_keys(self._keys, kid, algorithm)
        if self._clock() - self._fetched > _TOO_OLD:
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
        except (OutboundError, msgspec.DecodeError, ValueError, RecursionError) as exc:
            logger.warning(_NO_KEYS, f"{url}: {exc}")
            return
        self._fetched = self._clock()
        if raw != self._raw:
            self._raw, self._keys = raw, keys
            self.epoch += 1


def select_keys(keys: list[PublicKey], kid: str | None, algorithm: str) -> list[PublicKey]:
    """The keys of an id, or any if the token names none, that may be used with an algorithm: as many as are tried."""
    return [each for each in keys if (kid is None or each.kid == kid) and each.fits(algorithm)][:_MAX_TRIED]
