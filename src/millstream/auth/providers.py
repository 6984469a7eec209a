"""Base classes for customizing sign-in with ``auth.issuer(…, provider=…, users=…)``.

Experimental: a minor version can change it. See Stability in the documentation.

A login method identifies the user who signs in to the authorization server. It either checks a name and password from
our own page (`Passwords`, such as ``auth.users``), or redirects the browser to another site (`UpstreamLogin`: OpenID
Connect, Google, GitHub).

To implement an upstream, write a class with `name`, `label`, `begin`, and `finish`. The authorization server does the
rest: it asks for consent, creates `state` (random, single use, valid for ten minutes, bound to the browser by a
cookie), calls `begin`, serves the callback at ``ISSUER/sign-in/callback/NAME``, checks `state` there, and calls
`finish`. Return data such as a nonce and a PKCE verifier in `AuthorizationRedirect.state_data`, which is passed to
`finish`. Don't store state in the object, because another worker can call `finish`. ::

    class Example:
        name, label = "example", "Continue with Example"

        async def begin(self, callback: str, state: str) -> AuthorizationRedirect:
            return AuthorizationRedirect(f"https://id.example/authorize?redirect_uri={quote(callback)}&state={state}")

        async def finish(self, callback: Callback) -> User:
            person = await exchange(callback.query["code"], callback.url)  # raises SignInFailed
            return User(person.id, person.name)

Then pass it to ``auth.issuer(URL, users=Example())``, alone or in a list of login methods. The `User.subject` from
`finish` becomes ``example:SUBJECT``, so that subjects of different methods never collide.

To change other decisions, subclass `Provider`, override some of its methods, and pass an instance. The authorization
server remains responsible for the protocol: redirect URIs, PKCE, codes, rotation, and revocation can't be overridden,
so no subclass can weaken them. ::

    class Ours(Provider):
        async def find_client(self, client_id: str) -> OAuthClient | None:
            row = await database.client(client_id)
            return row and auth.client(row.id, name=row.name, redirect_uris=row.uris)

        async def grantable(self, user: User, client: OAuthClient, scopes: tuple[str, ...]) -> tuple[str, ...]:
            return scopes if user.subject in await database.staff() else ()
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from msgspec import Struct

from millstream._copies import CopyableError
from millstream._protocol.principal import EVERYTHING
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


class SignInFailed(CopyableError):
    """The login failed. The message is shown to the user."""


class User(Struct, frozen=True, omit_defaults=True):
    """A user who has signed in."""

    subject: str
    """Permanent identifier, never reassigned to another user."""
    name: str = ""
    """Name shown on our pages."""
    scopes: tuple[str, ...] = ()
    """Scopes that the user can grant to a client in addition to the default ones; ``*`` for all."""
    since: float = 0.0
    """Number that changes when earlier consents must no longer apply: for a new account of the same name, and after a
    password change.
    """
    groups: tuple[str, ...] = ()
    """Groups for policies, in the claim `groups` of the user's tokens."""
    login: str = ""
    """Name of the upstream or issuer of the identity provider, set by the server. Empty for users with a password."""


class AuthorizationRedirect(Struct, frozen=True):
    """A redirect to an upstream."""

    url: str
    state_data: bytes = b""
    """State for `finish`, up to 2 KiB. It's stored sealed."""


class Callback(Struct, frozen=True):
    """The redirect back from an upstream."""

    query: Mapping[str, str]
    """Query parameters, such as ``code`` or ``error``. None are repeated, and `state` has been checked."""
    url: str
    """URL of the callback, as passed to `begin`."""
    state_data: bytes
    """The state that `begin` returned."""


class RedirectTarget(Protocol):
    """A site that browsers are redirected to."""

    name: str
    """Name in the callback's URL: lower-case letters, digits, and dashes."""
    label: str
    """Label of the button, such as ``Continue with Google``."""

    async def begin(self, callback: str, state: str) -> AuthorizationRedirect:
        """Return the redirect to the upstream, which must redirect back to `callback` with `state`.

        Args:
            callback: URL of this server to which the upstream redirects.
            state: Value of the ``state`` parameter (RFC 6749 §4.1.1). It's checked before `finish` is called.

        Raises:
            SignInFailed: The upstream isn't available.
        """
        ...


