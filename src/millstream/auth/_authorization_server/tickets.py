"""The authorization server's state: the vault in the store, sealed cookies and form fields, and pending logins.

Cookies and form fields (browser ids, logins, known devices, and requests) are sealed instead of stored, so opening a
page needs no storage. A form is bound to the browser that it was shown in. Other browsers can't submit it.
"""

from functools import partial
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, field

from millstream._config import Settings
from millstream._http.message import HttpRequest, Response, peer_network
from millstream._limits import Limiter, Rate, StoreLimiter
from millstream._override import override
from millstream._protocol.errors import LocalError
from millstream._server.calls.services import Services
from millstream._stores.base import Bus, Map
from millstream._stores.rates import share_for
from millstream.auth import _pages as pages
from millstream.auth._authorization_server.records import (
    CALLBACK,
    AuthorizationRequest,
    OAuthError,
    Parameters,
    digest,
    fits,
    new_secret,
)
from millstream.auth._method import Clock, NotAdmitted, PageMethod, Paths
from millstream.auth._pages import get_cookie, is_at_host
from millstream.auth.providers import (
    Callback,
    RedirectTarget,
    SignInFailed,
    UpstreamWithPrompt,
    User,
)

_MAX_SHARE = 13
"""Length of a share's name."""
TOMBSTONE = b"ended"
"""Value that replaces a revoked entry."""

T = TypeVar("T")


class Vault:
    """Typed values in the store: ``await Vault(host.services).put("shop:ada", basket, ttl=3600)``.

    Values that anyone can create without signing in are `lossy`: when the store is full, a flood displaces only values
    of the same kind, and never a user's grants.

    Args:
        services: Services of the server.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self.kv: Map = services.store.kv
        self.bus: Bus = services.store.bus
        self.clock: Clock = services.clock
        self.settings: Settings = services.settings

    @property
    def pool(self) -> StoreLimiter | None:
        """The limiter that workers share, or None with a single worker."""
        return self._services.pool

    def report_failure(self, address: str) -> None:
        """Report a failed password or client authentication.

        Args:
            address: Address of the caller.
        """
        if self._services.on_failed_sign_in is not None:
            self._services.on_failed_sign_in(address)

    def limiter(self, name: str, rate: Rate) -> Limiter:
        """Return a limiter that workers share.

        Args:
            name: Name of the limit.
            rate: Rate of each key.
        """
        return Limiter(name, rate, pool=lambda: self.pool)

    async def get(self, key: str, kind: type[T]) -> T | None:
        """Return a value, or None if it's missing or malformed.

        Args:
            key: Key of the value.
            kind: Type of the value.
        """
        return read(await self.kv.get(key), kind)

    async def put(self, key: str, value: Any, ttl: float, *, lossy: bool = False) -> None:
        """Store a value.

        Args:
            key: Key of the value.
            value: A value that MessagePack can encode, or bytes.
            ttl: Seconds until it's deleted.
            lossy: Whether it may be dropped when the store is full.
        """
        await self.kv.put(key, pack(value), ttl, lossy=lossy)

    async def exchange(self, key: str, before: bytes | None, value: Any, ttl: float, *, lossy: bool = False) -> bool:
        """Replace a value if it still equals another. Return whether it did.

        Args:
            key: Key of the value.
            before: The stored bytes to replace, or None if there must be none.
            value: See `put`.
            ttl: See `put`.
            lossy: See `put`.
        """
        return await self.kv.compare_and_set(key, before, pack(value), ttl, lossy=lossy)

    async def take(self, key: str) -> bytes | None:
        """Remove a value and return its stored bytes. Only one of several concurrent callers gets it.

        Args:
            key: Key of the value.
        """
        raw = await self.kv.get(key)
        taken = raw is not None and await self.kv.compare_and_set(key, raw, None, 1)
        return raw if taken else None

    async def put_pending(self, kind: str, state: str, login: Struct, ttl: float) -> None:
        """Seal and store a pending login until `take_pending`. If one owner stores too many, only theirs are dropped.

        Args:
            kind: Kind of the key in the store.
            state: See `new_state`.
            ttl: Seconds until it expires.
        """
        sealed = self.seal(kind.encode(), login, state.encode())
        await self.put(_pending_key(kind, state), sealed.encode(), ttl, lossy=True)

    async def take_pending(self, kind: str, state: str, want: type[T]) -> T | None:
        """Remove and return a pending login, or None if there is none with this state.

        Args:
            kind: Kind of the key in the store.
            state: See `new_state`.
            want: Type of the login.
        """
        sealed = await self.take(_pending_key(kind, state))
        return self.open(kind.encode(), sealed, want, state.encode())

    def seal(self, kind: bytes, value: Any, bound: bytes = b"") -> str:
        """Encode a value as text that only this server can create and read.

        Args:
            kind: The purpose of the text. Other kinds of text can't be opened.
            value: A value that MessagePack can encode, or bytes.
            bound: Data that's required to open it.
        """
        return self._services.ring.seal(kind, pack(value), self._services.nonce(), bound)

    def open(self, kind: bytes, text: str | bytes | None, want: type[T], bound: bytes = b"") -> T | None:
        """Decode a value that `seal` encoded. Return None for any other text.

        Args:
            kind: See `seal`.
            text: The text, also as bytes from the store, or None if it's missing.
            want: Type of the value.
            bound: See `seal`.
        """
        return read(
            self._services.ring.open(kind, text if isinstance(text, str) else str(text or b"", "latin-1"), bound), want
        )


def new_state(owner: str) -> str:
    """Return a secret that finds a pending login: ``await vault.put_pending("shop", new_state(owner), login, 600)``.

    Args:
        owner: The owner of the share in the store: a principal, or the network of an address.
    """
    return f"{share_for(owner)}.{new_secret()}"


def _pending_key(kind: str, state: str) -> str:
    return f"{kind}:{state.partition('.')[0][:_MAX_SHARE]}.{digest(state)}"


def pack(value: Any) -> bytes:
    """Encode a value."""
    return value if isinstance(value, bytes) else msgspec.msgpack.encode(value)


def read(raw: bytes | None, kind: type[T]) -> T | None:
    """Decode a value. Return None if it's missing or has the wrong type."""
    if raw is None:
        return None
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


