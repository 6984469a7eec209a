"""The token of the signed-in user at the provider where they signed in, for tools that act as that user there.

The operator lists `token_scopes` at the provider. The tokens are then kept, sealed, and renewed. Otherwise they're
discarded after the login.
"""

from msgspec import field

from millstream._confidential import Confidential
from millstream._protocol.jsonrpc import Json
from millstream._server.calls.context import Context
from millstream._server.calls.services import ProviderToken
from millstream.auth.providers import User

__all__ = ["ProviderToken", "ProviderUser", "provider_token"]


class ProviderUser(User, Confidential, frozen=True):
    """A user who has just signed in, with the provider's response. Return it from `UpstreamLogin.finish`."""

    response: Json = field(default_factory=Json)
    """The response of the token endpoint (RFC 6749 §5.1)."""


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
    return await ctx.provider_token()
