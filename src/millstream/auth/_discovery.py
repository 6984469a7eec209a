"""Discovery of authorization server metadata: RFC 8414, or OpenID Connect Discovery.

Requests to issuers that the operator configured. They may be on a private network.
"""

from collections.abc import Callable
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from millstream._http.client.fetch import FetchedDocument, OutboundError, check_url, fetch
from millstream._http.client.pool import allow_any
from millstream._protocol.jsonrpc import MALFORMED, decoder
from millstream.auth._jose import FetchedKeys
from millstream.auth._method import SingleFlight, Unavailable

_MAX_AGE = 3600.0
_RETRY_SECONDS = 10.0

_decode = decoder(dict[str, Any])


def places(issuer: str) -> list[str]:
    """Return the possible URLs of an issuer's metadata, most likely first (RFC 8414 §3, §5; OpenID Connect Discovery
    §4).
    """
    parts = urlsplit(issuer)
    origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    found = [
        f"{origin}{path}/.well-known/openid-configuration",
        f"{origin}/.well-known/oauth-authorization-server{path}",
        f"{origin}/.well-known/openid-configuration{path}",
    ]
    return list(dict.fromkeys(found))


class Discovery:
    """The metadata of one issuer, fetched on first use and cached."""

    def __init__(self, issuer: str, *, clock: Callable[[], float] = monotonic) -> None:
        # Configuration
        self.issuer = issuer
        self._clock = clock
        # State
        self._flight = SingleFlight[None]()
        self._metadata: dict[str, Any] = {}
        self._last_fetch = float("-inf")
        self._last_attempt = float("-inf")
        self._why = ""

    async def metadata(self) -> dict[str, Any]:
        """Return the issuer's metadata.

        Raises:
            Unavailable: The issuer doesn't respond, or the metadata is for another issuer.
        """
        now = self._clock()
        is_old = now - self._last_fetch > _MAX_AGE
        if is_old and (self._flight.runs("metadata") or now - self._last_attempt >= _RETRY_SECONDS):
            self._last_attempt = now
            await self._flight.run("metadata", self._load)
        if not self._metadata:
            raise Unavailable("The authorization server isn't responding. Try again later.", self._why)
        return self._metadata

    def retry(self) -> None:
        """Allow an immediate retry if the last attempt failed."""
        self._last_attempt = self._last_fetch

    async def _load(self) -> None:
        said: list[str] = []
        for url in places(self.issuer):
            try:
                found = _decode((await ask_issuer(url)).body)
            except OutboundError as exc:
                said.append(f"{url}: {str(exc).rstrip('.')}")
                continue
            except MALFORMED:
                said.append(f"{url}: not issuer metadata")
                continue
            # RFC 8414 §3.3: otherwise it's the metadata of another server.
            if found.get("issuer") == self.issuer:
                self._metadata, self._last_fetch = found, self._clock()
                return
            named = str(found.get("issuer"))[:200]
            said.insert(0, f"{url}: the issuer is {named!r}. Configure that exact URL")
        self._why = (
            f"{said[0]}. Check the issuer's URL, {self.issuer}, and that this machine can reach it. The next sign-in "
            "retries."
        )

    async def keys_url(self) -> str:
        """Return the URL of the issuer's keys.

        Raises:
            Unavailable: The metadata can't be fetched, or contains no valid URL.
        """
        url = (await self.metadata()).get("jwks_uri")
        if not isinstance(url, str):
            text = "The authorization server doesn't publish its keys."
            raise Unavailable(
                text, f"The metadata of {self.issuer} has no jwks_uri. Check that the URL is an OpenID Connect issuer."
            )
        try:
            check_url(url)
        except OutboundError as exc:
            raise Unavailable(str(exc)) from exc
        return url


def issuer_keys(issuer: str) -> FetchedKeys:
    """Return the keys that an issuer's metadata names."""
    discovery = Discovery(issuer)
    return FetchedKeys(discovery.keys_url, ask_issuer, retry=discovery.retry)


_MAX_BYTES = 512 * 1024
"""Maximum size of a document; a key set with certificates is the largest."""


async def ask_issuer(url: str) -> FetchedDocument:
    """Fetch a document from an issuer on any network."""
    return await fetch(url, is_allowed=allow_any, max_bytes=_MAX_BYTES)
