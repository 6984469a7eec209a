"""Base classes for customizing sign-in with ``auth.issuer(…, provider=…, users=…)``."""

from millstream.auth._authorization_server.login_methods import (
    AuthorizationRedirect,
    Callback,
    LoginMethod,
    SignInFailed,
    UpstreamLogin,
    User,
)
from millstream.auth._authorization_server.provider import Provider, RegistrationDenied
from millstream.auth._authorization_server.records import OAuthClient

__all__ = [
    "AuthorizationRedirect",
    "Callback",
    "LoginMethod",
    "OAuthClient",
    "Provider",
    "RegistrationDenied",
    "SignInFailed",
    "UpstreamLogin",
    "User",
]
