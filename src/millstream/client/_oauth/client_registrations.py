"""The client's identity at each authorization server: configured, from a metadata document, or registered."""

import msgspec

from millstream._http.client.url import Url
from millstream.client._errors import AccessDenied
from millstream.client._oauth.discovery import IssuerMetadata
from millstream.client._oauth.endpoints import register
from millstream.client._oauth.issuer_http import Outbound
from millstream.client._oauth.store import SIGNED, Registration, TokenStore


class ClientRegistrations:
    """The identities of one client, one per issuer."""

    def __init__(self, store: TokenStore, given: Registration, metadata_url: str, name: str) -> None:
        # Configuration
        self.given: Registration = given
        """The configured identity; its id is empty if none is configured."""
        self._store = store
        self._metadata_url = metadata_url
        self._name = name
        # State
        self.only: str = ""
        """The only issuer that may receive our credentials, once it's known."""

    def sign(self, key: str, key_id: str) -> None:
        """Authenticate with signatures by a private key.

        Raises:
            ValueError: it isn't a private key, there's no client id, or a client secret is set as well.
        """
        if self.given.client_secret or not (self.given.client_id or self._metadata_url):
            raise ValueError("Signing requires a client_id or a client_metadata_url, and no client_secret.")
        from millstream.client._oauth.signing import check_key  # noqa: PLC0415  needed only for signatures

        changes = {"token_endpoint_auth_method": SIGNED, "private_key": check_key(key), "key_id": key_id}
        self.given = msgspec.structs.replace(self.given, **changes)

    def bind(self, url: Url, issuer: str) -> None:
        """Bind our credentials to an issuer, so that a server can't have them sent to another one.

        Raises:
            AccessDenied: they're bound to another issuer.
        """
        if self.only and issuer != self.only:
            raise AccessDenied(f"{url} requires tokens of {issuer}, but these credentials are for {self.only}.", 401)
        if self.given.client_id:
            self.only = issuer

    def known_at(self, issuer: IssuerMetadata) -> Registration:
        """Return our identity at an issuer that has issued tokens to us."""
        return self._static_registration(issuer) or self._store.load().registrations.get(issuer.issuer, self.given)

    async def register_at(
        self, issuer: IssuerMetadata, redirect: str, outbound: Outbound, *, lasting: bool
    ) -> Registration:
        """Return our identity at an issuer, registering if necessary. An earlier registration is reused if `lasting`.

        Raises:
            AccessDenied: the issuer doesn't register us.
        """
        ours = self._static_registration(issuer)
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

    def _static_registration(self, issuer: IssuerMetadata) -> Registration | None:
        """Return the identity that needs no dynamic registration, or None."""
        if self.given.client_id:
            return self.given
        if self._metadata_url and issuer.client_id_metadata_document_supported:
            method = self.given.token_endpoint_auth_method or "none"
            return msgspec.structs.replace(
                self.given, client_id=self._metadata_url, token_endpoint_auth_method=method, client_secret=""
            )
        return None
