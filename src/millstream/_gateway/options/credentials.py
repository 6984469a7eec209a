"""Options for the credentials of an upstream: ``mcp.upstream("shop", url, auth=bearer(env="TOKEN"))``.

Each kind is a frozen Struct tagged by `kind`, so a configuration file decodes to the same values. A secret is named
by an environment variable or a file. Its text can't be printed or encoded.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack

from msgspec import Struct, structs

from millstream._oauth import SCOPE
from millstream._override import override
from millstream._protocol.errors import LocalError
from millstream.protocol import SuggestionMeta

_MAX_SECRET = 64 * 1024


class SecretText:
    """A secret given as text by a program."""

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the secret text, which `repr` hides."""
        return self._text

    @override
    def __repr__(self) -> str:
        return "SecretText(…)"

    @override
    def __reduce__(self) -> str:
        raise TypeError("A secret can't be pickled or copied.")


class Secret(
    Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, metaclass=SuggestionMeta
):
    """A reference to a secret: ``Secret(env="SHOP_TOKEN")`` or ``Secret(file="/run/secrets/shop")``."""

    env: str = ""
    """Environment variable."""
    file: str = ""
    """The file with the secret. It's read again when the upstream rejects the secret, so rotation needs no restart."""
    text: SecretText | None = None
    """The secret itself, only in programs. See `secret`."""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.env, self.file, self.text))) != 1:
            raise ValueError("A secret requires either env, the name of a variable, or file, the path of a file.")

    def read(self, upstream: str) -> str:
        """Return the secret, stripped of whitespace.

        Args:
            upstream: Name of the upstream, for errors.

        Raises:
            LocalError: The secret is missing, or can't be sent in a header.
        """
        if self.text is not None:
            value, where = self.text.reveal(), "The secret"
        elif self.env:
            value, where = os.environ.get(self.env, ""), f"The environment variable {self.env}"
        else:
            where = f"The file {self.file}"
            try:
                with Path(self.file).open(encoding="utf-8") as file:
                    value = file.read(_MAX_SECRET)
            except (OSError, UnicodeDecodeError) as exc:
                reason = exc.strerror if isinstance(exc, OSError) else "it isn't UTF-8"
                raise LocalError(
                    f"{where}, which contains a secret for the upstream {upstream!r}, can't be read: {reason}."
                ) from None
        value = value.strip()
        if not value:
            raise LocalError(f"{where} has no secret for the upstream {upstream!r}. Set it before the server starts.")
        return value


def secret(value: str | Secret) -> Secret | None:
    """Return a `Secret` for a string, or None if it's empty."""
    if isinstance(value, Secret):
        return value
    return Secret(text=SecretText(value)) if value else None


class BearerToken(Secret, frozen=True, tag_field="kind", tag="bearer"):
    """One token for all callers: ``{kind = "bearer", env = "SHOP_TOKEN"}``."""


class StaticHeaders(
    Struct,
    frozen=True,
    kw_only=True,
    tag_field="kind",
    tag="headers",
    forbid_unknown_fields=True,
    metaclass=SuggestionMeta,
):
    """Secret headers, the same for all callers: ``{kind = "headers", headers = {x-api-key = {env = "SHOP_KEY"}}}``."""

    headers: dict[str, Secret] = {}
    query: dict[str, Secret] = {}
    """Secret parameters in the query of each request to an API."""


class _Grant(
    Struct, frozen=True, kw_only=True, tag_field="kind", omit_defaults=True, forbid_unknown_fields=True,
    metaclass=SuggestionMeta,
):  # fmt: skip
    """Common options of the kinds that use an authorization server."""

    issuer: str = ""
    """Exact issuer identifier of the authorization server. Credentials are sent only to this server."""
    client_id: str = ""
    """Client id of this gateway. For `per_user_oauth`, only if the authorization server doesn't register clients. The
    redirect URI is then ``YOUR-SERVER/connections/callback``.
    """
    client_secret: Secret | None = None
    """Secret for `client_id`."""
    scope: tuple[str, ...] = ()
    """Scopes to request. By default, the upstream or the authorization server chooses."""
    private_addresses: bool = False
    """Whether to allow an authorization server in a private network. By default, only if the upstream's URL is."""
    send_resource: bool = True
    """Whether requests include the upstream's URL as `resource` (RFC 8707), which some authorization servers reject."""

    def __post_init__(self) -> None:
        for each in self.scope:
            if not SCOPE.fullmatch(each):
                raise ValueError(f"{each!r} isn't a scope.")
        if self.client_secret is not None and not self.client_id:
            raise ValueError("A client_secret requires its client_id.")


