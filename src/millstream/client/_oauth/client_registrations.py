"""Who a client is at an authorization server: by what it was given, by a page about itself, or since it registered."""

import msgspec

from millstream._http.client.url import Url
from millstream.client._errors import AccessDenied
from millstream.client._oauth.discovery import Issuer
from millstream.client._oauth.endpoints import register
from millstream.client._oauth.issuer_http import Outbound
from millstream.client._oauth.store import SIGNED, Registration, Store


class ClientRegistrations:
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

    def sign(self, key: str, key_id: str) -> None:
        """Show who we are by signatures of a key.

        Raises:
            ValueError: it isn't a private key, or nobody could know who signs, or there's a secret as well.
        """
        if self.given.client_secret or not (self.given.client_id or self._metadata_url):
            raise ValueError("Signing takes a client_id or a client_metadata_url, and no client_secret.")
        from millstream.client._oauth.signing import check_key  # noqa: PLC0415  needed only for signatures

        changes = {"token_endpoint_auth_method": SIGNED, "private_key": check_key(key), "key_id": key_id}
        self.given = msgspec.structs.replace(self.given, **changes)

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

    async def register_at(self, issuer: Issuer, redirect: str, outbound: Outbound, *, lasting: bool) -> Registration:
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
        found = await register(issuer, self._name, redirect, outbound)
        kept.registrations[issuer.issuer] = found
        self._store.save(kept)
        return found

    def _unregistered(self, issuer: Issuer) -> Registration | None:
        """Who we are without being registered by ourselves."""
        if self.given.client_id:
            return self.given
        if self._metadata_url and issuer.client_id_metadata_document_supported:
            method = self.given.token_endpoint_auth_method or "none"
            return msgspec.structs.replace(
                self.given, client_id=self._metadata_url, token_endpoint_auth_method=method, client_secret=""
            )
        return None