QUESTION_SECONDS = 600.0
DEVICE_SECONDS = 180 * 86_400.0
PERSON_SECONDS = 8 * 3600.0
_QUESTION, _PERSON, _DEVICE = b"oauth question", b"oauth person", b"oauth device"
_MAX = 16 * 1024
TOO_OLD = "This page is too old, or was opened in another browser. Go back to the program and start again."
STORE_AWAY = "The server's store isn't available. Try again later."
_PENDING_SECONDS = 600.0
_MAX_STATE_BYTES = 2048
_PENDING_KIND = "oauth-pending"
_REDIRECT_RATE = Rate(200, 60)
"""Maximum redirects per address. Each stores a record."""


class PendingLogin(Struct, frozen=True, omit_defaults=True):
    """A login in progress at an upstream."""

    browser: str
    login: str
    state_data: bytes
    authorization: AuthorizationRequest | None = None
    """The client's request that the user has consented to, or None for logins without a client."""
    page: str = ""
    """The page of this server to open afterwards."""


class Tickets(Struct, eq=False):
    """Creates and opens tickets, and redirects browsers to upstreams.

    The browser is redirected with a `state`, and the callback returns it. The state is random, valid once within ten
    minutes, and bound to the browser by a cookie. This prevents login CSRF: tricking a user into completing an
    attacker's login.
    """

    vault: Vault
    base: str
    """Base URL of the callbacks."""
    _leaving: Limiter = field(default_factory=lambda: Limiter("upstream", _REDIRECT_RATE))

    def browser(self, request: HttpRequest) -> tuple[str, bytes]:
        """Return the browser's id, and the header line that sets a new one if it had none."""
        name = self.known_browser(request)
        if len(name) == 43:
            return name, b""
        name = new_secret()
        return name, self._cookie("browser", name, PERSON_SECONDS)

    def known_browser(self, request: HttpRequest) -> str:
        """Return the browser's id, or an empty string if it has none."""
        return get_cookie(request, self._name("browser"))

    def seal_request(self, browser: str, authorization: AuthorizationRequest) -> str:
        """Seal a request for a browser."""
        return self._seal(_QUESTION, authorization, QUESTION_SECONDS, browser)

    def open_request(self, browser: str, sealed: str) -> AuthorizationRequest | None:
        """Return a sealed request, or None if it's for another browser or has expired."""
        return self._open(_QUESTION, sealed, AuthorizationRequest, browser) if browser else None

    def person(self, request: HttpRequest) -> User | None:
        """Return the user of the browser, if any."""
        return self._open(_PERSON, get_cookie(request, self._name("person")), User)

    def keep(self, user: User) -> bytes:
        """Return the header line that stores a login in the browser."""
        sealed = self._seal(_PERSON, user, PERSON_SECONDS)
        return self._cookie("person", sealed, PERSON_SECONDS)

    def forget(self) -> bytes:
        """Return the header line that deletes the login."""
        return self._cookie("person", "", 0)

    def device(self, request: HttpRequest, name: str) -> str:
        """Return the device id of the browser, or empty if the user with this name hasn't logged in there before."""
        found = self._open(_DEVICE, get_cookie(request, self._name("device")), tuple[str, str])
        return found[1] if found and found[0] == name.casefold() else ""

    def keep_device(self, name: str) -> bytes:
        """Return the header line that makes a browser a known device for this name."""
        sealed = self._seal(_DEVICE, (name.casefold(), new_secret()[:22]), DEVICE_SECONDS)
        return self._cookie("device", sealed, DEVICE_SECONDS)

    def _seal(self, kind: bytes, value: Any, seconds: float, bound: str = "") -> str:
        """Seal a value that expires."""
        return self.vault.seal(kind, (self.vault.clock() + seconds, pack(value)), bound.encode())

    def _open(self, kind: bytes, sealed: str, want: type[T], bound: str = "") -> T | None:
        found = self.vault.open(kind, sealed, tuple[float, bytes], bound.encode()) if len(sealed) <= _MAX else None
        return read(found[1], want) if found and found[0] > self.vault.clock() else None

    def _name(self, kind: str) -> str:
        return f"{'__Host-' if self.base.startswith('https:') else ''}millstream-{kind}"

    def _cookie(self, kind: str, value: str, seconds: float) -> bytes:
        # Lax, because users come from pages of clients and upstreams.
        secure = "; Secure" if self.base.startswith("https:") else ""
        flags = f"Path=/; Max-Age={seconds:.0f}; HttpOnly; SameSite=Lax{secure}"
        return f"set-cookie: {self._name(kind)}={value}; {flags}\r\n".encode("ascii")

    # Upstreams

    async def begin(
        self,
        request: HttpRequest,
        target: RedirectTarget,
        *,
        authorization: AuthorizationRequest | None = None,
        page: str = "",
    ) -> Response:
        """Return the page that redirects a browser to an upstream.

        Raises:
            SignInFailed: The upstream isn't available.
        """
        if self._leaving.take(peer_network(request.peer)) > 0:
            said = "Too many people are signing in from your address. Try again in a minute."
            return pages.wrong("Wait a little", said, 429)
        state = new_state(request.owner)
        browser, cookie = self.browser(request)
        callback = f"{self.base}{CALLBACK}{target.name}"
        if authorization is not None and authorization.renewal and isinstance(target, UpstreamWithPrompt):
            redirect = await target.begin_anew(callback, state, authorization.renewal)
        else:
            redirect = await target.begin(callback, state)
        if len(redirect.state_data) > _MAX_STATE_BYTES:
            raise ValueError(
                f"state_data of {target.name} has {len(redirect.state_data)} bytes; the maximum is {_MAX_STATE_BYTES}."
            )
        pending = PendingLogin(digest(browser), target.name, redirect.state_data, authorization, page)
        await self.vault.put_pending(_PENDING_KIND, state, pending, _PENDING_SECONDS)
        return pages.redirect_page(redirect.url, target.label, cookie)


