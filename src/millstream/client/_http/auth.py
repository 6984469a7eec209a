"""Where credentials come from, as the HTTP engine sees it."""

from collections.abc import Mapping
from typing import Protocol

from millstream.client._http.url import Url


class Auth(Protocol):
    """Where credentials come from, if they aren't just headers."""

    async def headers(self, url: Url, method: str, target: str) -> Mapping[str, str]:
        """What to send with the next request to a server, with a method of HTTP, for a path and query of it."""
        ...

    def heard(self, url: Url, nonce: str, challenge: str) -> bool:
        """A reply has named a nonce for proofs (`DPoP-Nonce`). True if the request was refused for nothing else: it
        can be sent again.
        """
        ...

    async def challenged(self, url: Url, status: int, challenge: str) -> bool:
        """The server has refused a request: get better credentials. False when there are none.

        Args:
            url: what was asked for.
            status: 401 or 403.
            challenge: the `WWW-Authenticate` header.
        """
        ...
