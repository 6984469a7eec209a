"""The OAuth endpoints of a program with its own `OAuthAuthorizationServerProvider`.

The provider decides which clients get tokens. Parts of our own authorization server check each request: redirect URIs,
PKCE, client secrets, and the rate of failures per address.
"""

import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from pydantic import ValidationError

from millstream._http.hosts import is_loopback
from millstream._http.message import Handler, HttpRequest, Response, Sink
from millstream._override import override
from millstream._protocol.errors import LocalError
from millstream._server.calls.services import Services
from millstream._server.calls.vault import Vault, digest, new_secret
from millstream.auth import _pages as pages
from millstream.auth._authorization_server.authorize import AuthorizationRequests, NotGranted
from millstream.auth._authorization_server.clients import Clients, client_of
from millstream.auth._authorization_server.config import (
    AUTHORIZE,
    REGISTER,
    REVOKE,
    TOKEN,
    IssuerConfig,
    canonical,
    metadata,
)
from millstream.auth._authorization_server.grants import ENDED, check_redirect, check_verifier
from millstream.auth._authorization_server.records import (
    CODE,
    REFRESH,
    OAuthClient,
    OAuthError,
    Parameters,
    form_of,
    is_identified,
    reply,
    see,
    shown_host,
)
from millstream.auth._authorization_server.server import ALL_PRINCIPALS, IssuerEndpoints
from millstream.auth._method import KnownScopes, Paths, Unavailable
from millstream.auth.providers import Provider
from millstream.compat.fastmcp._auth import (
    AuthorizationParams,
    OAuthClientInformationFull,
    ProviderTokenVerifier,
    VerifierMethod,
)

logger = logging.getLogger("millstream")

METHODS = ("none", "client_secret_basic", "client_secret_post")
_NOT_SERVED = ("jwks_uri", "introspection_", "authorization_response_iss")
_CODE_SECONDS = 3600.0
"""Seconds that a used code is stored."""


class ServedProvider(Provider):
    """A provider with endpoints on this server. It finds the clients."""

    def __init__(self, provider: Any, settings: Any) -> None:
        """Check the issuer's URL.

        Raises:
            ValueError: `issuer_url` isn't a valid issuer.
        """
        issuer = str(settings.issuer_url).rstrip("/")
        parts = urlsplit(issuer)
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
            raise ValueError(f"issuer_url must be https, or http on this machine, not {issuer!r}")
        if "?" in issuer or "#" in issuer:
            raise ValueError(f"issuer_url can't have a query or fragment: {issuer!r}")
        self._provider = provider
        self._settings = settings
        self.issuer = issuer
        self.outer_paths: tuple[str, ...] = tuple(
            prefix + each for prefix in {"", parts.path} for each in (AUTHORIZE, TOKEN, REGISTER, REVOKE)
        )
        """Paths of the endpoints, for applications that mount the server at single paths."""

    def bind(self, services: Services, name: str, known: KnownScopes) -> "RunningProvider":
        """Return the endpoints of one running server."""
        settings = self._settings
        origin = "://".join(urlsplit(self.issuer)[:2])
        registration = settings.client_registration_options
        plan = _Config(
            url=self.issuer,
            audience=str(settings.resource_server_url or origin).rstrip("/"),
            # Clients may send the URL that they connect to instead of the audience.
            resources=tuple(origin + path.rstrip("/") for each in services.addresses for path in each.paths),
            scopes=tuple(settings.required_scopes or ()),
            described=dict.fromkeys(getattr(registration, "valid_scopes", None) or (), ""),
            implied={},
            passwords=None,
            upstreams={},
            clients={},
            registration=bool(getattr(registration, "enabled", False)),
            metadata_documents=False,
            provider=self,
        )
        return RunningProvider(self._provider, settings, plan, Vault(services))

    @override
    async def find_client(self, client_id: str) -> OAuthClient | None:
        """Return the provider's client as an `OAuthClient`, or None if it's unknown or its secret has expired."""
        theirs = await self._provider.get_client(client_id)
        if theirs is None:
            return None
        secret, method = theirs.client_secret, theirs.token_endpoint_auth_method or "none"
        until = theirs.client_secret_expires_at
        if secret and until and until < time.time():
            return None
        if secret or method != "none":
            method = "client_secret_post"  # without a secret, authentication always fails
        return OAuthClient(
            client_id,
            name=theirs.client_name or "",
            redirect_uris=tuple(map(str, theirs.redirect_uris or ())),
            method=method,
            secret_hash=digest(secret) if secret else "",
            grant_types=tuple(theirs.grant_types),
            source="registered",
        )


