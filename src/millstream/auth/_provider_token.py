"""The token of the signed-in user at the provider where they signed in, for tools that act as that user there.

The operator lists `token_scopes` at the provider. The tokens are then kept, sealed, and renewed. Otherwise they're
discarded after the login.
"""

from typing import Protocol

from msgspec import Struct, field

from millstream._protocol.errors import Confidential, ToolError
from millstream._protocol.jsonrpc import Json
from millstream._protocol.principal import Principal
from millstream._server.calls.call import Call
from millstream._server.calls.context import Context
from millstream.auth.providers import User


class ProviderUser(User, Confidential, frozen=True):
    """A user who has just signed in, with the provider's response. Return it from `UpstreamLogin.finish`."""

    response: Json = field(default_factory=Json)
    """The response of the token endpoint (RFC 6749 §5.1)."""


class ProviderToken(Confidential, Struct, frozen=True):
    """An access token of a user at the provider: ``{"Authorization": f"Bearer {token.access_token}"}``"""

    access_token: str
    scopes: tuple[str, ...] = ()
    """Granted scopes. A user may have granted fewer than the operator requests."""
    expires_at: float = 0.0
    """Unix time, or 0 if the provider doesn't specify it."""


class ProviderTokens(Protocol):
    """The kept tokens of a running server's users."""

    async def keep(self, principal: str, login: str, response: Json) -> None:
        """Store the tokens in a provider's response, for the principal with an id."""
        ...

    async def find(self, principal: Principal, call: Call) -> ProviderToken:
        """Return a token that's still valid. Raises ToolError, with what its user has to do."""
        ...


async def provider_token(ctx: Context) -> ProviderToken:
    """Return the token of the caller at the provider where they signed in, renewed if it has expired.

    It's a dependency. Other libraries' names for this are ``get_access_token().token`` and ``EntraOBOToken``. This one
    is named after what it is, because a caller's access token for this server is another one.

    Args:
        ctx: Context of the call.

    Raises:
        ToolError: There's none. The text says what the user or the operator has to do.

    Example:
        ``async def events(token: Annotated[auth.ProviderToken, Depends(auth.provider_token)]) -> list[str]: …``
    """
    call: Call = ctx._call
    tokens = call.services.provider_tokens
    if tokens is None:
        raise ToolError(
            "This server keeps no tokens of the provider where you sign in. Its operator has to list token_scopes=."
        )
    if call.principal is None:
        raise ToolError("This tool acts in your name at another service. Sign in to this server first.")
    found: ProviderToken = await tokens.find(call.principal, call)
    return found
