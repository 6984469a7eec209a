"""The interface of login methods: how the authorization server finds out who is signing in.

A login method either checks a name and password from our own page (`Passwords`, such as `user_file`), or redirects the
browser to an `UpstreamLogin`: OpenID Connect, Google, GitHub.

To implement an upstream, write a class with `name`, `label`, `begin`, and `finish`. The authorization server does the
rest: it asks for consent before it calls `begin`, creates `state` (random, single use, valid for ten minutes, bound to
the browser by a cookie), serves the callback at ``ISSUER/sign-in/callback/NAME``, checks `state` there, and calls
`finish`. Whatever `begin` has to remember, such as a nonce and a PKCE verifier, goes into
`AuthorizationRedirect.state_data`, which `finish` receives. An upstream keeps no state of its own, because another
worker may call `finish`. ::

    class Example:
        name, label = "example", "Continue with Example"

        async def begin(self, callback: str, state: str) -> AuthorizationRedirect:
            return AuthorizationRedirect(f"https://id.example/authorize?redirect_uri={quote(callback)}&state={state}")

        async def finish(self, callback: Callback) -> User:
            person = await exchange(callback.query["code"], callback.url)  # raises SignInFailed
            return User(person.id, person.name)

Then pass ``auth.issuer(URL, users=Example())``, or a list of login methods. The `User.subject` from `finish` becomes
``example:SUBJECT``, so that subjects of different methods never clash.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from msgspec import Struct


class SignInFailed(Exception):
    """The login failed; the message is shown to the user."""


class User(Struct, frozen=True, omit_defaults=True):
    """A user who has signed in."""

    subject: str
    """Permanent identifier, never reused for another user."""
    name: str = ""
    """Name shown on our pages."""
    scopes: tuple[str, ...] = ()
    """Scopes that the user may grant to a client in addition to the default ones; ``*`` for all."""
    since: float = 0.0
    """Number that changes when earlier consents must no longer apply: for a later account of the same name, or after a
    new password.
    """


class AuthorizationRedirect(Struct, frozen=True):
    """Where to redirect the browser."""

    url: str
    state_data: bytes = b""
    """State for `finish`, at most 2 KiB; stored sealed."""


class Callback(Struct, frozen=True):
    """The redirect back from an upstream."""

    query: Mapping[str, str]
    """Query parameters: ``code`` or ``error``. No parameter is repeated, and `state` has been checked."""
    url: str
    """URL of the callback, as passed to `begin`."""
    state_data: bytes
    """State from `begin`."""


@runtime_checkable
class UpstreamLogin(Protocol):
    """An external login."""

    name: str
    """Name in the callback's URL: lower-case letters, digits, and dashes."""
    label: str
    """Label of the button, such as ``Continue with Google``."""

    async def begin(self, callback: str, state: str) -> AuthorizationRedirect:
        """Return where to redirect the browser, so that it comes back to `callback` with `state`.

        Raises:
            SignInFailed: the upstream isn't available.
        """
        ...

    async def finish(self, callback: Callback) -> User:
        """Return the user who returned from the login.

        Raises:
            SignInFailed: the login failed, or the user may not sign in.
        """
        ...


@runtime_checkable
class UpstreamWithPrompt(UpstreamLogin, Protocol):
    """An upstream that supports a client's `prompt`: the user has to sign in again, or to select an account."""

    async def begin_anew(self, callback: str, state: str, prompt: str) -> AuthorizationRedirect:
        """Return where to redirect a user who has to sign in again or select an account.

        `prompt` is ``login``, ``select_account``, or both separated by a space. Otherwise like `begin`.
        """
        ...


@runtime_checkable
class Selective(UpstreamLogin, Protocol):
    """An upstream that can stop admitting a user who has signed in before."""

    def still(self, user: User) -> bool:
        """Return whether the user may still sign in, without I/O. `user` has the `name`, `scopes`, and `since` of
        `finish`.
        """
        ...


class Passwords(Protocol):
    """Accounts with a name and password on this server."""

    async def check(self, name: str, password: str) -> User | None:
        """Return the user; None for a wrong name or password, after the same time.

        Raises:
            SignInFailed: the check isn't possible at the moment.
        """
        ...

    def find(self, subject: str) -> User | None:
        """Return a user who has signed in before; None if they may no longer sign in."""
        ...

    def epoch(self) -> int:
        """Return a number that changes when an account may have been removed. Called once a second."""
        ...


class TrustedIdentityProvider(Struct, frozen=True):
    """An organization's identity provider, which issues grants to clients of its members without a login page."""

    issuer: str
    scopes: tuple[str, ...]
    """Maximum scopes of its grants, in addition to the default ones."""
    number: float
    """Number that changes with the scopes, which ends earlier grants."""


LoginMethod = UpstreamLogin | Passwords | TrustedIdentityProvider
