"""`OAuth`: a login that obtains and renews its own tokens. Pass it to a client as ``Options(auth=OAuth())``.

By default, it stores tokens in the system's key ring if one is available, or else in a file. A login opens a browser
and redirects to a local port (RFC 8252) or another URL that the program handles. Assertions of a third party need no
login page (RFC 7523):

- Enterprise-managed authorization: an organization decides which servers its members can use. Its identity provider,
  where the user has already signed in, exchanges the user's ID token for an assertion for one authorization server
  (ID-JAG, RFC 8693), and that server exchanges the assertion for a token.
  https://github.com/modelcontextprotocol/ext-auth, specification/draft/enterprise-managed-authorization.mdx.
- Workload identity federation: the platform that runs a program identifies it, and the authorization server trusts the
  platform. https://github.com/modelcontextprotocol/modelcontextprotocol/issues/1933.
"""

import asyncio
import inspect
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct, structs

from millstream._confidential import Confidential
from millstream._http.client.pool import Dial
from millstream._http.client.url import Url
from millstream._oauth import EXCHANGE, JWT_BEARER, authorization_url, code_grant, non_empty, refresh_grant
from millstream._suggestions import suggest_keywords
from millstream.client._endpoint import brief
from millstream.client._errors import AccessDenied, ClientError
from millstream.client._oauth import (
    ES256,
    FileTokenStore,
    LockableTokenStore,
    MemoryTokenStore,
    Registration,
    Tokens,
    TokenStore,
)
from millstream.client._oauth.endpoints import (
    IssuerMetadata,
    Outbound,
    Proofs,
    ProtectedResource,
    TokenResponse,
    ask_token,
    challenged_for_proofs,
    default_metadata,
    find_at_origin,
    find_issuer,
    find_resource,
    has_no_metadata,
    parse_secure,
    read_challenges,
    refuse_local,
    register,
    revoke,
    wants_nonce,
    with_private_key,
)
from millstream.client._oauth.loopback import Loopback, parse_redirect


class PendingAuthorization(Confidential, Struct, frozen=True):
    """One authorization request (RFC 6749 §4.1.1, RFC 7636), kept until the user returns.

    ``request = await oauth.ask(url, 401, challenge)`` creates it. Send the browser to `url`, and pass the answer to
    `OAuth.exchange_code`.
    """

    issuer: IssuerMetadata
    who: Registration
    target: str
    """The resource that the token is for (RFC 8707), or empty if requests don't include it."""
    scope: str
    redirect_uri: str
    state: str
    verifier: str

    @property
    def url(self) -> str:
        """The URL to open in the user's browser."""
        prompt = "consent" if "offline_access" in self.scope.split() else ""
        more = {"resource": self.target, "scope": self.scope, "prompt": prompt}
        return authorization_url(
            self.issuer.authorization_endpoint, self.who.client_id, self.redirect_uri, self.state, self.verifier, more
        )

    def form(self, answer: Mapping[str, str]) -> dict[str, str]:
        """Return the token request for a redirect's parameters.

        Args:
            answer: The parameters from `parse_redirect`.

        Raises:
            AccessDenied: The parameters don't answer this request.
        """
        form = code_grant(code_of(answer, self.state, self.issuer), self.redirect_uri, self.verifier)
        return form | non_empty(resource=self.target)


def code_of(answer: Mapping[str, str], state: str, issuer: IssuerMetadata) -> str:
    """Return the authorization code after checking `state` and `iss` (RFC 9207).

    Raises:
        AccessDenied: A check failed, or the login did.
    """
    named = answer.get("iss")
    if named is not None and named != issuer.issuer:
        raise AccessDenied(f"The sign-in response is from {brief(named)}, but the request went to {issuer.issuer}.")
    if named is None and issuer.authorization_response_iss_parameter_supported:
        raise AccessDenied(f"The sign-in response lacks the iss parameter, although {issuer.issuer} announces it.")
    if not secrets.compare_digest(answer.get("state", "").encode(), state.encode()):
        raise AccessDenied("The sign-in response belongs to another sign-in.")
    if "code" not in answer:
        reason = answer.get("error_description") or answer.get("error") or "no reason given"
        raise AccessDenied(f"The sign-in failed: {brief(reason)}.")
    return answer["code"]


