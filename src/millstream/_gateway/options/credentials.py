"""Options for the credentials of an upstream: ``mcp.upstream("shop", url, auth=bearer(env="TOKEN"))``.

Each kind is a frozen Struct tagged by `kind`, so a configuration file decodes to the same values. A secret is named
by an environment variable or a file. Its text can't be printed or encoded.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec import Struct, structs

from millstream._override import override
from millstream._protocol.errors import LocalError
from millstream.protocol import SuggestionMeta

_MAX_SECRET = 64 * 1024
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")
"""Syntax of a scope, RFC 6749 §3.3."""


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


def is_scope(text: str) -> bool:
    """Return whether a string is a valid scope (RFC 6749 §3.3)."""
    return _SCOPE.fullmatch(text) is not None


class _Grant(
    Struct, frozen=True, kw_only=True, tag_field="kind", omit_defaults=True, forbid_unknown_fields=True,
    metaclass=SuggestionMeta,
):  # fmt: skip
    """Common options of the kinds that use an authorization server."""

    issuer: str = ""
    """Exact issuer identifier of the authorization server. Credentials are sent only to this server."""
    client_id: str = ""
    client_secret: Secret | None = None
    scope: tuple[str, ...] = ()
    """Scopes to request. By default, the upstream or the authorization server chooses."""
    private_addresses: bool = False
    """Whether to allow an authorization server in a private network. By default, only if the upstream's URL is."""
    send_resource: bool = True
    """Whether requests include the upstream's URL as `resource` (RFC 8707), which some authorization servers reject."""

    def __post_init__(self) -> None:
        for each in self.scope:
            if not is_scope(each):
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
    """Id of the principal whose token reads the lists for all callers."""
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
    """Id of the principal whose account reads the lists for all callers."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.assume_pkce or not self.send_resource) and not (self.client_id and self.issuer):
            raise ValueError("send_resource and assume_pkce require a client_id and its issuer.")
        if self.client_id and not self.issuer:
            raise ValueError("A client_id requires issuer, the authorization server that it belongs to.")


Credentials = BearerToken | StaticHeaders | ClientCredentials | TokenExchange | PerUserOAuth


def _scopes(scope: str | Iterable[str]) -> tuple[str, ...]:
    return tuple(scope.split() if isinstance(scope, str) else scope)


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


def client_credentials(  # noqa: PLR0913  each is an option of its own
    client_id: str,
    client_secret: str | Secret = "",
    *,
    issuer: str = "",
    token_url: str = "",
    private_key: str | Secret = "",
    key_id: str = "",
    scope: str | Iterable[str] = (),
    resource: str = "",
    secret_in_form: bool = False,
    private_addresses: bool = False,
    send_resource: bool = True,
) -> ClientCredentials:
    """Send an access token of the gateway itself: ``auth=client_credentials("gw", Secret(env="S"),
    issuer="https://…")``.

    All workers share one token, and one of them renews it before it expires.

    Args:
        client_id: Client id of this gateway.
        client_secret: Secret for `client_id`.
        issuer: Exact issuer identifier of the authorization server.
        token_url: Its token endpoint instead, if it has no metadata.
        private_key: Private key in PEM, instead of a secret.
        key_id: Id of that key at the authorization server.
        scope: Scopes to request.
        resource: Identifier of the upstream at the authorization server (RFC 8707); its URL by default.
        secret_in_form: Whether to send the secret in the form instead of a header.
        private_addresses: Whether to allow an authorization server in a private network.
        send_resource: Whether requests include the upstream's URL as ``resource``.

    Raises:
        ValueError: An option is missing, or conflicts with another one.
    """
    return ClientCredentials(
        client_id=client_id, client_secret=secret(client_secret), issuer=issuer, token_url=token_url,
        private_key=secret(private_key), key_id=key_id, scope=_scopes(scope), resource=resource,
        secret_in_form=secret_in_form, private_addresses=private_addresses,
        send_resource=send_resource,
    )  # fmt: skip


def token_exchange(  # noqa: PLR0913  each is an option of its own
    *,
    issuer: str = "",
    token_url: str = "",
    client_id: str = "",
    client_secret: str | Secret = "",
    private_key: str | Secret = "",
    key_id: str = "",
    scope: str | Iterable[str] = (),
    resource: str = "",
    audience: str = "",
    secret_in_form: bool = False,
    private_addresses: bool = False,
    send_resource: bool = True,
    lists_from: str = "",
    on_behalf_of: bool = False,
) -> TokenExchange:
    """Exchange each caller's access token for a token for the upstream: ``auth=token_exchange(issuer="https://…")``.

    The server needs an ``auth=`` that accepts tokens from an issuer, because the caller's token is verified before the
    exchange. An exchanged token is used for that caller only, and expires with the earlier of both tokens.

    Args:
        issuer: Exact issuer identifier of the authorization server that exchanges tokens.
        token_url: Its token endpoint instead, if it has no metadata.
        client_id: Client id of this gateway, if the server requires one.
        client_secret: Secret for `client_id`.
        private_key: Private key in PEM, instead of a secret.
        key_id: Id of that key at the authorization server.
        scope: Scopes to request.
        resource: Identifier of the upstream at the authorization server (RFC 8707); its URL by default.
        audience: Logical name of the upstream at the authorization server.
        secret_in_form: Whether to send the secret in the form instead of a header.
        private_addresses: Whether to allow an authorization server in a private network.
        send_resource: Whether requests include the upstream's URL as ``resource``.
        lists_from: Id of the principal whose token reads the lists for all callers, as in the audit log:
            ``"https://login.example.com ada"``. By default, it's the first caller with a token that can read them.
        on_behalf_of: Whether to use the on-behalf-of grant of Microsoft Entra ID, which has no RFC 8693. It requires
            `scope`, and sends neither ``resource`` nor ``audience``.

    Raises:
        ValueError: An option is missing, or conflicts with another one.
    """
    return TokenExchange(
        client_id=client_id, client_secret=secret(client_secret), issuer=issuer, token_url=token_url,
        private_key=secret(private_key), key_id=key_id, scope=_scopes(scope), resource=resource, audience=audience,
        secret_in_form=secret_in_form, private_addresses=private_addresses,
        send_resource=send_resource, lists_from=lists_from, on_behalf_of=on_behalf_of,
    )  # fmt: skip


def per_user_oauth(
    *,
    client_id: str = "",
    client_secret: str | Secret = "",
    issuer: str = "",
    client_metadata_url: str = "",
    scope: str | Iterable[str] = (),
    private_addresses: bool = False,
    send_resource: bool = True,
    assume_pkce: bool = False,
    lists_from: str = "",
) -> PerUserOAuth:
    """Have each user connect their own account: ``auth=per_user_oauth()``.

    A call from a user without a connection asks them to open ``/connections``. Tokens are sealed in the server's store.
    The server needs ``auth=`` to tell users apart.

    Args:
        client_id: Client id of this gateway, if the authorization server doesn't register clients. Register it with the
            redirect URI ``YOUR-SERVER/connections/callback``.
        client_secret: Secret for `client_id`.
        issuer: The only authorization server to accept; required with `client_id`.
        client_metadata_url: URL of a client metadata document, by default the server's own.
        scope: Scopes to request, by default those that the upstream specifies.
        private_addresses: Whether to allow an authorization server in a private network.
        send_resource: Whether requests include the upstream's URL as ``resource``. To leave it out, `issuer` and
            `client_id` are required.
        assume_pkce: Whether the authorization server supports PKCE with S256, although its metadata doesn't list it;
            requires the same.
        lists_from: Id of the principal whose account reads the lists for all callers, as in the audit log. By default,
            it's the account that was connected first.

    Raises:
        ValueError: An option is missing or invalid.
    """
    return PerUserOAuth(
        client_id=client_id, client_secret=secret(client_secret), issuer=issuer,
        client_metadata_url=client_metadata_url, scope=_scopes(scope), private_addresses=private_addresses,
        send_resource=send_resource, assume_pkce=assume_pkce, lists_from=lists_from,
    )  # fmt: skip