class _MachineGrant(_Grant, frozen=True, kw_only=True):
    """Common options of the kinds without user interaction."""

    token_url: str = ""
    """Token endpoint of an authorization server without metadata."""
    private_key: Secret | None = None
    """Private key in PEM, instead of a client secret (`private_key_jwt`, RFC 7523)."""
    key_id: str = ""
    """Id of that key at the authorization server."""
    secret_in_form: bool = False
    """Whether to send the client secret in the form (`client_secret_post`) instead of a header (`client_secret_basic`).
    """
    resource: str = ""
    """Identifier of the upstream at the authorization server (RFC 8707); its URL by default."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.issuer) == bool(self.token_url):
            raise ValueError("Set issuer, or token_url if the authorization server has no metadata.")
        if self.private_key is not None and (self.client_secret is not None or not self.client_id):
            raise ValueError("A private_key requires a client_id, and no client_secret.")


class ClientCredentials(_MachineGrant, frozen=True, tag="client_credentials"):
    """The gateway's own access token, the same for all callers (RFC 6749 §4.4)."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.client_id or (self.client_secret is None and self.private_key is None):
            raise ValueError("client_credentials requires a client_id, and a client_secret or a private_key.")


class TokenExchange(_MachineGrant, frozen=True, kw_only=True, tag="token_exchange"):
    """Each caller's access token, exchanged for a token for the upstream (RFC 8693)."""

    audience: str = ""
    """Logical name of the upstream, for authorization servers that use it instead of `resource`."""
    lists_from: str = ""
    """Id of the principal whose token reads the lists for all callers, as in the audit log:
    ``https://login.example.com ada``. By default, it's the first caller with a token that can read them.
    """
    on_behalf_of: bool = False
    """Whether to use Entra ID's on-behalf-of grant, which identifies the upstream by the scopes."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.on_behalf_of and not self.scope:
            raise ValueError('on_behalf_of requires scope, such as ["api://orders/.default"].')
        if self.on_behalf_of and (self.audience or self.resource):
            raise ValueError("on_behalf_of identifies the upstream by scope. Leave out audience and resource.")
        if self.on_behalf_of and self.client_secret is None and self.private_key is None:
            raise ValueError("on_behalf_of requires a client_id, and a client_secret or a private_key.")


class PerUserOAuth(_Grant, frozen=True, kw_only=True, tag="per_user_oauth"):
    """Each user's own connection (OAuth 2.1 with PKCE)."""

    client_metadata_url: str = ""
    """URL of a client metadata document (CIMD), by default this server's own."""
    assume_pkce: bool = False
    """Whether the authorization server supports PKCE with S256, although its metadata doesn't list it."""
    lists_from: str = ""
    """Id of the principal whose account reads the lists for all callers, as in the audit log. By default, it's the
    account that was connected first.
    """

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.assume_pkce or not self.send_resource) and not (self.client_id and self.issuer):
            raise ValueError("send_resource and assume_pkce require a client_id and its issuer.")
        if self.client_id and not self.issuer:
            raise ValueError("A client_id requires issuer, the authorization server that it belongs to.")


Credentials = BearerToken | StaticHeaders | ClientCredentials | TokenExchange | PerUserOAuth


def bearer(token: str | Secret = "", *, env: str = "", file: str = "") -> BearerToken:
    """Send the same token for all callers: ``auth=bearer(env="SHOP_TOKEN")``.

    Args:
        token: The token itself; avoid this in source code.
        env: Environment variable with the token.
        file: File with the token. It's read again when the upstream rejects the token.

    Raises:
        ValueError: None or several of them are set.
    """
    if isinstance(token, Secret):
        if env or file:
            raise ValueError("Pass only one of the secret's text, env=, and file=.")
        return BearerToken(**structs.asdict(token))
    if not (token or env or file):
        raise ValueError("bearer() requires a token: bearer(env='NAME')")
    return BearerToken(env=env, file=file, text=SecretText(token) if token else None)


