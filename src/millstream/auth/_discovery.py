"""What an authorization server says about itself: RFC 8414 metadata, or OpenID Connect Discovery."""

from collections.abc import Callable
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import msgspec

from millstream._http.client.fetch import OutboundError, check_url
from millstream.auth._key_sets import Get
from millstream.auth._method import Unavailable
from millstream.auth._single_flight import SingleFlight

_KEPT = 3600.0
_PAUSE = 10.0

_decode = msgspec.json.Decoder(dict[str, Any]).decode


def places(issuer: str) -> list[str]:
    """Where the metadata of an issuer may be, the likeliest first (RFC 8414 §3, §5; OpenID Connect Discovery §4)."""
    parts = urlsplit(issuer)
    origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    found = [
        f"{origin}{path}/.well-known/openid-configuration",
        f"{origin}/.well-known/oauth-authorization-server{path}",
        f"{origin}/.well-known/openid-configuration{path}",
    ]
    return list(dict.fromkeys(found))


class Discovery:
    """The metadata of one issuer, fetched when it is first needed and kept."""

    def __init__(self, issuer: str, get: Get, *, clock: Callable[[], float] = monotonic) -> None:
        # Configuration
        self.issuer = issuer
        self._get = get
        self._clock = clock
        # Process
        self._flight = SingleFlight[None]()
        self._metadata: dict[str, Any] = {}
        self._fetched = float("-inf")
        self._tried = float("-inf")
        self._why = ""

    async def metadata(self) -> dict[str, Any]:
        """What the issuer says.

        Raises:
            Unavailable: it does not answer, or answers for somebody else.
        """
        now = self._clock()
        if now - self._fetched > _KEPT and (self._flight.runs("metadata") or now - self._tried >= _PAUSE):
            self._tried = now
            await self._flight.run("metadata", self._load)
        if not self._metadata:
            raise Unavailable("The authorization server doesn't answer. Try again later.", self._why)
        return self._metadata

    def retry(self) -> None:
        """Forget that it was asked just now, if that was in vain: the next who needs it asks again."""
        self._tried = self._fetched

    async def _load(self) -> None:
        said: list[str] = []
        for url in places(self.issuer):
            try:
                found = _decode((await self._get(url)).body)
            except OutboundError as exc:
                said.append(f"{url}: {str(exc).rstrip('.')}")
                continue
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                said.append(f"{url}: that isn't the metadata of an issuer")
                continue
            # RFC 8414 §3.3: another name would be another server's metadata.
            if found.get("issuer") == self.issuer:
                self._metadata, self._fetched = found, self._clock()
                return
            named = str(found.get("issuer"))[:200]
            said.insert(0, f"{url}: that is the issuer {named!r}. Name it by exactly that URL")
        self._why = (
            f"{said[0]}. Check the issuer {self.issuer}, and whether this machine can reach it. It's asked again when "
            "somebody signs in."
        )

    async def keys_url(self) -> str:
        """Where its keys are.

        Raises:
            Unavailable: it does not say.
        """
        url = (await self.metadata()).get("jwks_uri")
        if not isinstance(url, str):
            text = "The authorization server doesn't say where its keys are."
            raise Unavailable(text, f"The metadata of {self.issuer} has no jwks_uri. Check whether it is an issuer.")
        try:
            check_url(url)
        except OutboundError as exc:
            raise Unavailable(str(exc)) from exc
        return url
