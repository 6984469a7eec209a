"""Creates the credentials of an upstream from its options."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from millstream._http.client.url import Url, parse
from millstream.client import TargetError
from millstream.gateway._credentials import (
    BearerToken,
    ClientCredentials,
    PerUserOAuth,
    StaticHeaders,
    TokenExchange,
)
from millstream.gateway._credentials.source import FixedCredentials, UpstreamCredentials, check_forwarded
from millstream.gateway._upstream import UpstreamConfig
from millstream.parts import Host
from millstream.protocol import LocalError


def open_credentials(config: UpstreamConfig, target: Any, host: Host) -> UpstreamCredentials:
    """Return the credentials of an upstream that has some, or forwards headers.

    Args:
        config: Configuration of the upstream.
        target: URL of the upstream.
        host: The running server, whose sign-in is open.

    Raises:
        LocalError: The options are invalid; the message says why.
    """
    name, auth = config.name, config.auth
    url = _url_of(target)
    if url is None:
        option = "auth" if auth is not None else "forward_headers"
        raise LocalError(
            f"The upstream {name!r} has {option}, which requires a URL. Pass the secrets of a command in env=…"
        )
    configured = dict(config.headers)
    if isinstance(auth, StaticHeaders):
        configured |= dict.fromkeys(auth.headers, "")
    elif auth is not None:
        if any(each.lower() == "authorization" for each in config.headers):
            raise LocalError(f"The upstream {name!r} has auth and a fixed Authorization header. Remove one of them.")
        configured["authorization"] = ""
    return _make(config, check_forwarded(name, config.forward_headers, configured), url, host)


def _make(config: UpstreamConfig, forward: Sequence[str], url: Url, host: Host) -> UpstreamCredentials:
    name, auth = config.name, config.auth
    match auth:
        case None:
            return UpstreamCredentials(name, forward)
        case BearerToken():
            return FixedCredentials(name, forward, {"Authorization": auth}, "Bearer ")
        case StaticHeaders():
            return FixedCredentials(name, forward, auth.headers)
        case ClientCredentials():
            from millstream.gateway._credentials.tokens import OwnCredentials  # noqa: PLC0415  only where it's used

            return OwnCredentials(name, forward, url, auth, host.services)
        case TokenExchange():
            from millstream.gateway._credentials.tokens import ExchangedCredentials  # noqa: PLC0415  as above

            _check_guarded(name, "token_exchange", host)
            exchanged = ExchangedCredentials(name, forward, url, auth, host.services)
            host.observe(exchanged.observe)
            return exchanged
        case PerUserOAuth():
            from millstream.gateway._credentials.accounts import PersonalCredentials  # noqa: PLC0415  as above

            _check_guarded(name, "per_user_oauth", host)
            return PersonalCredentials(name, forward, url, auth, host)


def _check_guarded(name: str, kind: str, host: Host) -> None:
    if host.guard is None:
        in_file = ", or auth_keys under [settings] of a gateway.toml" if kind == "per_user_oauth" else ""
        raise LocalError(
            f"The upstream {name!r} has {kind}, but this server has no auth=… and can't identify its callers. "
            f"Require a sign-in, for example with Server(auth=auth.oidc(…)){in_file}."
        )


def _url_of(target: Any) -> Url | None:
    if isinstance(target, Mapping):
        target = cast("Mapping[str, Any]", target).get("url")
    if not isinstance(target, str):
        return None
    try:
        return parse(target)
    except TargetError:
        return None