Visit = Callable[[str], Awaitable[str]]
"""Opens a URL in the user's browser and returns the URL that the browser was redirected to."""

_GRANT = "urn:ietf:params:oauth:token-type:id-jag"
_ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"  # noqa: S105  a token type, not a token

TokenSource = str | Callable[[], str | Awaitable[str]]
"""A token that identifies its subject, or a function that returns one that's still valid."""


class GrantSource(Protocol):
    """A source of grants, for ``OAuth(…).with_identity_provider(source)``."""

    async def grant(self, issuer: IssuerMetadata, resource: str, scope: str, outbound: Outbound) -> Mapping[str, str]:
        """Return the token request for an authorization server and a resource.

        Args:
            issuer: Metadata of the authorization server.
            resource: Identifier of the resource, usually the server's URL.
            scope: Scopes to request, separated by spaces.
            outbound: Sends requests, with the client's limits.

        Raises:
            AccessDenied: There's no grant for this server.
        """
        ...


@suggest_keywords
class IdentityProvider:
    """Your organization's identity provider, for ``OAuth(…).with_identity_provider(IdentityProvider(…))``.

    Args:
        issuer: Exact issuer identifier of the identity provider.
        id_token: The ID token from the user's sign-in, or a function that returns one, which can be async. It's sent
            only to this provider.
        client_id: Your client id there.
        client_secret: The secret for `client_id`. Public clients don't have one.
    """

    def __init__(self, issuer: str, *, id_token: TokenSource, client_id: str, client_secret: str = "") -> None:
        self._issuer = issuer
        self._id_token = id_token
        self._who = Registration(client_id, client_secret)

    async def grant(self, issuer: IssuerMetadata, resource: str, scope: str, outbound: Outbound) -> Mapping[str, str]:
        """Exchange the ID token for a grant (`GrantSource`).

        Args:
            issuer: Metadata of the authorization server that the grant is for.
            resource: Identifier of the MCP server (RFC 8707).
            scope: Requested scopes, separated by spaces; may be empty.
            outbound: How to reach the identity provider.
        """
        home = await find_issuer(self._issuer, outbound)
        if home is None:
            raise AccessDenied(
                f"The metadata of {self._issuer} isn't available. Check the issuer of the identity provider."
            )
        form = {
            "grant_type": EXCHANGE,
            "requested_token_type": _GRANT,
            "audience": issuer.issuer,
            "resource": resource,
            "subject_token": await _text(self._id_token),
            "subject_token_type": _ID_TOKEN,
            **non_empty(scope=scope),
        }
        response = await ask_token(home, self._who, form, outbound)
        if response.error or not response.access_token or response.issued_token_type != _GRANT:
            reason = response.error_description or response.error or "the token has an unexpected type"
            raise AccessDenied(f"{self._issuer} didn't issue a grant for {issuer.issuer}: {brief(reason)}.")
        return _bearer(response.access_token, "", scope)


@suggest_keywords
class WorkloadIdentity:
    """The identity that a platform gives a program, for ``OAuth(…).with_identity_provider(WorkloadIdentity(…))``.

    Args:
        issuer: Exact identifier of the authorization server that the token is for. The token is sent to no other
            server, even if an MCP server specifies one.
        token: The platform's JWT, the file in which the platform stores a valid one, or a function that returns one,
            which can be async.

    Example:
        >>> WorkloadIdentity("https://login.example.com", token=Path("/var/run/secrets/tokens/mcp"))
    """

    def __init__(self, issuer: str, *, token: TokenSource | Path) -> None:
        self._issuer = issuer
        self._token = token

    async def grant(self, issuer: IssuerMetadata, resource: str, scope: str, outbound: Outbound) -> Mapping[str, str]:
        """Return the platform's token as a grant (`GrantSource`).

        Args:
            issuer: Metadata of the authorization server that the grant is for.
            resource: Identifier of the MCP server (RFC 8707).
            scope: Requested scopes, separated by spaces; may be empty.
            outbound: Not used, because the token comes from the platform.
        """
        if issuer.issuer != self._issuer:
            why = f"The server requires tokens from {issuer.issuer}, but this program's identity is for {self._issuer}."
            raise AccessDenied(why)
        if not isinstance(self._token, Path):
            return _bearer(await _text(self._token), resource, scope)
        try:
            return _bearer(self._token.read_text("utf-8").strip(), resource, scope)
        except (OSError, UnicodeDecodeError) as exc:
            raise AccessDenied(f"This program's identity can't be read: {exc}.") from exc


