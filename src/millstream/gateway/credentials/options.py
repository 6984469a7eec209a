"""How calls get their credentials for an upstream, as data: ``mcp.upstream("shop", url, auth=bearer(env="TOKEN"))``.

Each kind is a frozen Struct, tagged by `kind`, so that a configuration file decodes to the same values. A secret is
named by an environment variable or a file. Its text is in no representation and can't be encoded.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from millstream._protocol.errors import LocalError
from millstream._protocol.suggestions import Suggesting

_MAX_SECRET: Final = 64 * 1024
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")
"""RFC 6749 §3.3."""


class SecretText:
    """The text of a secret that a program gave."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text."""
        return self._text

    def __repr__(self) -> str:
        return "SecretText(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretText) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> str:
        raise TypeError("A secret can't be pickled or copied into a file.")


class Secret(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, metaclass=Suggesting):
    """A secret by where it is: ``Secret(env="SHOP_TOKEN")`` or ``Secret(file="/run/secrets/shop")``."""

    env: str = ""
    """The environment variable."""
    file: str = ""
    """The file. It's read again when the upstream refuses the secret, so a rotated one counts without a restart."""
    text: SecretText | None = None
    """The secret itself, from a program and never from a file. See `secret`."""

    def __post_init__(self) -> None:
        if sum((bool(self.env), bool(self.file), self.text is not None)) != 1:
            raise ValueError("A secret is one of env, the name of a variable, and file, the path of a file.")

    def read(self, whose: str) -> str:
        """Return the secret, without blanks around it.

        Args:
            whose: for errors, such as ``the upstream 'shop'``.

        Raises:
            LocalError: it isn't there, or can't be sent in a header.
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
                why = exc.strerror if isinstance(exc, OSError) else "it isn't UTF-8"
                raise LocalError(f"{where} with a secret of {whose} can't be read: {why}.") from None
        value = value.strip()
        if not value:
            raise LocalError(f"{where} has no secret for {whose}. Set it before the server starts.")
        return value


def secret(value: "str | Secret | None", env: str = "", file: str = "") -> Secret | None:
    """Return a `Secret` of a text, a variable, or a file; None if nothing is given.

    Raises:
        ValueError: more than one is given.
    """
    if isinstance(value, Secret):
        if env or file:
            raise ValueError("Give one secret: the text, env=, or file=.")
        return value
    if not (value or env or file):
        return None
    return Secret(env=env, file=file, text=SecretText(value) if value else None)


class BearerToken(Secret, frozen=True, kw_only=True, tag_field="kind", tag="bearer"):
    """One token for all callers: ``{kind = "bearer", env = "SHOP_TOKEN"}``."""


class StaticHeaders(
    Struct, frozen=True, kw_only=True, tag_field="kind", tag="headers", forbid_unknown_fields=True, metaclass=Suggesting
):
    """Secret headers, the same for all callers: ``{kind = "headers", headers = {x-api-key = {env = "SHOP_KEY"}}}``."""

    headers: dict[str, Secret]


def is_scope(text: str) -> bool:
    """Return whether a text can be a scope (RFC 6749 §3.3)."""
    return _SCOPE.fullmatch(text) is not None


class _Grant(
    Struct, frozen=True, kw_only=True, tag_field="kind", omit_defaults=True, forbid_unknown_fields=True,
    metaclass=Suggesting,
):  # fmt: skip
    """What the kinds that ask an authorization server have in common."""

    issuer: str = ""
    """The authorization server, by its exact name. Credentials go to no other one."""
    client_id: str = ""
    client_secret: Secret | None = None
    scope: tuple[str, ...] = ()
    """Scopes to ask for; without any, those that the upstream or the authorization server chooses."""
    private_addresses: bool = False
    """The authorization server may be in a private network. Otherwise it may only if the upstream's URL is."""

    def __post_init__(self) -> None:
        for each in self.scope:
            if not is_scope(each):
                raise ValueError(f"{each!r} isn't a scope.")
        if self.client_secret is not None and not self.client_id:
            raise ValueError("A client_secret needs its client_id.")


class _Signing(_Grant, frozen=True, kw_only=True):
    """What those that run without a person have besides."""

    token_url: str = ""
    """The token endpoint, for an authorization server without metadata."""
    private_key: Secret | None = None
    """A private key in PEM instead of a client secret (`private_key_jwt`, RFC 7523)."""
    key_id: str = ""
    """The name of that key at the authorization server."""
    secret_in_form: bool = False
    """Send the client secret in the form (`client_secret_post`), not in a header (`client_secret_basic`)."""
    resource: str = ""
    """The name under which the authorization server knows the upstream (RFC 8707); its URL by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.issuer) == bool(self.token_url):
            raise ValueError("Name the authorization server: issuer, or token_url if it has no metadata.")
        if self.private_key is not None and (self.client_secret is not None or not self.client_id):
            raise ValueError("A private_key needs a client_id, and no client_secret.")


class ClientCredentials(_Signing, frozen=True, kw_only=True, tag="client_credentials"):
    """The gateway's own access token, the same for all callers (RFC 6749 §4.4)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.client_id or (self.client_secret is None and self.private_key is None):
            raise ValueError("client_credentials needs a client_id, and a client_secret or a private_key.")


class TokenExchange(_Signing, frozen=True, kw_only=True, tag="token_exchange"):
    """Each caller's own access token, exchanged for one for the upstream (RFC 8693)."""

    audience: str = ""
    """The logical name of the upstream at the authorization server, where it goes by that and not by `resource`."""