callback_error = partial(pages.wrong, up="../../")
"""Returns an error page of a callback, which is two levels below the authorization server."""


class UpstreamPageMethod(PageMethod):
    """A method where users sign in to the pages at an upstream."""

    _tickets: Tickets

    def callbacks(self) -> Paths:
        """Return the handler of each upstream's callback, by path and method."""
        return {CALLBACK + name: {"GET": partial(self._return, name)} for name in self.logins}

    async def _return(self, name: str, request: HttpRequest) -> Response:
        """Find the pending login for an upstream's callback, by the state."""
        try:
            given = Parameters(request.query)
        except OAuthError as exc:
            return callback_error("This link doesn't work", str(exc), exc.status)
        tickets = self._tickets
        try:
            pending = await tickets.vault.take_pending(_PENDING_KIND, given.get("state"), PendingLogin)
        except LocalError:
            return callback_error("Start again", STORE_AWAY, 503)
        if pending is None or pending.login != name or given.repeated:
            return callback_error("Start again", TOO_OLD)
        if not fits(tickets.known_browser(request), pending.browser):
            return callback_error("Start again", TOO_OLD, 403)
        callback = Callback(given.values(), f"{tickets.base}{CALLBACK}{name}", pending.state_data)
        return await self.handle_callback(request, pending, callback)

    @override
    async def redirect_to_login(self, request: HttpRequest, login: str, page: str) -> Response:
        """See `PageMethod.redirect_to_login`. Refuses another host, such as another name of this machine."""
        base = self._tickets.base
        if not is_at_host(request, base):
            raise NotAdmitted(f"You can only sign in at {base}{page}. Open that address.", 400)
        try:
            return await self._tickets.begin(request, self.logins[login], page=page)
        except (SignInFailed, LocalError) as exc:
            said = str(exc) if isinstance(exc, SignInFailed) else STORE_AWAY
            raise NotAdmitted(said, 503) from None

    async def finish_login(self, login: str, callback: Callback) -> tuple[bytes, float]:
        """Return the content and maximum lifetime of a cookie for the user who returned from a login.

        Raises:
            SignInFailed: The login failed.
        """
        raise NotImplementedError

    async def handle_callback(self, request: HttpRequest, pending: PendingLogin, callback: Callback) -> Response:
        """Handle an upstream's callback to one of our pages. No client is involved, so no consent is needed."""
        if self.landing is None:
            return callback_error("Start again", TOO_OLD)
        return await self.landing(request, self, pending.page, self.finish_login(pending.login, callback))