async def _text(source: TokenSource) -> str:
    token = source if isinstance(source, str) else source()
    return await token if inspect.isawaitable(token) else token


def _bearer(assertion: str, resource: str, scope: str) -> dict[str, str]:
    return {"grant_type": JWT_BEARER, "assertion": assertion, **non_empty(resource=resource, scope=scope)}


def default_store() -> TokenStore:
    """Return the key ring, if the extra `keyring` is installed and the system has one, or else the file."""
    try:
        file = FileTokenStore()
    except RuntimeError:  # a user without a home directory, as in some containers
        return MemoryTokenStore()
    try:
        from millstream.client._oauth.keyring_store import KeyringTokenStore, works  # noqa: PLC0415  an optional dependency
    except ImportError:
        return file
    return KeyringTokenStore(file) if works() else file


_CLIENT_ERRORS = frozenset({"invalid_client", "unauthorized_client"})
"""Errors after which the client has to register again."""
_GRANT_ERRORS = _CLIENT_ERRORS | {"invalid_grant"}
"""Errors after which a grant's refresh token can't be used again."""
_RENEW_SECONDS = 30.0
"""Tokens are renewed this many seconds before they expire."""


@suggest_keywords
class OAuth:
    """Obtains tokens when a server asks for them, and renews them: ``Options(auth=OAuth(scope="orders:read"))``.

    Args:
        store: Store for tokens and registrations. By default, the system's key ring, or a file that only you can read.
        client_id: Your client id at the issuer, if you have registered.
        client_secret: The secret for `client_id`.
        client_metadata_url: URL of your client's metadata document, for issuers that read it instead of registering
            you.
        name: Name of the client for registration.
        scope: Scopes to request. By default, those that the server requests.
        client_credentials: Whether to get tokens for the client itself instead of a user (client credentials).
        redirect_handler: Opens a URL for the user and returns the URL of the redirect. By default, a browser and a
            local port.
        redirect_uri: Redirect URI that `redirect_handler` handles.
        tls: Certificates to trust.
    """

    def __init__(
        self,
        *,
        store: TokenStore | None = None,
        client_id: str = "",
        client_secret: str = "",
        client_metadata_url: str = "",
        name: str = "Millstream",
        scope: str = "",
        client_credentials: bool = False,
        redirect_handler: Visit | None = None,
        redirect_uri: str = "http://127.0.0.1:8765/callback",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._store = store or default_store()
        self._configured = Registration(client_id, client_secret)
        """The configured client registration. Its id is empty if there's none."""
        self._metadata_url = client_metadata_url
        self._name = name
        self._bound_issuer = ""
        """The only issuer to send the configured credentials to, or empty before the first one."""
        self._scope = scope
        self._as_itself = client_credentials
        self._visit = redirect_handler
        self._redirect_uri = redirect_uri
        self._outbound = Outbound(tls)
        self._lock = asyncio.Lock()
        self._identity: GrantSource | None = None
        self._proofs = Proofs()
        self._use_dpop = False
        self._sends_resource = True
        self._assumes_pkce = False
        self._sent: dict[str, str] = {}
        """URL of a server -> the last token that was sent there."""
        self.rejected_client_id: str = ""
        """The client id that an issuer rejected last (`invalid_client`, RFC 6749 §5.2), or empty."""

    def for_issuer(self, issuer: str, *, send_resource: bool = True, assume_pkce: bool = False) -> "OAuth":
        """Send the credentials to this issuer only, even if a server specifies another one.

        Without it, a `client_id` and its secret go to the first issuer that the server specifies, and to no other one
        until the program restarts. The options are for issuers that deviate from the specification. They require a
        `client_id`.

        Args:
            issuer: The exact issuer identifier (RFC 8414 §2).
            send_resource: Whether requests include the server's URL as ``resource`` (RFC 8707). Entra ID rejects it if
                the scopes name another one. Without it, a token may also be valid at other servers.
            assume_pkce: Whether to use PKCE with S256 even if the issuer's metadata doesn't list it.

        Raises:
            ValueError: An option is set without an issuer or a `client_id`.

        Example:
            >>> OAuth(client_id="me", client_secret=secret).for_issuer("https://login.example.com")
        """
        if (assume_pkce or not send_resource) and not (issuer and self._configured.client_id):
            raise ValueError("send_resource and assume_pkce require an issuer and a client_id.")
        self._bound_issuer = issuer
        self._sends_resource, self._assumes_pkce = send_resource, assume_pkce
        return self

    def with_private_key(self, key: str | Path, *, key_id: str = "") -> "OAuth":
        """Authenticate with signatures instead of a secret (`private_key_jwt`, RFC 7523 §2.2).

        The key never leaves this machine.

        Args:
            key: Your private key in PEM, or its file: P-256, P-384, P-521, Ed25519, or RSA with at least 2048 bits.
            key_id: Id of the key at the issuer (`kid`), if you registered several.

        Raises:
            ValueError: The key is unsuitable, there's no `client_id`, or a secret is set as well.
            OSError: The file can't be read.

        Example:
            >>> OAuth(client_id="nightly", client_credentials=True).with_private_key(Path("nightly.pem"))
        """
        if self._configured.client_secret or not (self._configured.client_id or self._metadata_url):
            raise ValueError("Signing requires a client_id or a client_metadata_url, and no client_secret.")
        text = key.read_text("utf-8") if isinstance(key, Path) else key
        self._configured = with_private_key(self._configured, text, key_id)
        return self

    def with_identity_provider(self, identity: GrantSource) -> "OAuth":
        """Obtain tokens with grants from your organization's `IdentityProvider` or a `WorkloadIdentity`.

        Args:
            identity: The source of the grants.
        """
        self._identity = identity
        return self

    def with_dpop(self) -> "OAuth":
        """Request sender-constrained tokens (DPoP, RFC 9449) wherever the issuer supports them.

        Each request then costs a signature.
        """
        self._use_dpop = True
        return self

    def with_connector(self, dial: Dial[Any]) -> "OAuth":
        """Connect to authorization servers with `dial`, for example one that rejects private addresses.

        Args:
            dial: Function that connects to an address.
        """
        self._outbound = structs.replace(self._outbound, dial=dial)
        return self

    # Used by the HTTP transports

    async def headers(self, url: Url, method: str, target: str) -> Mapping[str, str]:
        """Return the credentials for a request, after renewing a token that's about to expire.

        Args:
            url: URL of the server.
            method: Method of the request, which a DPoP proof contains (RFC 9449).
            target: Path and query of the request.
        """
        tokens = self._tokens(url)
        if tokens is not None and tokens.expires_at and tokens.expires_at - _RENEW_SECONDS < time.time():
            async with self._lock:
                if self._tokens(url) == tokens:  # a store may return a copy
                    await self.renew(url)
            tokens = self._tokens(url)
        if tokens is None:
            return {}
        self._sent[str(url)] = tokens.access_token
        return self._proofs.authorize(tokens, method, url.origin + target)

    def learn_nonce(self, url: Url, nonce: str, challenge: str) -> bool:
        """Store the nonce that a server requires in proofs.

        Args:
            url: URL of the server.
            nonce: Value of the ``DPoP-Nonce`` header (RFC 9449 §8).
            challenge: The `WWW-Authenticate` header.
        """
        return self._proofs.learn(url, nonce) and wants_nonce(challenge)

    async def handle_challenge(self, url: Url, status: int, challenge: str) -> bool:
        """Get a token, or one with more scopes.

        Args:
            url: URL of the server.
            status: Status of the rejected request, 401 or 403.
            challenge: The `WWW-Authenticate` header (RFC 6750 §3).

        Raises:
            AccessDenied: The issuer can't issue a usable token, or the user declined.
        """
        asked = read_challenges(challenge).parameters
        if status == 403 and asked.get("error") != "insufficient_scope":
            return False
        before = self._tokens(url)
        if (
            status == 401
            and before is not None
            and self._sent.get(str(url), before.access_token) != before.access_token
        ):
            return True  # another process has renewed the token that was rejected
        async with self._lock:
            if self._tokens(url) != before:
                return True  # a concurrent call got one
            resource, issuer, target, wanted = await self._discover(url, status, asked, before)
            if before is not None and before.issuer == issuer.issuer and status == 401 and before.refresh_token:
                with suppress(ClientError):
                    if await self._refresh(url, issuer, before, target):
                        return True
            key = self._key_for(issuer, resource, challenge, before)
            who, form = self._configured, dict[str, str]()
            if self._identity is not None:
                form |= await self._identity.grant(issuer, target, wanted, self._outbound)
            elif self._as_itself:
                who = self._identity_at(issuer)
                form = non_empty(grant_type="client_credentials", resource=self._resource(target), scope=wanted)
            else:
                await self._authorize(url, issuer, target, wanted, key)
                return True
            await self._request_tokens(url, issuer, who, form, wanted, key)
        return True

    # Used by programs that can't block on the user, such as web pages

    async def ask(self, url: Url, status: int, challenge: str) -> PendingAuthorization:
        """Return the authorization request for a user, after a server rejected a request.

        Pass the redirect to `exchange_code`.

        Args:
            url: URL of the server.
            status: Status of the rejected request, 401 or 403.
            challenge: The `WWW-Authenticate` header (RFC 6750 §3).

        Raises:
            AccessDenied: The issuer can't issue a usable token, or rejects this client.
        """
        asked = read_challenges(challenge).parameters
        _, issuer, target, wanted = await self._discover(url, status, asked, self._tokens(url))
        return await self._authorization_request(issuer, target, wanted, self._redirect_uri)

    async def exchange_code(self, url: Url, request: PendingAuthorization, answer: Mapping[str, str]) -> None:
        """Exchange the parameters of a redirect for tokens.

        Args:
            url: URL of the server.
            request: The request that `ask` returned.
            answer: Query parameters of the redirect.

        Raises:
            AccessDenied: The parameters don't answer the request, or the user or the issuer declined.
        """
        await self._request_tokens(url, request.issuer, request.who, request.form(answer), request.scope)

    async def renew(self, url: Url) -> bool:
        """Renew the stored tokens without the user and return whether that worked.

        Args:
            url: URL of the server.
        """
        try:
            return await self.refresh(url)
        except ClientError:
            return False  # the token may be valid for a while

    async def refresh(self, url: Url) -> bool:
        """Renew the tokens like `renew`, but distinguish an ended grant from an outage.

        Args:
            url: URL of the server.

        Returns:
            False if the grant has ended, and the user has to log in again.

        Raises:
            ClientError: The issuer can't be reached, or refuses to issue a token at the moment.
        """
        tokens = self._tokens(url)
        if tokens is None or not tokens.refresh_token:
            return False
        issuer = await find_issuer(tokens.issuer, self._outbound)
        if issuer is None:
            raise AccessDenied(f"The metadata of {tokens.issuer} isn't available at the moment. Try again later.")
        return await self._refresh(url, issuer, tokens, tokens.resource or str(url))

    async def sign_out(self, url: Url) -> bool:
        """Delete the tokens for this server. Return whether the issuer has revoked them as well (RFC 7009).

        Args:
            url: URL of the server.
        """
        credentials = self._store.load()
        tokens = credentials.tokens.pop(str(url), None)
        if tokens is None:
            return False
        self._store.save(credentials)
        try:
            issuer = await find_issuer(tokens.issuer, self._outbound)
            return issuer is not None and await revoke(issuer, self._identity_at(issuer), tokens, self._outbound)
        except ClientError:
            return False

    # Tokens

    async def _request_tokens(
        self,
        url: Url,
        issuer: IssuerMetadata,
        who: Registration,
        form: Mapping[str, str],
        wanted: str,
        key: str = "",
    ) -> None:
        response = await ask_token(issuer, who, form, self._outbound, self._proofs, key)
        self._forget_rejected(issuer, who, response)
        known = Tokens("", issuer.issuer, "", wanted, proof_key=key, resource=form.get("resource", ""))
        self._save(url, response, known)

    async def _discover(
        self, url: Url, status: int, asked: Mapping[str, str], before: Tokens | None
    ) -> tuple[ProtectedResource | None, IssuerMetadata, str, str]:
        """Return the server's metadata, the issuer to send credentials to, the resource for the token, and the scopes
        to request: the configured, challenged, or supported ones.

        If the server rejected our token for lack of scopes, include those that the token has.

        Raises:
            AccessDenied: Our credentials are bound to another issuer, so a server can't redirect them elsewhere.
        """
        parse_secure(str(url))
        resource = await find_resource(url, asked.get("resource_metadata", ""), self._outbound)
        issuer = await self._find_issuer(url, resource)
        bound = self._bound_issuer
        if bound not in ("", issuer.issuer):
            raise AccessDenied(f"{url} requires tokens from {issuer.issuer}, but these credentials are for {bound}.")
        if self._configured.client_id:
            self._bound_issuer = issuer.issuer
        lacking = status == 403 and before is not None and before.issuer == issuer.issuer
        current = before.scope.split() if before is not None and lacking else []
        named = asked.get("scope", "").split() or list(resource.scopes_supported if resource is not None else ())
        offline = ["offline_access"] if "offline_access" in issuer.scopes_supported and not self._as_itself else []
        scopes = dict.fromkeys([*current, *(self._scope.split() or named), *offline])
        target = resource.resource if resource is not None else ""
        return resource, issuer, target or str(url), " ".join(scopes)

    def _key_for(
        self, issuer: IssuerMetadata, resource: ProtectedResource | None, challenge: str, before: Tokens | None
    ) -> str:
        """Return the private key in PEM to bind a token to, or an empty string for a bearer token.

        A token is bound if the issuer supports DPoP, and the server accepts it or we require it. Reuse the previous key
        if there is one.
        """
        accepted = self._use_dpop or challenged_for_proofs(challenge)
        if resource is not None:
            accepted |= (
                resource.dpop_bound_access_tokens_required or ES256 in resource.dpop_signing_alg_values_supported
            )
        if not accepted or ES256 not in issuer.dpop_signing_alg_values_supported:
            return ""
        known = before.proof_key if before is not None and before.issuer == issuer.issuer else ""
        return known or self._proofs.new()

    async def _find_issuer(self, url: Url, resource: ProtectedResource | None) -> IssuerMetadata:
        named = self._bound_issuer
        if resource is not None:
            named = refuse_local(resource.authorization_servers[0], url)
        elif not named:
            return await find_at_origin(url, self._outbound)
        found = await find_issuer(named, self._outbound)
        if found is None and await has_no_metadata(named, self._outbound):
            return default_metadata(named.rstrip("/"))
        if found is None:
            raise AccessDenied(f"The metadata of {named}, which issues the tokens for {url}, isn't available.")
        return found

    async def _refresh(self, url: Url, issuer: IssuerMetadata, tokens: Tokens, target: str) -> bool:
        """See `refresh`."""
        store = self._store
        async with store.lock() if isinstance(store, LockableTokenStore) else nullcontext():
            current = self._tokens(url)
            if current is not None and current.refresh_token != tokens.refresh_token:
                return True  # another process has renewed them, and spent the refresh token
            form = refresh_grant(tokens.refresh_token) | non_empty(resource=self._resource(target))
            who = self._identity_at(issuer)
            response = await ask_token(issuer, who, form, self._outbound, self._proofs, tokens.proof_key)
            self._forget_rejected(issuer, who, response)
            if response.error in _GRANT_ERRORS:
                return False
            self._save(url, response, tokens)
        return True

    def _forget_rejected(self, issuer: IssuerMetadata, who: Registration, response: TokenResponse) -> None:
        """Delete our registration if the issuer doesn't know it anymore, so that the next login registers again."""
        if response.error not in _CLIENT_ERRORS:
            return
        self.rejected_client_id = who.client_id
        credentials = self._store.load()
        if credentials.registrations.pop(issuer.issuer, None) is not None:
            self._store.save(credentials)

    def _resource(self, target: str) -> str:
        """Return the resource that a token is for (RFC 8707), or empty if requests don't include it."""
        return target if self._sends_resource else ""

    async def _authorize(self, url: Url, issuer: IssuerMetadata, target: str, scope: str, key: str) -> None:
        """Send the user to the authorization server and exchange the code from the redirect for tokens."""
        loopback, problem = Loopback(), "Your program shows the reason."
        visit, redirect = self._visit, self._redirect_uri
        if visit is None:
            visit, redirect = loopback.visit, await loopback.open()
        try:
            request = await self._authorization_request(issuer, target, scope, redirect)
            form = request.form(parse_redirect(await visit(request.url)))
            await self._request_tokens(url, issuer, request.who, form, scope, key)
            problem = ""
        except AccessDenied as exc:
            problem = str(exc)
            raise
        finally:
            await loopback.close(problem)

    async def _authorization_request(
        self, issuer: IssuerMetadata, target: str, scope: str, redirect: str
    ) -> PendingAuthorization:
        if "S256" not in issuer.code_challenge_methods_supported and not self._assumes_pkce:
            raise AccessDenied(
                f"The metadata of {issuer.issuer} doesn't list PKCE with S256, so authorization codes could be stolen.",
                remedy="If the issuer supports it, pass the issuer and your client_id, and set assume_pkce.",
            )
        if not issuer.authorization_endpoint:
            raise AccessDenied(f"{issuer.issuer} has no authorization endpoint, so users can't sign in.")
        parse_secure(issuer.authorization_endpoint)
        who = self._static_registration(issuer)
        if who is None:
            credentials = self._store.load()
            who = credentials.registrations.get(issuer.issuer)
            lacking = who is not None and who.scope and not set(scope.split()) <= set(who.scope.split())
            # A local port changes with each login, and the redirect URI with it.
            if who is None or redirect != self._redirect_uri or lacking:
                who = await register(issuer, self._name, redirect, self._outbound, scope)
                credentials.registrations[issuer.issuer] = who
                self._store.save(credentials)
        state, verifier = secrets.token_urlsafe(24), secrets.token_urlsafe(48)
        return PendingAuthorization(issuer, who, self._resource(target), scope, redirect, state, verifier)

    def _identity_at(self, issuer: IssuerMetadata) -> Registration:
        """Return our identity at an issuer that has issued tokens to us."""
        return self._static_registration(issuer) or self._store.load().registrations.get(
            issuer.issuer, self._configured
        )

    def _static_registration(self, issuer: IssuerMetadata) -> Registration | None:
        """Return the identity that needs no dynamic registration, or None."""
        if self._configured.client_id:
            return self._configured
        if self._metadata_url and issuer.client_id_metadata_document_supported:
            method = self._configured.token_endpoint_auth_method or "none"
            return structs.replace(
                self._configured, client_id=self._metadata_url, token_endpoint_auth_method=method, client_secret=""
            )
        return None

    # Stored tokens

    def _tokens(self, url: Url) -> Tokens | None:
        return self._store.load().tokens.get(str(url))

    def _save(self, url: Url, response: TokenResponse, known: Tokens) -> None:
        """Store tokens. `known`, from the request or the previous tokens, supplies what the response leaves out.

        Raises:
            AccessDenied: The issuer issued no usable token.
        """
        response.check(known.issuer)
        refresh, scope = response.refresh_token or known.refresh_token, response.scope or known.scope
        bound = known.proof_key if response.token_type.lower() == "dpop" else ""
        credentials = self._store.load()
        credentials.tokens[str(url)] = Tokens(
            response.access_token, known.issuer, refresh, scope, response.expires_at, bound, known.resource
        )
        self._store.save(credentials)
