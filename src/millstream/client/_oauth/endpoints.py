"""Requests to authorization servers: registration, tokens, and revocation (RFC 7591, 6749, and 7009).

Tokens can be bound to a key of the client, see `Proofs`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from millstream._http.client.url import Url
from millstream._oauth import basic_credentials
from millstream.client._errors import AccessDenied
from millstream.client._oauth import ES256, PRIVATE_KEY_JWT, Registration, Tokens, TokenStore
from millstream.client._oauth.discovery import (
    IssuerMetadata,
    Outbound,
    ProtectedResource,
    fetch,
    post_form,
    read_challenges,
    read_object,
)

if TYPE_CHECKING:
    from millstream.client._oauth.signing import ProofKey

SCHEME = "DPoP"
_MAX_NONCE = 1024


class Proofs:
    """The keys of one client, and the nonces that servers currently require.

    Sender-constrained tokens (DPoP, RFC 9449) come with a proof for every request. A server announces DPoP in its
    challenge or its metadata. The authorization server binds the tokens to our key, so a stolen token is useless
    without the key. Servers may require a nonce in the proofs.
    """

    def __init__(self) -> None:
        self._keys: dict[str, ProofKey] = {}
        """Keys by PEM."""
        self._nonces: dict[str, str] = {}
        """Nonces by origin."""

    def new(self) -> str:
        """Create a key, and return its PEM."""
        from millstream.client._oauth.signing import ProofKey  # noqa: PLC0415  needed only for proofs

        key = ProofKey()
        self._keys[key.pem] = key
        return key.pem

    def headers(self, pem: str, method: str, url: str, token: str = "") -> Mapping[str, str]:
        """Return the proof header for a request. It's empty if there's no key, or if the key is invalid."""
        if not pem:
            return {}
        from millstream.client._oauth.signing import ProofKey  # noqa: PLC0415  see above

        key = self._keys.get(pem)
        try:
            key = self._keys[pem] = key or ProofKey(pem)
        except ValueError:
            return {}
        parts = urlsplit(url)
        nonce = self._nonces.get(f"{parts.scheme}://{parts.netloc}", "")
        return {SCHEME: key.proof(method, url, token=token, nonce=nonce)}

    def authorize(self, tokens: Tokens, method: str, url: str) -> Mapping[str, str]:
        """Return the headers that send a token, with a proof if it's bound to a key."""
        proof = self.headers(tokens.proof_key, method, url, tokens.access_token)
        return {"Authorization": f"{SCHEME if proof else 'Bearer'} {tokens.access_token}", **proof}

    def learn(self, url: Url | str, nonce: str) -> bool:
        """Store the nonce that a server requires from now on. Return whether the nonce is valid."""
        parts = urlsplit(str(url))
        if not 0 < len(nonce) <= _MAX_NONCE or not nonce.isprintable():
            return False
        self._nonces[f"{parts.scheme}://{parts.netloc}"] = nonce
        return True


def key_for(
    issuer: IssuerMetadata,
    resource: ProtectedResource | None,
    challenge: str,
    before: Tokens | None,
    proofs: Proofs,
    *,
    wanted: bool,
) -> str:
    """Return the private key in PEM to bind a token to, or an empty string for a bearer token.

    A token is bound if the issuer supports DPoP, and the server accepts it or we require it. Reuse the previous key if
    there is one.
    """
    accepted = wanted or (
        resource is not None
        and (resource.dpop_bound_access_tokens_required or ES256 in resource.dpop_signing_alg_values_supported)
    )
    if ES256 not in issuer.dpop_signing_alg_values_supported or not (accepted or challenged_for_proofs(challenge)):
        return ""
    known = before.proof_key if before is not None and before.issuer == issuer.issuer else ""
    return known or proofs.new()


def challenged_for_proofs(challenge: str) -> bool:
    """Return whether a challenge offers DPoP, alone or among other schemes."""
    return SCHEME.lower() in read_challenges(challenge).schemes


def wants_nonce(challenge: str) -> bool:
    """Return whether a request was refused only because its proof had no nonce or an old one (RFC 9449 §9)."""
    found = read_challenges(challenge)
    return SCHEME.lower() in found.schemes and found.parameters.get("error") == "use_dpop_nonce"


_MAX_DETAIL = 200
_REMEDY = "Pass OAuth a client_id that the issuer knows."


class TokenResponse(Struct):
    """The response of a token endpoint."""

    access_token: str = ""
    refresh_token: str = ""
    scope: str = ""
    expires_in: float = 0
    token_type: str = ""
    issued_token_type: str = ""
    error: str = ""
    error_description: str = ""

    def check(self, issuer: str, wanted: str = "token") -> None:
        """Check that there's a token of a type that we support (RFC 6749 §7.1), and that it fits in a header.

        Raises:
            AccessDenied: There's no such token.
        """
        token = self.access_token
        if self.error or not token:
            why = brief(self.error_description or self.error or "no reason given")
            raise AccessDenied(f"{issuer} issued no {wanted}: {why}.")
        if self.token_type.lower() not in ("", "bearer", "dpop") or not (token.isascii() and token.isprintable()):
            kind = brief(self.token_type) or "Bearer"
            raise AccessDenied(f"{issuer} issued a token of type {kind}, which this client can't send.")


def brief(text: str) -> str:
    """Shorten an issuer's text for use in a sentence."""
    return " ".join(text.split())[:_MAX_DETAIL].rstrip(".")


def method_of(issuer: IssuerMetadata, who: Registration) -> str:
    """Return the client authentication method for the token endpoint."""
    if who.token_endpoint_auth_method:
        return who.token_endpoint_auth_method
    offered = issuer.token_endpoint_auth_methods_supported
    usable = ["client_secret_basic", "client_secret_post"] if who.client_secret else ["none"]
    if not who.client_id:  # about to register
        usable = ["none", "client_secret_basic", "client_secret_post"]
    return next((method for method in usable if method in offered), usable[0])