class RunningProvider(IssuerEndpoints, VerifierMethod):
    """A provider with its endpoints, as an auth method of the guard."""

    def __init__(self, provider: Any, settings: Any, plan: IssuerConfig, vault: Vault) -> None:
        VerifierMethod.__init__(self, ProviderTokenVerifier(provider), settings)
        IssuerEndpoints.__init__(self, plan, vault)
        self.resource = plan.audience
        self._provider = provider
        self._settings = settings
        clients = self._clients = Clients(plan, vault, provided=True)
        self._asking = AuthorizationRequests(plan, clients)
        self._revokes = bool(getattr(settings.revocation_options, "enabled", False))

    @override
    def endpoints(self) -> Paths:
        """See `IssuerEndpoints.endpoints`."""
        ends: dict[str, Mapping[str, Handler]] = {
            AUTHORIZE: {"GET": self._authorize, "POST": self._authorize},
            TOKEN: {"POST": self._token},
        }
        if self._config.registration:
            ends[REGISTER] = {"POST": self._register}
        if self._revokes:
            ends[REVOKE] = {"POST": self._revoke}
        return ends

    @override
    async def metadata(self, request: HttpRequest) -> Response:
        """See `IssuerEndpoints.metadata`."""
        said = {
            name: value
            for name, value in metadata(self._config).items()
            if not name.startswith(_NOT_SERVED) and not name.endswith("signing_alg_values_supported")
        }
        said |= {"grant_types_supported": [CODE, REFRESH], "token_endpoint_auth_methods_supported": METHODS}
        if self._revokes:
            said["revocation_endpoint_auth_methods_supported"] = METHODS
        else:
            del said["revocation_endpoint"], said["revocation_endpoint_auth_methods_supported"]
        if self._settings.service_documentation_url:
            said["service_documentation"] = str(self._settings.service_documentation_url)
        return reply(said)

    @override
    def catch_errors(self, handler: Handler) -> Handler:
        """Wrap a handler to respond to its errors, including the provider's."""

        async def answer(request: HttpRequest) -> Response | Sink | None:
            try:
                return await handler(request)
            except (OAuthError, Unavailable, LocalError):
                raise
            except Exception as exc:
                refusal = _refusal(exc)
                if refusal is None:
                    logger.exception("%s %a failed: the provider raised an exception", request.method, request.path)
                    refusal = OAuthError(
                        "server_error", "The server failed to process the request. Try again later.", 500
                    )
                return refusal.response()

        return super().catch_errors(answer)

    # The browser

    async def _authorize(self, request: HttpRequest) -> Response:
        given = Parameters(request.query) if request.method in ("GET", "HEAD") else form_of(request)
        try:
            client, asked = await self._asking.read(given, request)
        except NotGranted as exc:
            # Anyone can register, so an automatic redirect would make this server an open redirector.
            if self._config.registration and is_identified(exc.redirect):
                return pages.stop(exc.answer, shown_host(exc.redirect), str(exc))
            return exc.answer
        state = given.get("state") or None
        refuse = partial(self._asking.refuse, asked.redirect_uri, asked.state)
        theirs = await self._theirs(client)
        scopes = given.get("scope").split() or None
        registered = str(getattr(theirs, "scope", None) or "").split()
        if not set(scopes or ()) <= set(registered):
            return refuse("invalid_scope", "The client isn't registered for all of these scopes.")
        if state is not None and not state.isprintable():
            return refuse("invalid_request", "state must contain only printable characters.")
        params = AuthorizationParams(
            state=state,
            scopes=scopes,
            code_challenge=asked.challenge,
            redirect_uri=asked.redirect_uri,
            redirect_uri_provided_explicitly=asked.named_redirect,
            resource=given.get("resource") or None,
        )
        try:
            url = str(await self._provider.authorize(theirs, params))
        except Exception as exc:
            refusal = _refusal(exc)
            if refusal is None:
                raise
            return refuse(refusal.error, str(refusal))
        if not url.isascii() or not url.isprintable():
            raise ValueError("authorize() must return a URL in printable ASCII")
        return see(url)

    # Clients

    async def _theirs(self, client: OAuthClient) -> Any:
        found = await self._provider.get_client(client.id)
        if found is None:
            raise OAuthError("invalid_client", "The client is unknown. Register it again.", 401)
        return found

    async def _token(self, request: HttpRequest) -> Response:
        form = form_of(request)
        kind = form.get("grant_type")
        give = {CODE: self._from_code, REFRESH: self._from_refresh_token}.get(kind)
        if give is None:
            error = "unsupported_grant_type" if kind else "invalid_request"
            raise OAuthError(error, f"grant_type must be {CODE} or {REFRESH}.")
        client = await self._clients.authenticate(request, form)
        if kind not in client.grant_types:
            raise OAuthError("unauthorized_client", f"This client isn't allowed to use {kind}.")
        self._config.requested_resources(form.all("resource"))
        tokens = await give(client, await self._theirs(client), form)
        return reply(tokens.model_dump(mode="json", exclude_none=True))

    async def _from_code(self, client: OAuthClient, theirs: Any, form: Parameters) -> Any:
        code = form.get("code")
        if not code:
            raise OAuthError("invalid_request", "code is missing.")
        found = await self._provider.load_authorization_code(theirs, code)
        if found is None or found.client_id != client.id or found.expires_at < time.time():
            raise OAuthError("invalid_grant", "The code is unknown or has expired.")
        check_redirect(str(found.redirect_uri), form, named=found.redirect_uri_provided_explicitly)
        check_verifier(form, found.code_challenge)
        resource = getattr(found, "resource", None)
        if resource and any(canonical(each) != canonical(str(resource)) for each in form.all("resource")):
            raise OAuthError("invalid_target", "The code isn't valid for this resource.")
        # Two concurrent requests may both find the code, but only one may exchange it.
        if not await self._vault.exchange(f"oauth-spent:{digest(code)}", None, b"1", _CODE_SECONDS, lossy=True):
            raise OAuthError("invalid_grant", "The code has already been used.")
        return await self._provider.exchange_authorization_code(theirs, found)

    async def _from_refresh_token(self, client: OAuthClient, theirs: Any, form: Parameters) -> Any:
        found = await self._provider.load_refresh_token(theirs, form.get("refresh_token"))
        ended = found is not None and found.expires_at and found.expires_at < time.time()
        if found is None or found.client_id != client.id or ended:
            raise OAuthError("invalid_grant", "The refresh token is no longer valid. Sign in again.")
        scopes = list(dict.fromkeys(form.get("scope").split())) or list(found.scopes)
        if not set(scopes) <= set(found.scopes):
            raise OAuthError("invalid_scope", "A refresh can't add scopes to the grant.")
        return await self._provider.exchange_refresh_token(theirs, found, scopes)

    async def _revoke(self, request: HttpRequest) -> Response:
        client, token = await self._clients.read_token(request)
        theirs = await self._theirs(client)
        found = await self._provider.load_access_token(token)
        accessed = found is not None
        if found is None:
            found = await self._provider.load_refresh_token(theirs, token)
        if found is not None and found.client_id == client.id:
            await self._provider.revoke_token(found)
            subject = getattr(found, "subject", None)
            # A provider may also revoke related tokens, and a refresh token may not name its owner.
            await self._vault.bus.publish(ENDED, str(subject or (client.id if accessed else ALL_PRINCIPALS)).encode())
        return reply({})

    async def _register(self, request: HttpRequest) -> Response:
        given = await self._clients.read_registration(request)
        said = {name: value for name, value in given.items() if value not in (None, "")}
        options = self._settings.client_registration_options
        try:
            asked = {"grant_types": [CODE, REFRESH], **said}
            client = client_of(str(uuid4()), asked, "registered", methods=METHODS, default="client_secret_post")
            now, seconds = int(time.time()), options.client_secret_expiry_seconds
            secret = client.method != "none"
            theirs = OAuthClientInformationFull.model_validate(
                {
                    "scope": " ".join(options.default_scopes or ()) or None,
                    **said,
                    "client_id": client.id,
                    "client_id_issued_at": now,
                    "token_endpoint_auth_method": client.method,
                    "grant_types": client.grant_types,
                    "client_secret": new_secret() if secret else None,
                    "client_secret_expires_at": (now + seconds if seconds is not None else 0) if secret else None,
                }
            )
        except ValidationError as exc:
            raise OAuthError(
                "invalid_client_metadata", f"The client metadata is invalid: {exc.errors()[0]['msg']}"
            ) from None
        if "code" not in theirs.response_types:
            raise OAuthError("invalid_client_metadata", "response_types must include code.")
        if options.valid_scopes is not None and not set((theirs.scope or "").split()) <= set(options.valid_scopes):
            raise OAuthError(
                "invalid_client_metadata", f"A scope isn't valid. Valid scopes: {' '.join(options.valid_scopes)}."
            )
        await self._provider.register_client(theirs)
        return reply(theirs.model_dump(mode="json", exclude_none=True), 201)


class _Config(IssuerConfig, frozen=True):
    """Accepts all scopes; the caller compares them with the client's registration."""

    @override
    def requested_scopes(self, text: str) -> tuple[str, ...]:
        return tuple(text.split())


def _refusal(exc: Exception) -> OAuthError | None:
    """Return the OAuth error for a provider's exception, ours or the SDK's, or None for other exceptions."""
    error = getattr(exc, "error", None)
    return OAuthError(error, getattr(exc, "error_description", None) or "") if isinstance(error, str) else None
