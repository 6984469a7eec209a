"""The seam for signing in: how the authorization server finds out which person sits at the browser.

A login method either asks for a name and password on our own page (`Passwords`, such as `user_file`), or sends the
browser to an `Upstream`: OpenID Connect, Google, GitHub.

To implement an upstream, write a class with `name`, `label`, `begin` and `finish`. The authorization server does the
rest: it has asked the person for consent before it calls `begin`, it makes `state` (random, for one use, for ten
minutes, bound to this browser by a cookie), has the callback at ``ISSUER/sign-in/callback/NAME``, checks `state` there,
and calls `finish`. What `begin` wants to remember, such as a nonce and a PKCE verifier, it gives as
`AuthorizationRedirect.kept`; `finish` gets it back. An upstream keeps no state of its own: another worker may call
`finish`. ::

    class Example:
        name, label = "example", "Continue with Example"

        async def begin(self, callback: str, state: str) -> AuthorizationRedirect:
            return AuthorizationRedirect(f"https://id.example/authorize?redirect_uri={quote(callback)}&state={state}")

        async def finish(self, callback: Callback) -> User:
            person = await exchange(callback.query["code"], callback.url)  # raises SignInFailed
            return User(person.id, person.name)

Then ``auth.issuer(URL, users=Example())``, or a list of login methods. What `finish` gives as `User.subject` becomes
``example:SUBJECT``, so that nobody is somebody else's namesake.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from msgspec import Struct


class SignInFailed(Exception):
    """The person could not be signed in; the text is shown to them."""


class User(Struct, frozen=True, omit_defaults=True):
    """A person who has signed in."""

    subject: str
    """Who it is, for good: never given to another person."""
    name: str = ""
    """What they are called on our pages."""
    scopes: tuple[str, ...] = ()
    """What they may hand on to a client besides what everybody may; ``*`` is all."""
    since: float = 0.0
    """A number that is another one as soon as what they allowed before must not count: for a namesake who was added
    later, or after a new password."""


class AuthorizationRedirect(Struct, frozen=True):
    """Where the browser is sent."""

    url: str
    kept: bytes = b""
    """At most 2 KiB; sealed while it is kept."""


class Callback(Struct, frozen=True):
    """The browser is back."""

    query: Mapping[str, str]
    """What it brings: ``code``, or ``error``. No parameter was there twice, and `state` is checked."""
    url: str
    """The URL to which it came, as `begin` got it."""
    kept: bytes
    """What `begin` gave."""


@runtime_checkable
class Upstream(Protocol):
    """Somebody else signs people in."""

    name: str
    """In the callback's URL: lower-case letters, digits and dashes."""
    label: str
    """On the button: ``Continue with Google``."""

    async def begin(self, callback: str, state: str) -> AuthorizationRedirect:
        """Where to send the browser, so that it comes back to `callback` with `state`.

        Raises:
            SignInFailed: the upstream cannot be used now.
        """
        ...

    async def finish(self, callback: Callback) -> User:
        """Who came back.

        Raises:
            SignInFailed: nobody did, or nobody who may.
        """
        ...


@runtime_checkable
class Renewing(Upstream, Protocol):
    """An upstream that takes the wish of a client: whoever comes back has signed in now, or chosen who they are."""

    async def begin_anew(self, callback: str, state: str, prompt: str) -> AuthorizationRedirect:
        """Where to send the browser of somebody who is to sign in again, or to choose who they are.

        `prompt` is ``login``, ``select_account``, or both with a blank between them. Otherwise as `begin`.
        """
        ...


@runtime_checkable
class Selective(Upstream, Protocol):
    """An upstream that may stop letting somebody in who has signed in before."""

    def still(self, user: User) -> bool:
        """Whether they still may. Of what `finish` gave, `name`, `scopes` and `since` are there; and no I/O is done."""
        ...


class Passwords(Protocol):
    """People who have a name and password here."""

    async def check(self, name: str, password: str) -> User | None:
        """The person; None for a wrong name or password, which takes as long.

        Raises:
            SignInFailed: nobody can tell now.
        """
        ...

    def find(self, subject: str) -> User | None:
        """The person, who has signed in before; None for somebody who may not any more."""
        ...

    def epoch(self) -> int:
        """A number that changes when somebody may have been removed. Asked once a second."""
        ...


class IdentityProvider(Struct, frozen=True):
    """An organization's provider, which lets its people in without a page: it gives grants to their clients."""

    issuer: str
    scopes: tuple[str, ...]
    """What its grants give at most, besides what everybody gets."""
    number: float
    """Another one for other scopes: what was allowed before ends."""


LoginMethod = Upstream | Passwords | IdentityProvider