class PerUserOAuth(_Grant, frozen=True, kw_only=True, tag="per_user_oauth"):
    """Each person's own connection (OAuth 2.1 with PKCE)."""

    client_metadata_url: str = ""
    """A page about this client, for authorization servers that read it (CIMD); by default one that this server has."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.client_id and not self.issuer:
            raise ValueError("A client_id is for one authorization server: name it with issuer.")


Credentials = BearerToken | StaticHeaders | ClientCredentials | TokenExchange | PerUserOAuth


def _scopes(scope: str | Iterable[str]) -> tuple[str, ...]:
    return tuple(scope.split() if isinstance(scope, str) else scope)


def bearer(token: str | Secret = "", *, env: str = "", file: str = "") -> BearerToken:
    """Send one token for all callers: ``auth=bearer(env="SHOP_TOKEN")``.

    Args:
        token: the token; better not in the text of a program.
        env: the environment variable that has it.
        file: the file that has it. It's read again when the upstream refuses the token.

    Raises:
        ValueError: not exactly one of them is given.
    """
    found = secret(token, env, file)
    if found is None:
        raise ValueError("bearer() needs a token: bearer(env='NAME')")
    return BearerToken(env=found.env, file=found.file, text=found.text)


def static_headers(headers: Mapping[str, str | Secret]) -> StaticHeaders:
    """Send secret headers for all callers: ``auth=static_headers({"x-api-key": Secret(env="SHOP_KEY")})``.

    Raises:
        ValueError: a header has no value.
    """
    found = {name: secret(value) for name, value in headers.items()}
    if not found or None in found.values():
        raise ValueError("static_headers() needs headers, each with a value")
    return StaticHeaders(headers={name: value for name, value in found.items() if value is not None})


def client_credentials(
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
) -> ClientCredentials:
    """Send an access token of the gateway's own: ``auth=client_credentials("gw", Secret(env="S"), issuer="https://…")``.

    All workers share one token, and one of them renews it before it expires.

    Args:
        client_id: by which the authorization server knows this gateway.
        client_secret: the secret that goes with it.
        issuer: the authorization server, by its exact name.
        token_url: its token endpoint instead, if it has no metadata.
        private_key: a private key in PEM instead of a secret.
        key_id: the name of that key there.
        scope: scopes to ask for.
        resource: the name of the upstream there (RFC 8707); its URL by default.
        secret_in_form: send the secret in the form, not in a header.
        private_addresses: the authorization server may be in a private network.

    Raises:
        ValueError: something is missing, or excludes something else.
    """
    return ClientCredentials(
        client_id=client_id, client_secret=secret(client_secret), issuer=issuer, token_url=token_url,
        private_key=secret(private_key), key_id=key_id, scope=_scopes(scope), resource=resource,
        secret_in_form=secret_in_form, private_addresses=private_addresses,
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
) -> TokenExchange:
    """Exchange each caller's access token for one for the upstream: ``auth=token_exchange(issuer="https://…")``.

    The server needs ``auth=`` that takes tokens of an issuer: the caller's token is verified before it's exchanged. An
    exchanged token is used for that caller alone, and no longer than either token lives.

    Args:
        issuer: the authorization server that exchanges tokens, by its exact name.
        token_url: its token endpoint instead, if it has no metadata.
        client_id: by which it knows this gateway, where it wants to.
        client_secret: the secret that goes with it.
        private_key: a private key in PEM instead of a secret.
        key_id: the name of that key there.
        scope: scopes to ask for.
        resource: the name of the upstream there (RFC 8707); its URL by default.
        audience: its logical name there, besides.
        secret_in_form: send the secret in the form, not in a header.
        private_addresses: the authorization server may be in a private network.

    Raises:
        ValueError: something is missing, or excludes something else.
    """
    return TokenExchange(
        client_id=client_id, client_secret=secret(client_secret), issuer=issuer, token_url=token_url,
        private_key=secret(private_key), key_id=key_id, scope=_scopes(scope), resource=resource, audience=audience,
        secret_in_form=secret_in_form, private_addresses=private_addresses,
    )  # fmt: skip


def per_user_oauth(
    *,
    client_id: str = "",
    client_secret: str | Secret = "",
    issuer: str = "",
    client_metadata_url: str = "",
    scope: str | Iterable[str] = (),
    private_addresses: bool = False,
) -> PerUserOAuth:
    """Let each person connect their own account: ``auth=per_user_oauth()``.

    A call of a person without a connection asks them to open ``/connections``. Tokens are sealed in the server's store.
    The server needs ``auth=``, which tells people apart.

    Args:
        client_id: by which the authorization server knows this gateway, if it doesn't register clients. Register it
            with the redirect URL ``YOUR-SERVER/connections/callback``.
        client_secret: the secret that goes with it.
        issuer: the only authorization server to accept; needed with `client_id`.
        client_metadata_url: a page about this client; by default the server's own.
        scope: scopes to ask for; by default those that the upstream names.
        private_addresses: the authorization server may be in a private network.

    Raises:
        ValueError: something is missing, or can't be.
    """
    return PerUserOAuth(
        client_id=client_id, client_secret=secret(client_secret), issuer=issuer,
        client_metadata_url=client_metadata_url, scope=_scopes(scope), private_addresses=private_addresses,
    )  # fmt: skip
