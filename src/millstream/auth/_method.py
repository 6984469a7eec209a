"""A way to tell who a credential belongs to: keys, signed tokens, an introspection endpoint.

A method knows one kind of credential and nothing of HTTP. The guard asks the methods of a server in their order, and
keeps what they found.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol, runtime_checkable

from msgspec import Struct

from millstream._http.message import Handler, Request, Response
from millstream._limits.pool import Pool
from millstream._protocol.principal import Principal
from millstream._server.calls.services import Services


class Identity(Struct, frozen=True):
    """Whom a credential belongs to."""

    principal: Principal
    seconds: float
    """For how long that may be believed without asking the method again."""
    thumbprint: str = ""
    """Of the key that the credential is bound to: it counts only with a proof of that key (RFC 9449 §6)."""


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


class NonceWanted(Exception):
    """A proof is good, but may be of a time of which this process knows nothing: it takes this nonce."""


class Forging(Exception):
    """Too many proofs with a key had wrong signatures."""

    def __init__(self, head: bytes) -> None:
        """`head` tells when to come back."""
        super().__init__()
        self.head = head


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


class Method(Protocol):
    """One kind of credential."""

    resource: str
    """The URL that tokens of this kind are for; empty for a kind that anybody can use anywhere."""
    issuers: tuple[str, ...]
    """The authorization servers whose tokens these are; empty where there is none to send a client to."""
    scopes: tuple[str, ...]
    """Scopes without which nobody gets in."""
    binds: bool
    """Credentials of this kind may be bound to a key, of which each request has a proof (DPoP, RFC 9449)."""
    shows: bool
    """Whoever is asked sees the credential, such as an endpoint elsewhere: it's asked after all other methods."""

    async def identify(self, credential: str) -> Identity | None:
        """Whom a credential belongs to; None for one that is not valid here, for whatever reason.

        Raises:
            Unavailable: nobody can say now.
        """
        ...

    def holds(self, id: str) -> bool:
        """Whether somebody with this `Principal.id` may still have a credential: the streams of others are ended."""
        ...

    def epoch(self) -> int:
        """A number that changes when something may have been taken back: what was found before has to be asked again.

        Asked once a second by every guard that has this method; it may look at a file for that.
        """
        ...


@runtime_checkable
class Serving(Method, Protocol):
    """A method that also serves paths of its own, which stand before the guard."""

    def paths(self) -> Mapping[str, Mapping[str, Handler]]:
        """Handlers by path and method."""
        ...

    def shared_paths(self) -> frozenset[str]:
        """Those of the paths that pages of any origin may use: no cookie counts there."""
        ...

    def close(self) -> None:
        """The server stops."""


@runtime_checkable
class Fetching(Protocol):
    """What depends on what an issuer says."""

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


@runtime_checkable
class Counting(Method, Protocol):
    """A method that counts tries, for all workers together where they share a store."""

    def share(self, pool: Pool) -> None:
        """Count there from now on."""
        ...


@runtime_checkable
class Refusing(Method, Protocol):
    """A method that takes credentials at paths of its own."""

    def tell(self, refused: Callable[[str], None]) -> None:
        """Tell of the address of every wrong one, from now on."""
        ...


@runtime_checkable
class Welcoming(Method, Protocol):
    """A method whose people sign in to the server's own pages as themselves."""

    by_password: bool
    """They have a name and password here."""

    async def admit(self, peer: str, name: str, password: str) -> bytes:
        """What stands for a person from now on; the caller seals it.

        Raises:
            NotAdmitted: the name or the password is wrong, or there were too many tries.
        """
        ...

    async def recall(self, kept: bytes) -> Identity | None:
        """Whom that stands for now; None for somebody who was removed, or has another password."""
        ...


class Landing(Protocol):
    """The server's own pages, for those who come back to them from a sign-in elsewhere."""

    def land(self, request: Request, page: str, kept: bytes, seconds: float = ...) -> Response:
        """Let somebody in, and lead them to the page that they wanted.

        Args:
            request: by which they came back.
            page: that they wanted.
            kept: what stands for them: see `Welcoming.admit`; of a method that isn't one, the credential.
            seconds: for which that may count at most.
        """
        ...

    def refuse(self, request: Request, page: str, text: str) -> Response:
        """Ask again, and say why."""
        ...


@runtime_checkable
class Leading(Method, Protocol):
    """A method that sends the browsers of people who open a page to where they sign in."""

    ways: Mapping[str, str]
    """Name -> what the button says."""
    landing: Landing | None
    """Where they come back to; None where there are no pages."""

    async def lead(self, request: Request, way: str, page: str) -> Response:
        """The page that leads a browser away, by one of the ways, to come back for a page.

        Raises:
            NotAdmitted: it can't be sent there now.
        """
        ...


@runtime_checkable
class Unbound(Protocol):
    """What becomes a method only once a server runs, because it has its state in the server's store."""

    def bind(self, services: Services, name: str, known: Callable[[], Collection[str]]) -> Serving:
        """The method of one running server.

        Args:
            services: of that server.
            name: what it is called.
            known: the scopes that something of it takes now.
        """
        ...


Given = Method | Unbound
