"""The interface of auth methods: keys, signed tokens, or an introspection endpoint.

A method verifies one kind of credential, independently of HTTP. The guard tries a server's methods in order, and caches
their verdicts (`Verdicts`). Concurrent checks share their work by key, and wait in a fair and bounded queue, so an
unresponsive issuer can't block every caller.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import NamedTuple, Protocol, TypeVar, cast, runtime_checkable
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from msgspec import Struct, field

from millstream._copies import CopyableError
from millstream._http.message import Handler, HttpRequest, Response
from millstream._override import override
from millstream._protocol.principal import Principal
from millstream._server.address import Address
from millstream._server.calls.services import Services
from millstream._text import shorten
from millstream._troubles import LogOnce
from millstream.auth.providers import RedirectTarget

_MAX_SHOWN = 120
_MAX_SHOWN_ITEMS = 4


class Identity(Struct, frozen=True):
    """The owner of a credential: ``Identity(Principal("ada", scopes=frozenset({"read"})), 60.0)``."""

    principal: Principal
    seconds: float
    """Maximum seconds to cache the verdict."""


class Rejection(Struct, frozen=True):
    """Why a credential isn't valid: ``Rejection("The badge was reported lost.", is_genuine=True)``.

    Wrong guesses are limited per address. `is_genuine` and `is_signed` mark credentials that aren't guesses.
    """

    reason: str = ""
    """A sentence of your own for the caller and the log, without text from the credential."""
    details: str = ""
    """More sentences, only for the log. Quote text from the credential with `ascii`, and shorten it."""
    is_genuine: bool = False
    """Whether the credential is from its issuer, but has expired, was revoked, or is for another server."""
    is_signed: bool = False
    """Whether it has a signature by a private key, which can't be guessed, even if it couldn't be verified."""
    seconds: float = 0.0
    """Maximum seconds to cache the rejection."""


def quote(value: object) -> str:
    """Return a value from a credential for `Rejection.details`: strings quoted, on one line, and shortened."""
    if value is None:
        return "missing"
    given = cast("Sequence[object]", value) if isinstance(value, list | tuple) else [value]
    some = [ascii(shorten(each, _MAX_SHOWN)) for each in given[:_MAX_SHOWN_ITEMS] if isinstance(each, str)]
    return (" and ".join(some) or "not a string") + (" and others" if len(given) > _MAX_SHOWN_ITEMS else "")


class Unavailable(CopyableError):
    """A credential can't be verified at the moment: ``raise Unavailable("Try again later.", "LDAP is down.")``.

    Args:
        text: Message for the caller, who may retry, without details of the network.
        why: Message for the operator.
    """

    def __init__(self, text: str, why: str = "") -> None:
        super().__init__(text)
        self.why: str = why or text


class NotAdmitted(Exception):
    """A login was rejected. The message is shown to the user."""

    def __init__(self, text: str, status: int, *, wrong: bool = False) -> None:
        """Create the error.

        Args:
            text: Message for the user.
            status: Status of the response.
            wrong: Whether the name or password was wrong. If so, it counts as a failed sign-in from the address.
        """
        super().__init__(text)
        self.status = status
        self.wrong = wrong


@runtime_checkable
class Prefetchable(Protocol):
    """An object that depends on an issuer's metadata or keys."""

    async def prefetch(self) -> None:
        """Fetch the metadata and keys before the first token. Failures are logged, and retried later."""


async def prefetch_all(those: Iterable[Prefetchable]) -> None:
    """Prefetch all objects concurrently. A failure doesn't stop the others.

    Raises:
        ExceptionGroup: Unexpected errors, other than an unavailable issuer.
    """
    found = await asyncio.gather(*(each.prefetch() for each in those), return_exceptions=True)
    failed = [each for each in found if isinstance(each, Exception)]
    if failed:
        raise ExceptionGroup("Failed to prefetch issuers' metadata or keys", failed)


def addresses_for(resource: str, addresses: Sequence[Address]) -> dict[str, str]:
    """Return a server's MCP URLs, by path under its mount point. Metadata contains the requested URL (RFC 9728 §3.3),
    and a token for one URL is valid at all of them.

    Args:
        resource: URL of the MCP endpoint as clients know it. If it doesn't end with the endpoint's path, a proxy maps
            it to another path. The other URLs are then unknown, so metadata always contains this one.
        addresses: The main address, and those of sets.
    """
    endpoint = addresses[0].path
    urls = dict.fromkeys((path for each in addresses for path in each.endpoints), resource)
    base, path = resource.rstrip("/"), urlsplit(resource).path.rstrip("/")
    if path.endswith(endpoint.rstrip("/")):
        base = base.removesuffix(endpoint.rstrip("/"))
        urls = {each: resource if each == "/" else base + each for each in urls}
    # The messages of HTTP+SSE belong to its stream.
    for each in addresses:
        messages = each.messages.rstrip("/")
        urls |= dict.fromkeys((messages, f"{messages}/"), urls[each.sse])
    return {**urls, "/message": urls[addresses[0].sse]}


