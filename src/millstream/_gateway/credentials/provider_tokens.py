"""Tokens of users at the providers where they signed in. See `millstream.auth.provider_token`."""

from collections.abc import Collection
from contextlib import suppress
from functools import partial
from typing import Protocol

from millstream import ToolError
from millstream._gateway.credentials.source import LinkCaller, digest_of, logger
from millstream._gateway.credentials.tokens import StoredGrant, TokenCredentials, make_grant
from millstream._override import override
from millstream._parts import PartHost
from millstream._protocol.jsonrpc import Json
from millstream._protocol.principal import Principal
from millstream._server.calls.services import ProviderToken, Services
from millstream.auth._authorization_server.grants import ENDED
from millstream.auth._oidc import GrantRefused, has_ended
from millstream.auth.providers import SignInFailed
from millstream.client import ClientError, ConnectFailed, Registration, Tokens
from millstream.client._oauth.endpoints import TokenResponse, read_object

_SECONDS = 180 * 86_400.0
"""Seconds that a refresh token is kept after its last use."""
_MAX_TOKEN = 16_384
_AGAIN = "Disconnect this server in your application, and connect it again."


class RefreshingLogin(Protocol):
    """A provider whose tokens are kept."""

    label: str
    token_scopes: tuple[str, ...]

    async def refresh(self, token: str) -> Json:
        """Return the response to a refresh token."""
        ...


class KeptTokens(TokenCredentials):
    """The users' tokens at one provider."""

    personal = True
    _ttl = _SECONDS
    _lossy = False

    def __init__(self, login: str, provider: RefreshingLogin, services: Services) -> None:
        super().__init__(login, (), services, f"provider-token:{login}:")
        self.provider = provider
        self.title = provider.label.removeprefix("Continue with ")

    async def keep(self, principal: str, response: Json) -> None:
        """Store the tokens in a response. Some providers issue a refresh token only at the first sign-in."""
        name = digest_of(principal)
        before = (await self._read(name))[1]
        refresh_token = "" if before is None else before.tokens.refresh_token
        grant = _grant_of(response, refresh_token, " ".join(self.provider.token_scopes))
        if grant is None:
            logger.error("%s returned no access token that tools can use.", self.title)
            return
        await self._vault.kv.put(self._prefix + name, *self._seal(name, grant))
        await self._notify_workers(name)

    async def forget(self, principal: str) -> None:
        """Delete the tokens of a user."""
        name = digest_of(principal)
        if await self._vault.kv.delete(self._prefix + name):
            await self._notify_workers(name)

    async def find(self, principal: Principal) -> ProviderToken:
        """See `ProviderTokens.find`."""
        name = digest_of(principal.id)
        try:
            grant = (await self._read(name))[1]  # the message about a deletion may be lost
            if grant is not None and grant.needs_renewal:
                grant = await self._renew(LinkCaller(name), name, grant)
        except ClientError:
            raise ToolError(f"{self.title} isn't responding. Try again later.") from None
        if grant is None or grant.has_ended:
            raise ToolError(f"This server can't act in your name at {self.title} any more. {_AGAIN}")
        tokens = grant.tokens
        return ProviderToken(tokens.access_token, tuple(tokens.scope.split()), tokens.expires_at)

    @override
    async def _request(self, caller: LinkCaller, old: StoredGrant | None) -> StoredGrant | None:
        if old is None or not old.tokens.refresh_token:
            return None
        try:
            response = await self.provider.refresh(old.tokens.refresh_token)
        except GrantRefused:
            return None  # the user or the provider has ended it
        except SignInFailed as exc:
            raise ConnectFailed(str(exc)) from None
        if has_ended(response):  # GitHub also refuses with status 200
            return None
        grant = _grant_of(response, old.tokens.refresh_token, old.tokens.scope)
        if grant is None:
            raise ConnectFailed(f"{self.title} returned no access token.")
        return grant


def _grant_of(response: Json, refresh_token: str, scope: str) -> StoredGrant | None:
    """Return the grant in a response, or None if it has no usable access token.

    Args:
        response: The response of the token endpoint.
        refresh_token: The token to keep if there's no other.
        scope: The scopes if the response doesn't list them (RFC 6749 §5.1). GitHub separates them by commas.
    """
    with suppress(ValueError):  # a token that isn't text
        found = read_object(response, TokenResponse)
        if _is_token(found.access_token):
            refresh = found.refresh_token if _is_token(found.refresh_token) else refresh_token
            scopes = found.scope.replace(",", " ") or scope
            tokens = Tokens(found.access_token, refresh_token=refresh, scope=scopes, expires_at=found.expires_at)
            return make_grant(tokens, Registration())
    return None


def _is_token(text: str) -> bool:
    return 0 < len(text) <= _MAX_TOKEN and text.isascii() and text.isprintable()


class ProviderTokensPart:
    """Keeps the tokens of users who sign in with a provider that has `token_scopes`."""

    name: str = "provider_tokens"
    needs: Collection[str] = ("auth",)

    def __init__(self, definition: object) -> None:
        """Create the part. The definition isn't used."""
        self._kept: dict[str, KeptTokens] = {}

    async def open(self, host: PartHost) -> None:
        """Read and keep tokens in the server's store."""
        services = host.services
        for method in host.guard.methods if host.guard is not None else ():
            for login, provider in getattr(method, "logins", {}).items():
                if getattr(provider, "token_scopes", ()):
                    self._kept[login] = KeptTokens(login, provider, services)
        for kept in self._kept.values():
            host.stack.push_async_callback(kept.close)
        services.provider_tokens = self
        host.stack.callback(services.store.bus.subscribe(ENDED, partial(self._on_end, host)))

    def _on_end(self, host: PartHost, data: bytes) -> None:
        """Delete the tokens of a user whose sign-in has been revoked somewhere."""
        principal = data.decode("utf-8", "replace")
        kept = self._kept.get(principal.partition(" ")[2].partition(":")[0])
        if kept is not None:
            host.run(kept.forget(principal))

    async def close(self) -> None:
        """Do nothing, because the host's exit stack closes everything."""

    async def keep(self, principal: str, login: str, response: Json) -> None:
        """See `ProviderTokens`."""
        await self._kept[login].keep(principal, response)

    async def find(self, principal: Principal) -> ProviderToken:
        """See `ProviderTokens`."""
        kept = self._kept.get(principal.subject.partition(":")[0])
        if kept is None:
            names = " or ".join(each.title for each in self._kept.values())
            raise ToolError(f"This tool acts in your name at {names}. Sign in to this server with it.")
        return await kept.find(principal)
