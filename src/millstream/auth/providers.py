"""Base classes for customizing sign-in: ``auth.issuer(…, provider=Mine())`` and ``users=``."""

from millstream.auth._authorization_server.login_methods import (
    AuthorizationRedirect,
    Callback,
    LoginMethod,
    SignInFailed,
    Upstream,
    User,
)
from millstream.auth._authorization_server.provider import Provider, Refused
from millstream.auth._authorization_server.records import Client

__all__ = [
    "AuthorizationRedirect",
    "Callback",
    "Client",
    "LoginMethod",
    "Provider",
    "Refused",
    "SignInFailed",
    "Upstream",
    "User",
]
