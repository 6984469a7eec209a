"""A way to tell who a credential belongs to: keys, signed tokens, an introspection endpoint.

A method knows one kind of credential and nothing of HTTP. The guard asks the methods of a server in their order, and
keeps what they found.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol, runtime_checkable

from msgspec import Struct

from millstream._http.message import Handler, HttpRequest, Response
from millstream._limits.store_limiter import StoreLimiter
from millstream._protocol.principal import Principal
from millstream._server.calls.services import Services


class Identity(Struct, frozen=True):
    """Whom a credential belongs to."""

    principal: Principal
    seconds: float
    """For how long that may be believed without asking the method again."""


class Unavailable(Exception):
    """A method cannot tell now: what it needs for that does not answer. The caller may try again."""

    def __init__(self, text: str, why: str = "") -> None:
        """Say so.

        Args:
            text: for the caller, who learns nothing of the network here.
            why: for whoever runs the server.
        """
        super().__init__(text)
        self.why: str = why or text


class NotAdmitted(Exception):
    """Somebody was not let in by name and password; the text is shown to them."""

    def __init__(self, text: str, status: int, *, wrong: bool) -> None:
        """Say why.

        Args:
            text: for the person.
            status: of the reply.
            wrong: the name or the password is wrong: it counts as a failed sign-in of the address.
        """
        super().__init__(text)
        self.status = status
        self.wrong = wrong


@runtime_checkable
class Fetching(Protocol):
    """An upstream or a key set, which depends on what an issuer says."""

    async def prefetch(self) -> None:
        """Fetch that before somebody needs it. If it can't be had, the log says so, and it's asked for again later."""


async def prefetch_all(those: Iterable[Fetching]) -> None:
    """Have all of them fetch at once. One that fails stops none of the others.

    Raises:
        ExceptionGroup: some have failed otherwise than by not being answered.
    """
    found = await asyncio.gather(*(each.prefetch() for each in those), return_exceptions=True)
    failed = [each for each in found if isinstance(each, Exception)]
    if failed:
        raise ExceptionGroup("What issuers say can't be read", failed)


class AuthMethod:
    """One kind of credential. A subclass overrides `identify` and `holds`, and what else its kind needs."""

    resource: str = ""
    """The URL that tokens of this kind are for; empty for a kind that counts anywhere."""
    issuers: tuple[str, ...] = ()
    """The authorization servers whose tokens these are; empty where there is none to send a client to."""
    scopes: tuple[str, ...] = ()
    """Scopes that every caller needs."""
    shows: bool = False
    """`identify` shows the credential to others, such as an endpoint elsewhere: it's asked after all other methods."""

    async def identify(self, credential: str) -> Identity | None:
        """Return the owner of a credential, or None if it isn't valid here.

        Raises:
            Unavailable: that can't be found out now.
        """
        raise NotImplementedError

    def holds(self, id: str) -> bool:
        """Return whether a principal with this id may still have a credential: the streams of others are ended."""
        raise NotImplementedError

    def epoch(self) -> int:
        """Return a number that changes when a credential may have been revoked. Called once a second by every guard
        that has this method; it may look at a file for that.
        """
        return 0

    async def prefetch(self) -> None:
        """Fetch what issuers say before a caller needs it. A failure is logged, and it's asked for again later."""

    def paths(self) -> Mapping[str, Mapping[str, Handler]]:
        """Return handlers by path and method, for paths that stand before the guard."""
        return {}

    def shared_paths(self) -> frozenset[str]:
        """Return the paths that pages of any origin may use: no cookie counts there."""
        return frozenset()

    def share(self, pool: StoreLimiter) -> None:
        """Count attempts in `pool` from now on, for all workers together."""

    def tell(self, refused: Callable[[str], None]) -> None:
        """Call `refused` with the address of every wrong credential at the method's own paths, from now on."""

    def close(self) -> None:
        """Release what the method holds: the server stops."""


class Landing(Protocol):
    """The server's own pages, for those who come back to them from a sign-in elsewhere."""

    def land(self, request: HttpRequest, page: str, kept: bytes, seconds: float = ...) -> Response:
        """Let somebody in, and lead them to the page that they wanted.

        Args:
            request: by which they came back.
            page: that they wanted.
            kept: what stands for them: see `PageMethod.admit`; of a method that isn't one, the credential.
            seconds: for which that may count at most.
        """
        ...

    def refuse(self, request: HttpRequest, page: str, text: str) -> Response:
        """Ask again, and say why."""
        ...


class PageMethod(AuthMethod):
    """A method by which people sign in to the server's own pages."""

    logins: Mapping[str, str] = {}
    """Name -> what the button says, for logins at other sites."""
    by_password: bool = False
    """People have a name and password here."""
    recalls: bool = False
    """A cookie of this method names a person (`recall`), and not a credential (`identify`)."""
    landing: Landing | None = None
    """Where people come back to; None where there are no pages."""

    async def lead(self, request: HttpRequest, login: str, page: str) -> Response:
        """Return the page that leads a browser away, by one of the logins, to come back for a page.

        Raises:
            NotAdmitted: it can't be sent there now.
        """
        raise NotImplementedError

    async def admit(self, request: HttpRequest, name: str, password: str) -> tuple[bytes, bytes]:
        """Return what identifies a person from now on, which the caller seals, and header lines for the reply.

        Raises:
            NotAdmitted: the name or the password is wrong, or there were too many tries.
        """
        raise NotImplementedError

    async def recall(self, kept: bytes) -> Identity | None:
        """Return the person now; None for one who was removed or has another password."""
        raise NotImplementedError


@runtime_checkable
class Unbound(Protocol):
    """What becomes a method only once a server runs, because it has its state in the server's store."""

    def bind(self, services: Services, name: str, known: Callable[[], Collection[str]]) -> AuthMethod:
        """The method of one running server.

        Args:
            services: of that server.
            name: what it is called.
            known: the scopes that something of it takes now.
        """
        ...


Given = AuthMethod | Unbound
