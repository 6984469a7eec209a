"""Which credentials an upstream has, from its configuration."""

from contextlib import AsyncExitStack
from typing import Any

from millstream._gateway.credentials.source import FixedCredentials, UpstreamCredentials, check_forwarded
from millstream._gateway.options.credentials import (
    BearerToken,
    ClientCredentials,
    PerUserOAuth,
    StaticHeaders,
    TokenExchange,
)
from millstream._gateway.options.upstream import UpstreamConfig
from millstream._parts import PartHost
from millstream._protocol.errors import LocalError
from millstream.client import TargetError
from millstream.client._targets import Remote, find_server


def create_credentials(  # noqa: C901  a case for each kind
    config: UpstreamConfig, address: Any, host: PartHost, stack: AsyncExitStack
) -> UpstreamCredentials:
    """Return the credentials of an upstream that has some or forwards headers.

    Args:
        config: Configuration of the upstream.
        address: URL or target that credentials are sent to.
        host: The running server.
        stack: Ends the credentials with their upstream.

    Raises:
        LocalError: The options are invalid. The message gives the reason.
    """
    auth = config.auth
    name = config.name
    try:
        server = find_server(address, env={}, cwd=None)
    except TargetError:
        server = None
    if not isinstance(server, Remote):
        option = "auth" if auth is not None else "forward_headers"
        remedy = (
            "Pass a command's secrets in env=…." if config.openapi is None else "Set openapi.base_url to the API's URL."
        )
        raise LocalError(f"The upstream {name!r} has {option}, which requires a URL. {remedy}")
    url, configured = server.url, [*config.headers]
    if isinstance(auth, StaticHeaders):
        if auth.query and config.openapi is None:
            raise LocalError(f"The upstream {name!r} has a secret in its query, which only an API can have.")
        configured += auth.headers
    elif auth is not None:
        if any(each.lower() == "authorization" for each in config.headers):
            raise LocalError(f"The upstream {name!r} has auth and a fixed Authorization header. Remove one of them.")
        configured.append("authorization")
    forward = check_forwarded(name, config.forward_headers, configured, host.settings.auth_key_header)
    credentials: UpstreamCredentials
    match auth:
        case None:
            credentials = UpstreamCredentials(name, forward)
        case BearerToken():
            credentials = FixedCredentials(name, forward, {"Authorization": auth}, "Bearer ")
        case StaticHeaders():
            credentials = FixedCredentials(name, forward, auth.headers, query=auth.query)
        case ClientCredentials():
            from millstream._gateway.credentials.tokens import OwnCredentials  # noqa: PLC0415  where it's used

            credentials = OwnCredentials(name, forward, url, auth, host.services)
        case TokenExchange():
            from millstream._gateway.credentials.tokens import ExchangedCredentials  # noqa: PLC0415  as above

            credentials = ExchangedCredentials(name, forward, url, auth, host.services)
            stack.callback(host.observe(credentials.observe))
        case PerUserOAuth():
            from millstream._gateway.credentials.accounts import PersonalCredentials  # noqa: PLC0415  as above

            credentials = PersonalCredentials(name, forward, url, auth, host)
    stack.push_async_callback(credentials.close)
    return credentials