@runtime_checkable
class UpstreamLogin(RedirectTarget, Protocol):
    """An external login."""

    async def finish(self, callback: Callback) -> User:
        """Return the user who returned from the login.

        Args:
            callback: The query of the redirect, and the state that `begin` returned.

        Raises:
            SignInFailed: The login failed, or the user may not sign in.
        """
        ...


@runtime_checkable
class UpstreamWithPrompt(UpstreamLogin, Protocol):
    """An upstream that supports a client's `prompt`, which makes the user sign in again or select an account."""

    async def begin_anew(self, callback: str, state: str, prompt: str) -> AuthorizationRedirect:
        """Return the redirect for a user who has to sign in again or select an account.

        `prompt` is ``login``, ``select_account``, or both separated by a space. Apart from that, see `begin`.
        """
        ...


@runtime_checkable
class RevocableLogin(UpstreamLogin, Protocol):
    """An upstream that can revoke the access of a user who has signed in before."""

    def still(self, user: User) -> bool:
        """Return whether the user may still sign in, without I/O. `user` has the `name`, `scopes`, and `since` that
        `finish` returned.
        """
        ...


class Passwords(Protocol):
    """Accounts with a name and password on this server."""

    async def check(self, name: str, password: str) -> User | None:
        """Return the user, or None for a wrong name or password. Takes the same time in all cases.

        Raises:
            SignInFailed: The check isn't possible at the moment.
        """
        ...

    def find(self, subject: str) -> User | None:
        """Return a user who has signed in before, or None if they may no longer sign in."""
        ...

    def epoch(self) -> int:
        """Return a number that changes when an account may have been removed. Called once a second."""
        ...


class TrustedIdentityProvider(Struct, frozen=True):
    """An organization's identity provider, which issues grants to its members' clients without a login page."""

    issuer: str
    scopes: tuple[str, ...]
    """The only scopes that its grants can have, in addition to the default ones."""
    number: float
    """Hash of the issuer and scopes. A change revokes earlier grants."""


LoginMethod = UpstreamLogin | Passwords | TrustedIdentityProvider


class RegistrationDenied(CopyableError):
    """The request isn't allowed. The message is shown to the client."""


class Provider:
    """Decisions of the authorization server, with defaults."""

    async def find_client(self, client_id: str) -> OAuthClient | None:
        """Return a client, or None to look in ``auth.issuer(clients=…)``, metadata documents, and registrations.

        Args:
            client_id: The ``client_id`` of the request (RFC 6749 §2.2).
        """
        return None

    async def check_registration(self, client: OAuthClient) -> None:
        """Check the registration of a client (RFC 7591).

        Args:
            client: The client as it described itself. Its names and URLs aren't verified.

        Raises:
            RegistrationDenied: The client may not register. The client sees the message.
        """

    async def grantable(self, user: User, client: OAuthClient, scopes: tuple[str, ...]) -> tuple[str, ...]:
        """Return the subset of `scopes` that a user can grant to a client. Called at consent and at each refresh.

        Args:
            user: The user who signed in, with their scopes.
            client: The client that asks.
            scopes: The requested scopes.
        """
        return scopes if EVERYTHING in user.scopes else tuple(each for each in scopes if each in user.scopes)

    async def may_skip_consent(self, user: User, client: OAuthClient, scopes: tuple[str, ...]) -> bool:
        """Return whether an earlier consent may be reused. If not, the consent page is shown.

        Called only if the redirect can't be intercepted and the user has consented to these scopes.

        Args:
            user: The user who signed in.
            client: The client that asks.
            scopes: The scopes that the user consented to before.
        """
        return True

    async def claims(self, user: User, client: OAuthClient) -> Mapping[str, object]:
        """Return additional claims for access tokens. Protocol claims can't be overridden.

        Args:
            user: The user who signed in.
            client: The client that gets the token.
        """
        return {}
