"""Who a client is at an authorization server: by what it was given, by a page about itself, or since it registered."""

import ssl

from millstream.client._errors import AccessDenied
from millstream.client._http.url import Url
from millstream.client._oauth.discovery import Issuer
from millstream.client._oauth.endpoints import register
from millstream.client._oauth.store import Registration, Store


class Ourselves:
    """The identities of one client, one for each issuer."""

    def __init__(self, store: Store, given: Registration, metadata_url: str, name: str) -> None:
        # Configuration
        self.given: Registration = given
        """Who we are by configuration; without an id where nothing was configured."""
        self._store = store
        self._metadata_url = metadata_url
        self._name = name
        # State
        self.only: str = ""
        """The only issuer that our credentials go to, once there is one."""

    def bind(self, url: Url, issuer: str) -> None:
        """Credentials belong to an issuer: a server mustn't have them sent to another one.

        Raises:
            AccessDenied: this is another one.
        """
        if self.only and issuer != self.only:
            raise AccessDenied(f"{url} wants tokens of {issuer}, but these credentials are for {self.only}.", 401)
        if self.given.client_id:
            self.only = issuer

    def known_at(self, issuer: Issuer) -> Registration:
        """Who we are at an issuer that has given us tokens."""
        return self._unregistered(issuer) or self._store.load().registrations.get(issuer.issuer, self.given)

    async def register_at(
        self, issuer: Issuer, redirect: str, tls: ssl.SSLContext | None, *, lasting: bool
    ) -> Registration:
        """Who we are at an issuer, which registers us if need be; an earlier registration counts if `redirect` lasts.

        Raises:
            AccessDenied: it doesn't register us.
        """
        ours = self._unregistered(issuer)
        if ours is not None:
            return ours
        kept = self._store.load()
        known = kept.registrations.get(issuer.issuer)
        if known is not None and lasting:
            return known
        found = await register(issuer, self._name, redirect, tls)
        kept.registrations[issuer.issuer] = found
        self._store.save(kept)
        return found

    def _unregistered(self, issuer: Issuer) -> Registration | None:
        """Who we are without being registered by ourselves."""
        if self.given.client_id:
            return self.given
        if self._metadata_url and issuer.client_id_metadata_document_supported:
            return Registration(self._metadata_url, "", "none")
        return None
