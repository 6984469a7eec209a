"""The client's identity at each authorization server: configured, from a metadata document, or registered."""

import msgspec

from millstream._http.client.url import Url
from millstream.client._errors import AccessDenied
from millstream.client._oauth.discovery import IssuerMetadata, Outbound
from millstream.client._oauth.endpoints import register
from millstream.client._oauth.store import PRIVATE_KEY_JWT, Registration, TokenStore


class ClientRegistrations:
    """The identities of one client, one per issuer."""

    def __init__(self, store: TokenStore, configured: Registration, metadata_url: str, name: str) -> None:
        # Configuration
        self.configured: Registration = configured
        """The configured identity; its id is empty if none is configured."""
        self._store = store
        self._metadata_url = metadata_url
        self._name = name
        # State
        self.bound_issuer: str = ""
        """The only issuer that may receive our credentials, or empty before the first one."""

    def sign(self, key: str, key_id: str) -> None:
        """Authenticate with signatures by a private key.

        Raises:
            ValueError: The key is invalid, there's no client id, or a client secret is set as well.
        """
        if self.configured.client_secret or not (self.configured.client_id or self._metadata_url):
            raise ValueError("Signing requires a client_id or a client_metadata_url, and no client_secret.")
        from millstream.client._oauth.signing import check_key  # noqa: PLC0415  needed only for signatures

        changes = {"token_endpoint_auth_method": PRIVATE_KEY_JWT, "private_key": check_key(key), "key_id": key_id}
        self.configured = msgspec.structs.replace(self.configured, **changes)

    def bind(self, url: Url, issuer: str) -> None:
        """Bind our credentials to an issuer, so that a server can't have them sent to another one.

        Raises:
            AccessDenied: They're bound to another issuer.
        """
        if self.bound_issuer and issuer != self.bound_issuer:
            raise AccessDenied(
                f"{url} requires tokens of {issuer}, but these credentials are for {self.bound_issuer}.", 401
            )
        if self.configured.client_id:
            self.bound_issuer = issuer

    def known_at(self, issuer: IssuerMetadata) -> Registration:
        """Return our identity at an issuer that has issued tokens to us."""
        return self._static_registration(issuer) or self._store.load().registrations.get(issuer.issuer, self.configured)

    async def register_at(
        self, issuer: IssuerMetadata, redirect: str, outbound: Outbound, *, reuse: bool
    ) -> Registration:
        """Return our identity at an issuer, registering if necessary. Reuse an earlier registration if `reuse` is set.

        Raises:
            AccessDenied: The issuer refuses to register us.
        """
        ours = self._static_registration(issuer)
        if ours is not None:
            return ours
        credentials = self._store.load()
        known = credentials.registrations.get(issuer.issuer)
        if known is not None and reuse:
            return known
        found = await register(issuer, self._name, redirect, outbound)
        credentials.registrations[issuer.issuer] = found
        self._store.save(credentials)
        return found

    def forget(self, issuer: str) -> None:
        """Drop our registration at an issuer that issues no token."""
        credentials = self._store.load()
        if credentials.registrations.pop(issuer, None) is not None:
            self._store.save(credentials)

    def _static_registration(self, issuer: IssuerMetadata) -> Registration | None:
        """Return the identity that needs no dynamic registration, or None."""
        if self.configured.client_id:
            return self.configured
        if self._metadata_url and issuer.client_id_metadata_document_supported:
            method = self.configured.token_endpoint_auth_method or "none"
            return msgspec.structs.replace(
                self.configured, client_id=self._metadata_url, token_endpoint_auth_method=method, client_secret=""
            )
        return None