Paths = Mapping[str, Mapping[str, Handler]]
"""Path -> HTTP method -> handler."""
Clock = Callable[[], float]
"""Returns the time in seconds."""
KnownScopes = Callable[[], Collection[str]]
"""Returns the scopes that a server currently uses."""


class Rights(Struct, frozen=True):
    """All scopes and groups that callers with one kind of credential can have."""

    scopes: frozenset[str]
    """The scopes. ``*`` means any scope."""
    groups: frozenset[str] = frozenset()
    """Values of the claim `groups`."""


class AuthMethod:
    """One kind of credential: ``Server("shop", auth=BadgeReader())``. Subclasses override `identify` and `holds`."""

    resource: str = ""
    """Audience of the tokens, or empty for credentials without one."""
    issuers: tuple[str, ...] = ()
    """Authorization servers where clients can get a token, or empty without one."""
    scopes: tuple[str, ...] = ()
    """Scopes that every caller needs."""
    scope_prefix: str = ""
    """Prefix that the issuer expects on the scopes that a client requests."""
    shows: bool = False
    """Whether `identify` sends the credential to another server. The guard tries such methods last."""
    guessable: bool = True
    """Whether callers could guess a credential, such as a key. An address with too many wrong guesses can use only
    other methods for a while.
    """
    outages: tuple[LogOnce, ...] = ()
    """What can keep it from identifying callers. `/health` and ``millstream doctor`` list those that last."""

    async def identify(self, credential: str) -> Identity | None:
        """Return the owner of a credential, or None if it isn't valid here.

        Args:
            credential: The caller's credential, such as the token in a `Bearer` header.

        Raises:
            Unavailable: The credential can't be verified at the moment.
        """
        raise NotImplementedError

    async def examine(self, credential: str) -> Identity | Rejection:
        """Return the owner of a credential, or why it isn't valid here. The guard calls this.

        By default, it calls `identify`, and each invalid credential is a wrong guess.

        Args:
            credential: As for `identify`.

        Raises:
            Unavailable: The credential can't be verified at the moment.
        """
        found = await self.identify(credential)
        return Rejection() if found is None else found

    def holds(self, id: str) -> bool:
        """Return whether a principal may still have a valid credential. If not, its streams are closed.

        Args:
            id: `Principal.id`.
        """
        raise NotImplementedError

    def serve_at(self, urls: Collection[str]) -> None:
        """Accept tokens for each of these URLs, too, at which the server runs, if `resource` is one of them.

        Args:
            urls: The server's MCP URLs.
        """

    def count(self) -> int:
        """Return the number of principals that have been configured, or 0 if it isn't known."""
        return 0

    def rights(self) -> Rights | None:
        """Return the rights that callers can currently have, or None if another server decides."""
        return None

    def revocation_id(self, principal: Principal) -> str:
        """Return the id of a principal's current credential for `is_revoked`, or empty if it can't be revoked early.

        Args:
            principal: The principal.
        """
        return ""

    async def is_revoked(self, revocation_id: str) -> bool:
        """Return whether a credential was revoked before its expiry.

        Args:
            revocation_id: What `revocation_id` returned.

        Raises:
            StoreUnavailable: The store doesn't respond.
        """
        return False

    def epoch(self) -> int:
        """Return a number that changes when a credential may have been revoked. Each guard calls it once a second, so
        it may check a file.
        """
        return 0

    async def prefetch(self) -> None:
        """Fetch issuers' metadata and keys before the first token. Failures are logged, and retried later."""

    def paths(self) -> Paths:
        """Return handlers by path and method that don't require authentication."""
        return {}

    def shared_paths(self) -> frozenset[str]:
        """Return the paths that pages of any origin may request, because they ignore cookies."""
        return frozenset()

    def close(self) -> None:
        """Release resources when the server stops."""


PageLanding = Callable[[HttpRequest, "PageMethod", str, Awaitable[tuple[bytes, float]]], Awaitable[Response]]
"""The last step of an external login to one of the server's own pages, from its callback. Awaits the content and the
maximum lifetime of the cookie. A `SignInFailed` has the reason why the user isn't signed in.
"""


class PageMethod(AuthMethod):
    """A method that people can use to sign in to the server's own pages."""

    logins: Mapping[str, RedirectTarget] = {}
    """Name -> external login."""
    by_password: bool = False
    """Whether people have a name and password here."""
    recalls: bool = False
    """Whether this method's cookie identifies a user (`recall`) instead of holding a credential (`identify`)."""
    icon: str = ""
    """Icon of the server, as a data URI."""
    landing: PageLanding | None = None
    """Completes external logins, or None without pages."""

    async def redirect_to_login(self, request: HttpRequest, login: str, page: str) -> Response:
        """Return the page that redirects a browser to one of `logins`, which returns to `page`.

        Raises:
            NotAdmitted: The login isn't available.
        """
        raise NotImplementedError

    async def admit(self, request: HttpRequest, name: str, password: str) -> tuple[bytes, bytes]:
        """Return the content of a user's cookie, for the caller to seal, and header lines for the response.

        Raises:
            NotAdmitted: The name or password is wrong, or there were too many attempts.
        """
        raise NotImplementedError

    def forget(self) -> bytes:
        """Return header lines that delete this method's other data in the browser of a user who signs out."""
        return b""

    async def recall(self, kept: bytes) -> Identity | None:
        """Return the user of a cookie's content, or None if they were removed or changed their password."""
        raise NotImplementedError


