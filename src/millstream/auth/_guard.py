"""The guard in front of every handler: credentials become `HttpRequest.principal`, or the reply is a challenge.

What a method found out about a credential is kept under the raw value of the ``Authorization`` header, so that the next
request costs one look into a dictionary. Handlers behind the guard read the principal and know nothing of credentials.
A credential that is presented and not valid never makes an anonymous caller: nobody gets past without one that is.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from time import monotonic
from typing import TYPE_CHECKING

from millstream._http.message import Handler, HttpRequest, Response, Sink, peer_network
from millstream._http.server.fast_head import header_lines
from millstream._limits.gcra import Limiter, Rate, report_headers
from millstream._limits.hashed_keys import hash_key
from millstream._limits.store_limiter import StoreLimiter
from millstream._protocol.principal import Principal
from millstream._stores.rates import Pace
from millstream.auth._challenge import Challenges
from millstream.auth._keyed_semaphore import KeyedSemaphore
from millstream.auth._method import AuthMethod, Identity, Unavailable, prefetch_all
from millstream.auth._verdicts import Verdict, Verdicts

if TYPE_CHECKING:
    from millstream.auth._signed_out import SignedOut

Ambient = Callable[[HttpRequest], Awaitable[Principal | Response | None]]
"""What a request brings along unasked, such as a cookie; None when it brings nothing that counts here."""

MAX_CREDENTIAL = 16 * 1024
_FAILURES = Rate(30, 60)
"""Wrong credentials of one address. Every address of a customer's IPv6 network counts as one."""
_AT_ONCE = 8
"""Credentials of one address that are looked into at a time. Others wait: who guesses many at once would else have had
them all looked into before the first one is known to be wrong.
"""
_CREDENTIAL = re.compile(rb"[\x21-\x7e]+")


