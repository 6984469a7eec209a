"""Host and Origin checks, shared by all transports, and the client's address behind a trusted proxy.

DNS rebinding needs a name, so IP literals and loopback names are always accepted as Host, and any other name must be
listed (status 421, RFC 9110 §7.4), except on the paths in `EXEMPT`. An Origin is accepted if it's listed, if it's the
server's own, or if it's a loopback Origin and only this machine is served. The CORS lists contain the headers that
browser clients send and read.
"""

import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple

from millstream._http.message import Handler, Headers, HttpRequest, Response, Sink, media_type, refusal

EXEMPT = frozenset({"/livez", "/readyz", "/health"})
"""Paths for health probes, which respond to any Host and Origin. Only allowed Origins get CORS headers."""

METADATA = "/.well-known/oauth-"
"""Prefixes of paths with authorization metadata, which browser clients of any origin can read."""

_HOST = re.compile(rb"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,255}))(?::([0-9]{1,5}))?")
_ORIGIN = re.compile(rb"([a-z][a-z0-9+.-]*)://([^/?#@\s]+)")
_DEFAULT_PORTS = {b"http": b"80", b"https": b"443", b"ws": b"80", b"wss": b"443"}
_SCHEMES = {b"http": "http", b"https": "https", b"ws": "http", b"wss": "https"}
_SIMPLE_TYPES = frozenset((b"", b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data"))
"""Types of bodies that browsers send to other origins without a preflight (Fetch, CORS-safelisted request-header)."""
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_MAX_ACCEPTED = 1024
"""Maximum number of cached Host values, because clients can make up any number of valid ones."""
_MAX_HOST = 512
"""Maximum bytes of a cached Host value. Valid ones can have any number of spaces around them."""
_MAX_LOGGED = 64
"""Maximum rejected names to log, because clients can make up any number."""
_MAX_ADDRESS = 128
"""Maximum characters of an address with its zone and port."""
_CACHE_SIZE = 64
"""Cache size for hosts and addresses. Most requests use one of a few."""

_BROWSER = b"Mozilla/"
"""Beginning of the `User-Agent` of every browser, which pages can't change without a preflight."""
_CROSS_SITE = refusal(403, "A cross-site request needs an Origin that is listed in `allowed_origins`.")
_UNPROVEN = refusal(
    403,
    "Any site could have caused this request. Use HTTPS, or open it from a page on this server that sends a Referer.",
)
_TOKENS = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,2048}")
_ALLOW_HEADERS = (
    b"authorization, content-type, accept, mcp-protocol-version, mcp-method, mcp-name, mcp-session-id, last-event-id"
)
_EXPOSE_HEADERS = (
    b"access-control-expose-headers: mcp-session-id, www-authenticate, retry-after, ratelimit, "
    b"ratelimit-policy, link\r\nvary: origin\r\n"
)
_PREFLIGHT = (
    b"access-control-allow-methods: POST, GET, DELETE, OPTIONS\r\naccess-control-max-age: 600\r\n"
    b"vary: access-control-request-headers\r\n"
)


logger = logging.getLogger("millstream")


class Authority(NamedTuple):
    """A parsed ``host[:port]``: the name in lower case, the port as written, and the address if the name is one."""

    name: str
    port: bytes | None
    address: IPv4Address | IPv6Address | None

    @property
    def loopback(self) -> bool:
        """Whether this is a loopback address, or a name that must resolve to one (RFC 6761 §6.3)."""
        return is_loopback(self.name) or self.name.endswith(".localhost")


@lru_cache(_CACHE_SIZE)
def parse_authority(value: bytes) -> Authority | None:
    """Parse a Host value. Return `None` if it's malformed (RFC 9110 §7.2)."""
    match = _HOST.fullmatch(value.strip(b" \t"))
    if match is None:
        return None
    literal, name, port = match.groups()
    if port is not None and int(port) > 65535:
        return None
    if literal is not None:
        try:
            return Authority(literal.decode().lower(), port, IPv6Address(literal.decode()))
        except ValueError:
            return None
    text = name.decode().lower().removesuffix(".")
    try:
        return Authority(text, port, ip_address(text))
    except ValueError:
        return Authority(text, port, None) if text else None


class HostNames:
    """A set of allowed host names: exact, ``name:port``, ``*.example.com`` for subdomains, ``*`` for any."""

    def __init__(self, entries: Iterable[str]) -> None:
        names = [entry.strip().lower().removesuffix(".") for entry in entries]
        self.any = "*" in names
        self.exact = frozenset(name for name in names if name and not name.startswith("*"))
        self.suffixes = tuple(name[1:] for name in names if name.startswith("*."))

    def allow(self, name: str, port: bytes | None) -> bool:
        """Return whether an entry matches this lower-case name, alone or with this port."""
        if self.any or name in self.exact:
            return True
        if port is not None and f"{name}:{port.decode()}" in self.exact:
            return True
        return name.endswith(self.suffixes)


class HostPolicy:
    """The Host and Origin rules of one server.

    Call ``check`` to apply all rules. The set `good` caches Host values that passed. A fast path can skip ``check`` for
    a request with a single Host that is in the set and with neither Origin nor ``Sec-Fetch-Site``. If the bind address
    is unknown (`loopback_bind` is None), peers with loopback addresses are treated as local.
    """

    def __init__(
        self,
        allowed_hosts: Sequence[str] = (),
        allowed_origins: Sequence[str] = (),
        *,
        loopback_bind: bool | None = True,
        shared: Collection[str] = (),
        cors: bool = True,
        note: Callable[[int], object] | None = None,
    ) -> None:
        """Set the allowed hosts and origins.

        Args:
            allowed_hosts: Names in addition to loopback names and IP literals.
            allowed_origins: Origins in addition to loopback ones on a loopback bind: ``scheme://host[:port]``,
                ``scheme://*.example.com``, ``*``, or ``null``.
            loopback_bind: Whether only this machine can reach the server, or None if unknown.
            shared: Further paths that pages of any origin can use, because they ignore cookies.
            cors: Whether to answer preflights and let pages of allowed origins read replies.
            note: Called with the status of each refusal.

        Raises:
            ValueError: An entry isn't a host name or an origin, so it would never match.
        """
        self._note = note
        self.show: Callable[[HttpRequest, Response], Response] = lambda request, refused: refused
        """Returns a refusal as a page for browsers."""
        self._logged: set[bytes] = set()
        self._cors = cors
        for entry in allowed_hosts:
            name = entry.strip().removeprefix("*.")
            if name not in ("", "*") and parse_authority(name.encode()) is None:
                raise ValueError(f"allowed_hosts: {entry!r} isn't a host name. Use host[:port], *.example.com, or *.")
        self._hosts = HostNames(allowed_hosts)
        origins: dict[bytes, list[str]] = {}
        for entry in allowed_origins:
            scheme, mark, rest = entry.strip().lower().rstrip("/").partition("://")
            if not mark and scheme not in ("*", "null", ""):
                raise ValueError(f"allowed_origins: {entry!r} isn't an origin. Use scheme://host[:port], null, or *.")
            names = origins.setdefault((scheme + mark).encode(), [])
            if mark:
                has_port = ":" in rest.rpartition("]")[2]
                names.append(rest if has_port else f"{rest}:{_DEFAULT_PORTS.get(scheme.encode(), b'').decode()}")
        self._origins = {kind: HostNames(names) for kind, names in origins.items()}
        """``scheme://`` -> hosts with their ports. ``*`` allows any origin. ``null`` allows opaque ones, of local files
        and of sandboxed frames from any site.
        """
        self._loopback_bind = loopback_bind
        self._public_paths = frozenset(shared)
        self.good: set[bytes] = set()

    def check(self, request: HttpRequest, method: str) -> Response | None:
        """Return the refusal of a request, or `None` if Host and Origin are allowed. WebSocket handshakes are treated
        as POST.
        """
        headers = request.headers
        host, origin = headers.get(b"host"), headers.get(b"origin")
        if host is not None and len(headers) != len(request.raw_headers):
            for single in (b"host", b"origin"):
                if sum(name == single for name, _ in request.raw_headers) > 1:
                    return refusal(400, f"The request has more than one {single.decode().title()} header.")
        wrong = self._check_host(host)
        if host is None or wrong is not None:
            return wrong
        if origin is None:
            return _CROSS_SITE if method not in _SAFE_METHODS and is_cross_site(headers) else None
        # Without CORS, ``*`` admits programs, and pages that other middleware admits. It doesn't admit requests that
        # any page can cause without a preflight: forms and WebSockets.
        wildcard = self._cors or method != "POST" or media_type(headers) not in _SIMPLE_TYPES
        # If any Host is admitted, a proxy may have replaced the one that the page has.
        own = origin.rpartition(b"/")[2] if self._hosts.any else host
        if self.allows_origin(origin, host, request.peer, wildcard=wildcard) or is_own_origin(origin, own, headers):
            return None
        shown = ascii(origin[:200].decode("latin-1"))
        return refusal(403, f"Origin {shown} isn't allowed. Add it to `allowed_origins` (MILLSTREAM_ALLOWED_ORIGINS).")

    def record(self, refused: Response) -> Response:
        """Count a refusal, log it once per name, and return it."""
        if self._note is not None:
            self._note(refused.status)
        if refused.body not in self._logged and len(self._logged) < _MAX_LOGGED:
            self._logged.add(refused.body)
            more = " No more names will be logged." if len(self._logged) == _MAX_LOGGED else ""
            logger.info("Refused a request (%d): %s%s", refused.status, refused.body.decode().strip(), more)
        return refused

    def allows_origin(self, origin: bytes, host: bytes, peer: str, *, wildcard: bool) -> bool:
        """Return whether an Origin is allowed for a Host that passed the check. An opaque ``null`` must be listed."""
        if origin.strip(b" \t") == b"null":
            return b"null" in self._origins
        match = _ORIGIN.fullmatch(origin.strip(b" \t").lower())
        if match is None:
            return False
        scheme, rest = match.groups()
        authority = parse_authority(rest)
        if authority is None:
            return False
        local = is_loopback(peer) if self._loopback_bind is None else self._loopback_bind
        if local and authority.loopback and scheme in (b"http", b"https"):
            return True
        if wildcard and b"*" in self._origins:
            return True
        usual = _DEFAULT_PORTS.get(scheme, b"")
        port = authority.port or usual
        if (names := self._origins.get(scheme + b"://")) is not None:
            name = f"[{authority.name}]" if authority.address and authority.address.version == 6 else authority.name
            if names.allow(f"{name}:{port.decode()}", None):
                return True
        own = parse_authority(host)
        return own is not None and own.name == authority.name and (own.port or usual) == port

    def screen(self, request: HttpRequest) -> tuple[Response | None, bytes]:
        """Check a request. Return a refusal or preflight reply, if any, and the CORS header lines for the reply."""
        if request.path.startswith(METADATA) or request.path in self._public_paths:
            return self._screen_public(request)
        wrong = self.check(request, request.method)
        origin = request.headers.get(b"origin")
        if wrong is not None:
            if request.path in EXEMPT:
                return None, b""
            return self.show(request, self.record(wrong)), b""
        if origin is None or not self._cors:
            return None, b""
        cors = b"access-control-allow-origin: %b\r\n%b" % (origin.strip(b" \t"), _EXPOSE_HEADERS)
        return _preflight(request), cors

    def _screen_public(self, request: HttpRequest) -> tuple[Response | None, bytes]:
        """Check a request to a public path, which any origin can use under an allowed Host."""
        wrong = self._check_host(request.headers.get(b"host"))
        cors = b"access-control-allow-origin: *\r\n"
        if wrong is None and request.method == "OPTIONS":
            methods = b"GET" if request.path.startswith(METADATA) else b"GET, POST"
            # A wildcard does not include authorization (Fetch, CORS-preflight fetch).
            head = (
                cors
                + b"access-control-allow-methods: %b\r\naccess-control-allow-headers: *, authorization\r\n" % methods
            )
            return Response(b"", 204, head), b""
        return None if wrong is None else self.record(wrong), cors

    def _check_host(self, host: bytes | None) -> Response | None:
        if host is None:
            return refusal(400, "The Host header is missing.")
        if host in self.good:
            return None
        authority = parse_authority(host)
        if authority is None:
            return refusal(400, "The Host header is malformed.")
        if authority.address is None and not authority.loopback and not self._hosts.allow(*authority[:2]):
            test = authority.name in ("test", "testserver")  # the names that httpx and Starlette use in tests
            fix = (
                "In a test, write `TestClient(app, base_url='http://localhost')`."
                if test
                else "Add it to `allowed_hosts` (MILLSTREAM_ALLOWED_HOSTS)."
            )
            return refusal(421, f"This server doesn't serve Host {authority.name!r}. {fix}")
        if len(self.good) >= _MAX_ACCEPTED:
            self.good.clear()  # made-up addresses may have filled the set; real Hosts return with their next request
        if len(host) <= _MAX_HOST:
            self.good.add(host)
        return None


def _preflight(request: HttpRequest) -> Response | None:
    """Return the reply to a CORS preflight from an allowed Origin, or `None` for other requests."""
    if request.method != "OPTIONS" or b"access-control-request-method" not in request.headers:
        return None
    wanted = request.headers.get(b"access-control-request-headers", b"")
    # Tools can define parameter headers with any name, so reflect the requested list.
    allowed = wanted if _TOKENS.fullmatch(wanted) else _ALLOW_HEADERS
    return Response(status=204, head=_PREFLIGHT + b"access-control-allow-headers: " + allowed + b"\r\n")


def is_own_origin(origin: bytes, host: bytes, headers: Headers) -> bool:
    """Return whether the browser reports a same-origin request (Fetch Metadata, §2.3), and the names agree.

    The ports may differ, because many proxies drop the port from Host. Scripts can't set ``Sec-Fetch-Site``.
    """
    if headers.get(b"sec-fetch-site") != b"same-origin":
        return False
    page, own = parse_authority(origin.partition(b"://")[2]), parse_authority(host)
    return page is not None and own is not None and page.name == own.name


def is_cross_site(headers: Headers) -> bool:
    """Return whether a browser reports a cross-site request without naming its origin (Fetch Metadata, §2.3)."""
    return headers.get(b"sec-fetch-site") == b"cross-site" and b"origin" not in headers


def _is_unproven(headers: Headers) -> bool:
    """Return whether a browser sent a request that a page on any site could have caused.

    Without TLS, browsers send Fetch Metadata only to loopback hosts. For other hosts, `Referer` shows the page's site.
    """
    if b"sec-fetch-site" in headers or b"origin" in headers or not headers.get(b"user-agent", b"").startswith(_BROWSER):
        return False
    host = headers.get(b"host", b"").lower()
    own = parse_authority(host)
    if own is None or own.loopback:
        return False
    return headers.get(b"referer", b"").lower().partition(b"://")[2].partition(b"/")[0] != host


def require_same_site(handler: Handler) -> Handler:
    """Wrap a GET handler with effects, such as opening a stream, to reject links, images, and frames of other sites."""

    async def handle(request: HttpRequest) -> Response | Sink | None:
        if is_cross_site(request.headers):
            return _CROSS_SITE
        return _UNPROVEN if _is_unproven(request.headers) else await handler(request)

    return handle


def no_websocket(root_path: str, *, served: bool) -> Response:
    """Return the reply to a handshake at a path without a WebSocket. `served` is whether another path has one."""
    where = (
        f"Use {root_path}/ws."
        if served
        else "This server has no WebSocket. To serve one at /ws, start it with --serve hub."
    )
    return refusal(404, f"This path isn't a WebSocket. {where}")


def not_a_socket(handler: Handler, *, served: bool) -> Handler:
    """Wrap a stream handler to reject WebSocket handshakes.

    A server may ignore an upgrade (RFC 9110 §7.8), but the client would get an endless stream that it can't read, and
    would fail only after its own timeout.
    """

    async def handle(request: HttpRequest) -> Response | Sink | None:
        if b"websocket" in map(bytes.strip, request.headers.get(b"upgrade", b"").lower().split(b",")):
            return no_websocket(request.root_path, served=served)
        return await handler(request)

    return handle


@lru_cache(_CACHE_SIZE)
def is_loopback(host: str) -> bool:
    """Return whether a bind or peer address is a loopback address."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


UNIX = "unix:"
"""Beginning of a bind address that is the path of a UNIX socket."""
VARIABLE = "FORWARDED_ALLOW_IPS"
"""The environment variable with trusted addresses and networks, separated by commas.

``*`` trusts every peer, as the only proxy.
"""


class TrustedProxies:
    """Addresses whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` are trusted to name the client."""

    def __init__(self, entries: Iterable[str]) -> None:
        names = [each.strip() for each in entries]
        self._all = "*" in names
        networks: list[IPv4Network | IPv6Network] = []
        for each in names:
            try:
                networks.append(ip_network(each))
            except ValueError:
                if each and each != "*":
                    logger.warning(
                        "%s contains %r, which matches no proxy. Use an address, such as 10.0.0.5, or a network, such "
                        "as 10.0.1.0/24.", VARIABLE, each,
                    )  # fmt: skip
        self._networks = networks
        self.trusts = lru_cache(maxsize=1024)(self._trusts)

    @classmethod
    def from_environment(cls) -> "TrustedProxies":
        """Return the proxies of `VARIABLE`, or the IPv4 loopback address."""
        return cls(os.environ.get(VARIABLE, "127.0.0.1").split(","))

    def _trusts(self, address: str) -> bool:
        """Return whether an address is a trusted proxy. It's empty over a UNIX socket, which is protected by file
        permissions."""
        if self._all or not address:
            return True
        normalized = _normalize(address)
        return bool(normalized) and any(ip_address(normalized) in each for each in self._networks)

    def exempts(self, client: str) -> bool:
        """Return whether a client's address is exempt from shares, because it belongs to this machine or to a proxy
        that doesn't forward client addresses. If every address is trusted, none is known to be a proxy's.
        """
        return is_loopback(client) or (not self._all and self.trusts(client))

    def apply(self, request: HttpRequest) -> None:
        """Set the peer and scheme of a request from its proxy's headers.

        The peer is the last address that isn't a proxy's own. Addresses further left are what the client itself has
        sent.
        """
        scheme = _SCHEMES.get(request.headers.get(b"x-forwarded-proto", b"").strip())
        request.scheme = scheme or request.scheme
        values = [value.decode("latin-1") for name, value in request.raw_headers if name == b"x-forwarded-for"]
        for entry in reversed(",".join(values).split(",")):
            address = _normalize(entry[:_MAX_ADDRESS])
            if address:
                request.peer = address
            if not address or self._all or not self.trusts(address):
                break


@lru_cache(1024)
def _normalize(entry: str) -> str:
    """Return the usual spelling of an address such as ``192.0.2.1:80`` or ``[2001:db8::1%eth0]``, or an empty string.

    Otherwise, every limit would treat another spelling as a second client.
    """
    text, bracket, _ = entry.strip().removeprefix("[").partition("]")
    if not bracket and text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    return str(getattr(address, "ipv4_mapped", None) or address)
