"""Enterprise-managed authorization: whoever runs an organization's accounts decides which servers its people may use.

Nobody is sent to a page. The identity provider, where the person has signed in already, gives a grant for one
authorization server (ID-JAG) in exchange for the ID token that it gave before (RFC 8693), and that server gives a token
for the grant (RFC 7523). https://github.com/modelcontextprotocol/ext-auth,
specification/draft/enterprise-managed-authorization.mdx.
"""

import inspect
import ssl
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from msgspec import Struct

from millstream._protocol.suggesting import suggesting
from millstream.client._errors import AccessDenied
from millstream.client._oauth.discovery import Issuer, find_issuer
from millstream.client._oauth.endpoints import proven
from millstream.client._oauth.fetching import post_form
from millstream.client._oauth.store import Registration

_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
_JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_GRANT = "urn:ietf:params:oauth:token-type:id-jag"
_ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"  # noqa: S105  it's the name of a kind

IdToken = str | Callable[[], str | Awaitable[str]]
"""An ID token, or what gives one that's still valid."""


class _Exchanged(Struct):
    """The answer of the identity provider."""

    access_token: str = ""
    issued_token_type: str = ""
    error: str = ""
    error_description: str = ""


@suggesting
class IdentityProvider:
    """Where your organization's people sign in, for ``OAuth(…).managed_by(IdentityProvider(…))``.

    Args:
        issuer: the exact name of the identity provider.
        id_token: the ID token that it gave when the person signed in, or a function that gives one; the function may
            be asynchronous. It goes to this provider only.
        client_id: who you are there.
        client_secret: the secret that goes with it; a public client has none.
    """

    def __init__(self, issuer: str, *, id_token: IdToken, client_id: str, client_secret: str = "") -> None:
        self._issuer = issuer
        self._id_token = id_token
        self._who = Registration(client_id, client_secret)

    async def grant(self, issuer: Issuer, resource: str, scope: str, tls: ssl.SSLContext | None) -> Mapping[str, str]:
        """The form that buys a token of an authorization server, for a resource.

        Raises:
            AccessDenied: the identity provider doesn't allow it.
        """
        home = await find_issuer(self._issuer, tls)
        if home is None:
            raise AccessDenied(f"{self._issuer} has no metadata. Check the issuer of the identity provider.", 401)
        token = self._id_token if isinstance(self._id_token, str) else self._id_token()
        form = {
            "grant_type": _EXCHANGE,
            "requested_token_type": _GRANT,
            "audience": issuer.issuer,
            "resource": resource,
            "subject_token": await token if inspect.isawaitable(token) else token,
            "subject_token_type": _ID_TOKEN,
            **({"scope": scope} if scope else {}),
        }
        shown, headers = proven(home, self._who, form)
        reply = await post_form(home.token_endpoint, shown, headers, tls)
        try:
            given = msgspec.json.decode(reply.body, type=_Exchanged)
        except msgspec.MsgspecError:
            given = _Exchanged(error=f"status {reply.status}")
        if given.error or not given.access_token or given.issued_token_type != _GRANT:
            reason = given.error_description or given.error or "it gave something else"
            raise AccessDenied(f"{self._issuer} gives no grant for {issuer.issuer}: {reason}.", 401)
        return {"grant_type": _JWT_BEARER, "assertion": given.access_token, **({"scope": scope} if scope else {})}