class AuthGuard:
    """The guard of one running server."""

    __slots__ = (
        "_checks",
        "_epochs",
        "_failures",
        "ambient",
        "challenges",
        "clock",
        "methods",
        "pool",
        "signed_out",
        "told",
        "verdicts",
    )

    def __init__(
        self,
        methods: Sequence[AuthMethod],
        challenges: Challenges,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        # Configuration
        self.methods: tuple[AuthMethod, ...] = tuple(sorted(methods, key=lambda each: each.shows))
        """In the order in which they are asked: what is known here is shown to nobody."""
        self.told: Callable[[str], None] | None = None
        """Hears the address of every wrong credential."""
        self.pool: StoreLimiter | None = None
        """Where other workers learn of wrong credentials."""
        self.ambient: Ambient | None = None
        """What counts where there is no ``Authorization``."""
        self.signed_out: SignedOut | None = None
        """Who has signed out of the pages, where there are some."""
        self.clock: Callable[[], float] = clock
        self.challenges: Challenges = challenges
        # Process
        self.verdicts: Verdicts = Verdicts()
        self._epochs = [method.epoch() for method in methods]
        self._failures = Limiter("sign-in", _FAILURES, clock=clock)
        self._checks = KeyedSemaphore(_AT_ONCE)

    def protect(self, handler: Handler, *, scope: str = "") -> Handler:
        """The handler, behind this guard.

        Args:
            handler: what is protected.
            scope: what the caller needs besides.
        """
        clock, known, needed = self.clock, self.verdicts.get, frozenset((scope,)) if scope else frozenset[str]()

        async def ask(request: HttpRequest) -> Response | Sink | None:
            found = await self(request)
            if not isinstance(found, Principal):
                return found
            if not found.has(needed):
                return self.challenges.insufficient(needed)
            request.principal = found
            return await handler(request)

        def protected(request: HttpRequest) -> Awaitable[Response | Sink | None]:
            # Plain calls come this way: no coroutine of its own, one look-up.
            headers = request.headers
            verdict = known(headers.get(b"authorization", b""))
            if verdict is None or verdict[1] <= clock() or len(headers) != len(request.raw_headers):
                return ask(request)
            request.principal = verdict[0]
            return handler(request)

        return ask if needed else protected

    async def __call__(self, request: HttpRequest) -> Principal | Response:
        """Who asks, or the reply that refuses."""
        if request.root_path:
            self.challenges.mounted(request.root_path)
        if _repeated(request):
            return self.challenges.malformed("There is more than one Authorization header.")
        value = request.headers.get(b"authorization")
        if value is None:
            found = await self.ambient(request) if self.ambient is not None else None
            return self.challenges.missing(request) if found is None else found
        verdict = self._known(value)
        return await self._judge(request, value) if verdict is None else verdict.principal

    async def _judge(self, request: HttpRequest, value: bytes) -> Principal | Response:
        scheme, _, credential = value.partition(b" ")
        credential = credential.strip(b" ")
        if scheme.lower() != b"bearer":
            return self.challenges.missing(request)
        if not _CREDENTIAL.fullmatch(credential):
            return self.challenges.malformed("The Authorization header has no token: write Bearer and the token.")
        # The usual spellings of the header, so that no one fills the memory with others.
        key = b"%b %b" % (scheme if scheme == b"bearer" else b"Bearer", credential)
        verdict, lacking = self._known(key), frozenset[str]()
        if verdict is not None:
            return verdict.principal
        try:
            async with self.turn(request.peer):
                slow = self.slow(request.peer)
                if slow is not None:
                    return slow
                verdict, lacking = await self._look(key, credential)
        except Unavailable as exc:
            return self.challenges.unavailable(str(exc))
        if verdict is None:
            self.failed(request.peer)
            return self.challenges.wrong()
        return self.challenges.insufficient(lacking) if lacking else verdict.principal

    def _known(self, key: bytes) -> Verdict | None:
        verdict = self.verdicts.get(key)
        return None if verdict is None or verdict.until <= self.clock() else verdict

    async def _look(self, key: bytes, credential: bytes) -> tuple[Verdict | None, frozenset[str]]:
        """What is known of a credential, or found out now; and what its method wants besides."""
        verdict = self._known(key)
        if verdict is not None:
            return verdict, frozenset()
        found, lacking = await self.identify(credential.decode("ascii"))
        if found is None:
            return None, lacking
        verdict = Verdict(found.principal, self.clock() + found.seconds)
        if not lacking:
            self.verdicts.keep(key, verdict)
            header_lines.keep_credential(key)
        return verdict, lacking

    def turn(self, address: str) -> AbstractAsyncContextManager[None]:
        """The turn of somebody at an address whose credential isn't known yet; `slow` and `failed` are for inside.

        Raises:
            Unavailable: those before take too long.
        """
        return self._checks.hold(peer_network(address))

    async def identify(self, credential: str) -> tuple[Identity | None, frozenset[str]]:
        """Return the owner of a credential by the first method that knows it, and the extra checks of that method.

        Raises:
            Unavailable: none knows, and one could not be asked.
        """
        nothing = frozenset[str]()
        if len(credential) > MAX_CREDENTIAL:
            return None, nothing
        failure: Unavailable | None = None
        for method in self.methods:
            try:
                found = await method.identify(credential)
            except Unavailable as exc:
                failure = exc
                continue
            if found is not None:
                return found, nothing if found.principal.has(method.scopes) else frozenset(method.scopes)
        if failure is not None:
            raise failure
        return None, nothing

    def slow(self, address: str) -> Response | None:
        """The refusal for an address that has sent too many wrong credentials; None while it may try."""
        key = peer_network(address)
        wait = self._failures.wait(key)
        return None if wait <= 0 else self.challenges.slow(report_headers(self._failures, key, wait))

    def failed(self, address: str) -> None:
        """An address has sent a wrong credential."""
        if self.told is not None:
            self.told(address)
        key, failures = peer_network(address), self._failures
        failures.take(key)
        if self.pool is not None:
            pace = Pace(hash_key(failures.name, key), failures.rate.count, failures.rate.seconds)
            self.pool.report(pace, lambda wait: failures.block(key, wait))

    def tell(self, report_headers: Callable[[str], None]) -> None:
        """Tell of the address of every wrong credential from now on, wherever it's presented."""
        self.told = report_headers
        for method in self.methods:
            method.tell(report_headers)

    def holds(self, id: str) -> bool:
        """Whether somebody with this `Principal.id` may still have a credential."""
        return any(method.holds(id) for method in self.methods)

    async def prefetch(self) -> None:
        """Have what issuers say before somebody needs it, and say now if it can't be had."""
        await prefetch_all(self.methods)

    def close(self) -> None:
        """The server stops."""
        for method in self.methods:
            method.close()
        if self.signed_out is not None:
            self.signed_out.stop()

    def refresh(self, opened: Callable[[str, float], None] = lambda owner, until: None) -> bool:
        """Once a second: forget what was found, if a credential may have been taken back. True if so.

        Args:
            opened: hears of those who have signed out whose streams have to end, and when these would have ended.
        """
        if self.signed_out is not None:
            self.signed_out.end(opened)
        epochs = [method.epoch() for method in self.methods]
        if epochs == self._epochs:
            return False
        self._epochs = epochs
        self.verdicts.clear()
        header_lines.forget_credentials()
        return True


def _repeated(request: HttpRequest) -> bool:
    """Two readers of a request could take two of these for one each."""
    return (
        len(request.headers) != len(request.raw_headers)
        and sum(name == b"authorization" for name, _ in request.raw_headers) > 1
    )
