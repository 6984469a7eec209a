"""Authentication methods: ``Server(auth=auth.keys(…))`` and others. A list combines them.

Most functions return an `AuthMethod`, and each loads only the modules for it. A server without ``auth`` loads none. For
your own kind of credential, write an `AuthMethod`.
"""

from typing import TYPE_CHECKING, Any

from millstream._lazy import import_name

if TYPE_CHECKING:
    from millstream.auth._authorization_server.config import client, identity_provider
    from millstream.auth._authorization_server.server import issuer
    from millstream.auth._authorization_server.upstreams import github, google, login_provider
    from millstream.auth._authorization_server.users import users
    from millstream.auth._key_file import keys
    from millstream.auth._method import AnyAuthMethod, AuthMethod, Identity, Rejection, Unavailable
    from millstream.auth._oidc import oidc
    from millstream.auth._provider_token import ProviderToken, provider_token
    from millstream.auth._tokens import introspection, jwt

_HOMES = {
    "AnyAuthMethod": "_method",
    "AuthMethod": "_method",
    "Identity": "_method",
    "ProviderToken": "._server.calls.services",
    "Rejection": "_method",
    "Unavailable": "_method",
    "client": "_authorization_server.config",
    "github": "_authorization_server.upstreams",
    "google": "_authorization_server.upstreams",
    "identity_provider": "_authorization_server.config",
    "introspection": "_tokens",
    "issuer": "_authorization_server.server",
    "jwt": "_tokens",
    "keys": "_key_file",
    "login_provider": "_authorization_server.upstreams",
    "oidc": "_oidc",
    "provider_token": "_provider_token",
    "users": "_authorization_server.users",
}
"""Public name -> module, imported on first use."""

_SIGN_IN = "Write auth.login_provider, or auth.google or auth.github."
_ELSEWHERE = {
    "AuthSettings": "Write Server(auth=auth.oidc(…)).",
    "BearerAuth": "A client takes headers={'Authorization': 'Bearer KEY'}, a server auth.keys or auth.jwt.",
    "BearerAuthProvider": "Write auth.jwt(…).",
    "JWTVerifier": "Write auth.jwt(…).",
    "MultiAuth": "Write a list: Server(auth=[auth.keys(…), auth.jwt(…)]).",
    "OAuth": "Import it from millstream.client.",
    "OAuthProvider": "Write auth.issuer(…).",
    "OAuthProxy": _SIGN_IN,
    "OIDCProxy": _SIGN_IN,
    "RemoteAuthProvider": "Write auth.oidc(…).",
    "StaticTokenVerifier": "Write auth.keys(…).",
    "TokenVerifier": "Write auth.jwt(…) or auth.introspection(…).",
    "api_key": "Write auth.keys(…).",
    "bearer": "Write auth.keys(…) or auth.jwt(…). For upstreams, import it from millstream.gateway.",
}
"""Names in other packages -> their replacements here."""

__all__ = [
    "AnyAuthMethod",
    "AuthMethod",
    "Identity",
    "ProviderToken",
    "Rejection",
    "Unavailable",
    "client",
    "github",
    "google",
    "identity_provider",
    "introspection",
    "issuer",
    "jwt",
    "keys",
    "login_provider",
    "oidc",
    "provider_token",
    "users",
]


def __getattr__(name: str) -> Any:
    return import_name(__name__, _HOMES, name, _ELSEWHERE)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