def static_headers(
    headers: Mapping[str, str | Secret] = {}, *, query: Mapping[str, str | Secret] = {}
) -> StaticHeaders:
    """Send secret headers for all callers: ``auth=static_headers({"x-api-key": Secret(env="SHOP_KEY")})``.

    Args:
        headers: Name of each header -> its value, or a `Secret` that locates the value.
        query: The same for query parameters, in which some APIs expect keys.

    Raises:
        ValueError: A header or parameter has no value.
    """
    kept, pairs = ({name: secret(value) for name, value in each.items()} for each in (headers, query))
    if not (kept or pairs) or None in kept.values() or None in pairs.values():
        raise ValueError("static_headers() requires headers, each with a value.")
    return StaticHeaders(
        headers={name: each for name, each in kept.items() if each},
        query={name: each for name, each in pairs.items() if each},
    )


class _Options(TypedDict, total=False):
    issuer: str
    scope: str | Iterable[str]
    private_addresses: bool
    send_resource: bool


class _MachineOptions(_Options, total=False):
    token_url: str
    private_key: str | Secret
    key_id: str
    secret_in_form: bool
    resource: str


class _ExchangeOptions(_MachineOptions, total=False):
    client_id: str
    client_secret: str | Secret
    audience: str
    lists_from: str
    on_behalf_of: bool


class _UserOptions(_Options, total=False):
    client_id: str
    client_secret: str | Secret
    client_metadata_url: str
    assume_pkce: bool
    lists_from: str


_G = TypeVar("_G", bound=_Grant)


def _grant(kind: type[_G], /, scope: str | Iterable[str] = (), **options: Any) -> _G:
    """Return an authorization server's options. Programs can write a secret as text, and scopes as one string."""
    options |= {name: secret(options[name]) for name in ("client_secret", "private_key") if name in options}
    return kind(scope=tuple(scope.split() if isinstance(scope, str) else scope), **options)


def client_credentials(
    client_id: str, client_secret: str | Secret = "", **options: Unpack[_MachineOptions]
) -> ClientCredentials:
    """Send an access token of the gateway itself: ``auth=client_credentials("gw", Secret(env="S"),
    issuer="https://…")``.

    All workers share one token, and one of them renews it before it expires.

    Args:
        client_id: Client id of this gateway.
        client_secret: Secret for `client_id`.
        options: The other options of this kind in a gateway's file, such as `issuer`.

    Raises:
        TypeError: An option doesn't exist.
        ValueError: An option is missing, or conflicts with another one.
    """
    return _grant(ClientCredentials, client_id=client_id, client_secret=client_secret, **options)


def token_exchange(**options: Unpack[_ExchangeOptions]) -> TokenExchange:
    """Exchange each caller's access token for a token for the upstream: ``auth=token_exchange(issuer="https://…")``.

    The server needs an ``auth=`` that accepts tokens from an issuer, because the caller's token is verified before the
    exchange. An exchanged token expires with the earlier of both tokens. It's used for its caller's requests, and one
    caller's token also reads the lists for all (`lists_from`).

    Args:
        options: The options of this kind in a gateway's file. `client_id` is for authorization servers that require
            one.

    Raises:
        TypeError: An option doesn't exist.
        ValueError: An option is missing, or conflicts with another one.
    """
    return _grant(TokenExchange, **options)


def per_user_oauth(**options: Unpack[_UserOptions]) -> PerUserOAuth:
    """Have each user connect their own account: ``auth=per_user_oauth()``.

    A call from a user without a connection asks them to open ``/connections``. Tokens are sealed in the server's store.
    The server needs ``auth=`` to tell users apart.

    Args:
        options: The options of this kind in a gateway's file. A `client_id` requires its `issuer`. Changing
            `assume_pkce` or `send_resource` requires both.

    Raises:
        TypeError: An option doesn't exist.
        ValueError: An option is missing or invalid.
    """
    return _grant(PerUserOAuth, **options)