@runtime_checkable
class NeedsServer(Protocol):
    """A method that needs the services of a server, such as its store, and is bound when the server starts."""

    def bind(self, services: Services, name: str, known: KnownScopes) -> AuthMethod:
        """Return the method of a running server.

        Args:
            services: Services of that server.
            name: Name of that server.
            known: Returns the scopes that the server currently uses.
        """
        ...


AnyAuthMethod = AuthMethod | NeedsServer
"""What ``Server(auth=…)`` takes, and the functions of this package return."""

PATIENCE = 10.0
"""Maximum seconds that a caller waits."""


class KeyedSemaphore(Struct, eq=False):
    """Semaphores by key, created on demand and dropped when unused. For one event loop."""

    _at_once: int
    _keys: WeakValueDictionary[str, asyncio.Semaphore] = field(
        default_factory=WeakValueDictionary[str, asyncio.Semaphore]
    )
    """Semaphores in use, by key."""

    def __len__(self) -> int:
        return len(self._keys)

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncGenerator[None]:
        """Hold the semaphore of `key` inside the block.

        Raises:
            Unavailable: It wasn't free within `PATIENCE` seconds.
        """
        semaphore = self._keys.setdefault(key, asyncio.Semaphore(self._at_once))
        try:
            async with asyncio.timeout(PATIENCE):
                await semaphore.acquire()
        except TimeoutError:
            raise Unavailable("Too many sign-ins from your address at once. Try again later.") from None
        try:
            yield
        finally:
            semaphore.release()


_MAX_ENTRIES = 4096
_MAX_PER_OWNER = 256
"""Maximum entries per owner when a cache is full."""

E = TypeVar("E")


class CredentialCache(dict[bytes, E]):
    """Verdicts on credentials, in order of insertion.

    A lookup is one dictionary access; all bookkeeping happens on insertion. An owner with many entries can fill the
    cache, but then evicts only its own. Otherwise it could force a signature check or a request to the issuer for each
    request of other callers.
    """

    def __init__(self) -> None:
        super().__init__()
        self._by_owner: dict[str, dict[bytes, None]] = {}
        """Owner -> its entries, in the same order."""

    def owner_of(self, entry: E) -> str:
        """Return the owner of an entry."""
        raise NotImplementedError

    def keep(self, key: bytes, entry: E) -> None:
        """Cache an entry. A full cache drops the oldest one, or its owner's oldest at `_MAX_PER_OWNER`."""
        if key in self:
            del self[key]
        owner = self.owner_of(entry)
        while len(self) >= _MAX_ENTRIES:
            mine = self._by_owner.get(owner, {})
            del self[next(iter(mine if len(mine) >= _MAX_PER_OWNER else self))]
        self[key] = entry
        self._by_owner.setdefault(owner, {})[key] = None

    @override
    def __delitem__(self, key: bytes) -> None:
        owner = self.owner_of(self[key])
        super().__delitem__(key)
        mine = self._by_owner[owner]
        del mine[key]
        if not mine:
            del self._by_owner[owner]

    @override
    def clear(self) -> None:
        """Drop all entries."""
        super().clear()
        self._by_owner.clear()


class Verdict(NamedTuple):
    """A verdict on a credential, and its expiry."""

    principal: Principal
    until: float


class Verdicts(CredentialCache[Verdict]):
    """Normalized ``Authorization`` value -> verdict. The owner is the principal. An expired verdict shows that the
    credential was valid.
    """

    @override
    def owner_of(self, entry: Verdict) -> str:
        """Return the id of the principal."""
        return entry.principal.id

    def expire(self) -> None:
        """End all verdicts. Their credentials are still known to have been valid."""
        for key, verdict in self.items():
            self[key] = verdict._replace(until=0.0)


class CachedRejection(NamedTuple):
    """A rejection of a credential from an address or IPv6 network, and its expiry."""

    network: str
    rejection: Rejection
    until: float


class RejectionCache(CredentialCache[CachedRejection]):
    """Rejected credentials by address, so that presenting one again isn't a second guess. The keys are hashes, so
    the cache doesn't contain the credentials. The owner is the address or IPv6 network.
    """

    @staticmethod
    def key(network: str, credential: str) -> bytes:
        """Return the key of a credential from an address or IPv6 network."""
        return sha256(f"{network}\0{credential}".encode("utf-8", "surrogatepass")).digest()

    @override
    def owner_of(self, entry: CachedRejection) -> str:
        """Return the address or IPv6 network."""
        return entry.network