async def register(issuer: IssuerMetadata, name: str, redirect: str, outbound: Outbound) -> Registration:
    """Register as a client of an issuer.

    Raises:
        AccessDenied: The issuer refused.
    """
    if not issuer.registration_endpoint:
        raise AccessDenied(f"{issuer.issuer} doesn't support client registration.", remedy=_REMEDY)
    about = {
        "client_name": name,
        "redirect_uris": [redirect],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "application_type": "web" if redirect.startswith("https:") else "native",
        "token_endpoint_auth_method": method_of(issuer, Registration()),
    }
    kind = {"Content-Type": "application/json"}
    reply = await fetch(
        "POST", issuer.registration_endpoint, headers=kind, body=msgspec.json.encode(about), outbound=outbound
    )
    try:
        found = read_object(reply.body, Registration)
    except (ValueError, RecursionError):
        found = Registration()
    if reply.status not in (200, 201) or not found.client_id:
        if reply.status == 404:
            raise AccessDenied(
                f"There's no authorization server at {issuer.issuer}. The server may require an API key instead."
            )
        raise AccessDenied(f"{issuer.issuer} refused to register this client (status {reply.status}).", remedy=_REMEDY)
    # The response doesn't contain our signing key.
    return Registration(found.client_id, found.client_secret, found.token_endpoint_auth_method)


async def ask_token(
    issuer: IssuerMetadata,
    who: Registration,
    form: Mapping[str, str],
    outbound: Outbound,
    proofs: Proofs | None = None,
    key: str = "",
) -> TokenResponse:
    """Send a request to the token endpoint, with a proof of `key`, a private key in PEM, if there is one."""
    proofs = proofs or Proofs()
    where, response = issuer.token_endpoint, TokenResponse()
    for _ in range(2):
        fields, headers = authenticate(issuer, who, form)
        reply = await post_form(where, fields, {**headers, **proofs.headers(key, "POST", where)}, outbound)
        try:
            response = read_object(reply.body, TokenResponse)
        except (ValueError, RecursionError):
            return TokenResponse(error=f"status {reply.status}, with an unreadable response")
        new = proofs.learn(where, reply.header(b"dpop-nonce"))
        if response.error != "use_dpop_nonce" or not new:
            break
    return response


async def revoke(issuer: IssuerMetadata, who: Registration, tokens: Tokens, outbound: Outbound) -> bool:
    """Revoke tokens, and return whether all of them are revoked."""
    if not issuer.revocation_endpoint:
        return False
    revoked = True
    for kind, token in {"refresh_token": tokens.refresh_token, "access_token": tokens.access_token}.items():
        if token:
            fields, headers = authenticate(issuer, who, {"token": token, "token_type_hint": kind})
            reply = await post_form(issuer.revocation_endpoint, fields, headers, outbound)
            revoked = reply.status == 200 and revoked
    return revoked


def authenticate(
    issuer: IssuerMetadata, who: Registration, form: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the form fields and headers that authenticate the client for one request.

    Raises:
        AccessDenied: The issuer doesn't accept signatures by our key.
    """
    method = method_of(issuer, who)
    if method == "client_secret_basic":
        return {**form}, {"Authorization": basic_credentials(who.client_id, who.client_secret)}
    fields = {**form, **({"client_id": who.client_id} if who.client_id else {})}
    if method == "client_secret_post":
        fields["client_secret"] = who.client_secret
    if method == PRIVATE_KEY_JWT and who.private_key:
        from millstream.client._oauth.signing import assertion  # noqa: PLC0415  needed only for signatures

        fields |= assertion(issuer, who)
    return fields, {}


class ClientRegistrations(Struct):
    """The identities of one client, one per issuer.

    An identity is configured, from a metadata document, or registered.
    """

    store: TokenStore
    configured: Registration
    """The configured identity; its id is empty if none is configured."""
    metadata_url: str
    name: str
    bound_issuer: str = ""
    """The only issuer that may receive our credentials, or empty before the first one."""

    def sign(self, key: str, key_id: str) -> None:
        """Authenticate with signatures by a private key.

        Raises:
            ValueError: The key is invalid, there's no client id, or a client secret is set as well.
        """
        if self.configured.client_secret or not (self.configured.client_id or self.metadata_url):
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
                f"{url} requires tokens from {issuer}, but these credentials are for {self.bound_issuer}."
            )
        if self.configured.client_id:
            self.bound_issuer = issuer

    def known_at(self, issuer: IssuerMetadata) -> Registration:
        """Return our identity at an issuer that has issued tokens to us."""
        return self._static_registration(issuer) or self.store.load().registrations.get(issuer.issuer, self.configured)

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
        credentials = self.store.load()
        known = credentials.registrations.get(issuer.issuer)
        if known is not None and reuse:
            return known
        found = await register(issuer, self.name, redirect, outbound)
        credentials.registrations[issuer.issuer] = found
        self.store.save(credentials)
        return found

    def forget(self, issuer: str) -> None:
        """Drop our registration at an issuer that issues no token."""
        credentials = self.store.load()
        if credentials.registrations.pop(issuer, None) is not None:
            self.store.save(credentials)

    def _static_registration(self, issuer: IssuerMetadata) -> Registration | None:
        """Return the identity that needs no dynamic registration, or None."""
        if self.configured.client_id:
            return self.configured
        if self.metadata_url and issuer.client_id_metadata_document_supported:
            method = self.configured.token_endpoint_auth_method or "none"
            return msgspec.structs.replace(
                self.configured, client_id=self.metadata_url, token_endpoint_auth_method=method, client_secret=""
            )
        return None
