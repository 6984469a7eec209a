"""The guard of handlers that aren't public: sets `HttpRequest.principal` from the credential, or sends a challenge.

Verdicts are cached under the raw value of the ``Authorization`` header, so later requests cost one dictionary lookup.
There, a request with an invalid credential is rejected, and isn't treated as anonymous.
"""

import logging
import math
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from time import monotonic
from urllib.parse import urlsplit

from msgspec import Struct
from msgspec.structs import replace

from millstream._http.hosts import parse_authority
from millstream._http.message import JSON_HEAD, Handler, HttpRequest, Response, Sink, peer_network, plain_problem
from millstream._http.server import HeaderLineCache
from millstream._limits import Limiter, Rate, StoreLimiter
from millstream._protocol.errors import INSUFFICIENT_SCOPE, ProtocolError
from millstream._protocol.jsonrpc import encode
from millstream._protocol.principal import Principal
from millstream._protocol.redaction import redact_foreign
from millstream._server.address import Address
from millstream._server.calls.services import UNLIMITED, ObserveMessage, RequestLimits, ignore_message
from millstream._text import MAX_SHOWN
from millstream.auth._method import (
    AuthMethod,
    CachedRejection,
    Clock,
    Identity,
    KeyedSemaphore,
    Rejection,
    RejectionCache,
    Unavailable,
    Verdict,
    Verdicts,
    addresses_for,
    prefetch_all,
)
from millstream.auth._tokens import Discovery

logger = logging.getLogger("millstream")

METADATA_PATH = "/.well-known/oauth-protected-resource"
SERVER_METADATA_PATH = "/.well-known/oauth-authorization-server"
_PUBLIC = JSON_HEAD + b"cache-control: public, max-age=300\r\n"
_NO_STORE = b"cache-control: no-store\r\n"


class Addresses(Struct):
    """The URLs at which clients reach MCP."""

    resource: str
    """URL of the MCP endpoint. If it's empty, metadata contains the requested URL, which has an allowed host."""
    served: Sequence[Address]
    """The main address, and those of sets."""
    root: str = ""
    """Path at which an application mounts the server."""

    def mount(self, root: str) -> None:
        """Set the path at which an application mounts the server, since the application doesn't serve our well-known
        paths.
        """
        if urlsplit(self.resource).path.startswith(f"{root}/"):
            self.root = root

    def urls(self, request: HttpRequest | None) -> Mapping[str, str]:
        """Return the URLs for clients by path, as for `addresses_for`, or empty if they're unknown."""
        resource = self.resource
        if not resource:
            host = None if request is None else parse_authority(request.headers.get(b"host", b""))
            if request is None or host is None:
                return {}
            name = f"[{host.name}]" if ":" in host.name else host.name
            port = f":{host.port.decode()}" if host.port else ""
            resource = f"{request.scheme}://{name}{port}{request.root_path}{self.served[0].path}"
        return addresses_for(resource, self.served)

    def scopes(self, request: HttpRequest) -> frozenset[str]:
        """Return the scopes that the requested address needs, besides those of the whole server."""
        found = (each.scopes for each in self.served if request.path in (*each.endpoints, *each.paths))
        return next(found, frozenset[str]())

    def metadata_url(self, request: HttpRequest | None) -> str:
        """Return the URL of the metadata for the address that was requested, or for the MCP endpoint."""
        urls = self.urls(request)
        url = urls.get(request.path if request else "") or urls.get(self.served[0].path)
        if not url:
            return ""
        # The well-known path precedes the resource's path (RFC 9728 §3), and follows the one of a mounted server.
        at, root = urlsplit(url), self.root if self.resource or request is None else request.root_path
        path = at.path.removeprefix(root)
        return f"{at.scheme}://{at.netloc}{root}{METADATA_PATH}{'' if path == '/' else path}"


class ChallengeResponses(Struct, kw_only=True):
    """The challenges and refusals of one server.

    They follow RFC 6750 §3 and RFC 9728 §5.1, with problem details for people. They don't contain text from the
    credential.
    """

    addresses: Addresses | None = None
    """Addresses with metadata, if tokens come from an authorization server."""
    oauth: bool = False
    """Whether credentials are tokens of other servers, or are checked by other code. Invalid ones then get a 401, so
    clients request another."""
    scopes: Collection[str] = ()
    """Scopes that every caller needs."""
    scope_prefix: str = ""
    """Prefix that the issuer expects on the scopes that a client requests."""
    form: Callable[[HttpRequest], Response | None] = lambda request: None
    """Returns the sign-in form for browsers, or None for other clients."""

    def for_missing(self, request: HttpRequest, *, ignored: bool = False) -> Response:
        """Respond to a request without a credential. `ignored` is whether its sign-in cookie doesn't apply."""
        text = "Sign in: send the header Authorization: Bearer, followed by your key or token."
        if other := next((name for name, _ in request.raw_headers if _OTHER_KEY_HEADER.fullmatch(name)), b""):
            text += f" This server reads {other.decode().title()} only if it's set as `auth_key_header`."
        if ignored:
            text += (
                " The sign-in cookie is accepted only from this server's own pages, which browsers mark with "
                "Sec-Fetch-Site: same-origin."
            )
        page = self.form(request)
        head = self._challenge(request, "", self._scopes_for(request))
        return (
            plain_problem(401, text, head + _NO_STORE) if page is None else Response(page.body, 401, page.head + head)
        )

    def wrong(self, request: HttpRequest, reason: str) -> Response:
        """Respond to an invalid credential. The status is 403 if there are only API keys, because clients can't request
        a new one. `reason` may be empty.
        """
        if self.oauth:
            reason = reason[:MAX_SHOWN].encode("utf-8", "replace").decode()
            head = self._head(request, "invalid_token", self._scopes_for(request), reason)
            return plain_problem(401, reason or "The token is invalid or has expired.", head)
        return plain_problem(403, "The key is invalid or has been removed.", _NO_STORE)

    def for_malformed(self, request: HttpRequest, text: str) -> Response:
        """Respond to a malformed credential."""
        return plain_problem(400, text, self._head(request, "invalid_request", ()))

    def unavailable(self, text: str) -> Response:
        """Respond while credentials can't be verified."""
        return plain_problem(503, text, b"retry-after: 5\r\n" + _NO_STORE)

    def insufficient(self, request: HttpRequest, needed: Collection[str]) -> Response:
        """Respond to a valid credential with insufficient scope."""
        wanted = {*needed, *self._scopes_for(request)}
        return plain_problem(403, _missing_scope_text(needed), self._head(request, "insufficient_scope", wanted))

    def refuse(self, needed: Collection[str]) -> ProtocolError:
        """Return the error for one MCP method, with all scopes that the client should request."""
        wanted = {*self.scopes, *needed}
        return ProtocolError(
            INSUFFICIENT_SCOPE,
            _missing_scope_text(needed),
            {"error": "insufficient_scope", "scope": self._scope_text(wanted)},
            status=403,
            head=self._head(None, "insufficient_scope", wanted),
        )

    def _scopes_for(self, request: HttpRequest) -> set[str]:
        return {*self.scopes, *(() if self.addresses is None else self.addresses.scopes(request))}

    def _scope_text(self, scopes: Collection[str]) -> str:
        return " ".join(self.scope_prefix + each for each in sorted({*scopes}))

    def _head(self, request: HttpRequest | None, error: str, scopes: Collection[str], reason: str = "") -> bytes:
        return self._challenge(request, error, scopes, reason) + _NO_STORE

    def _challenge(self, request: HttpRequest | None, error: str, scopes: Collection[str], reason: str = "") -> bytes:
        metadata = "" if self.addresses is None else self.addresses.metadata_url(request)
        parts = {
            "error": error,
            "error_description": reason,
            "scope": self._scope_text(scopes),
            "resource_metadata": metadata,
        }
        said = ", ".join(f'{name}="{_UNQUOTABLE.sub("?", value)}"' for name, value in parts.items() if value)
        return f"www-authenticate: Bearer{' ' if said else ''}{said}\r\n".encode()


_UNQUOTABLE = re.compile(r"[^\x20\x21\x23-\x5b\x5d-\x7e]")
"""Matches characters that a challenge's values can't contain (RFC 6750 §3)."""


def _missing_scope_text(needed: Collection[str]) -> str:
    return f"This requires a scope that your account, key, or token doesn't have: {' and '.join(sorted(needed))}."


def metadata_paths(
    methods: Sequence[AuthMethod], name: str, known: Callable[[str], Collection[str]], addresses: Addresses
) -> Mapping[str, Handler]:
    """Return the GET handlers of one server's metadata by path: at the root, and with the internal and external path of
    each MCP address.

    Protected resource metadata tells clients where to get a token for this server (RFC 9728). It describes the
    address whose path it has. Clients of revision 2025-03-26 instead request the authorization server's metadata at
    this server's origin, and get a copy. Both documents are public, for all origins.

    Args:
        methods: Auth methods. At least one has an issuer.
        name: Display name of the server.
        known: Returns all scopes that the server currently uses at one of its paths.
        addresses: Addresses of MCP.
    """
    methods = [each for each in methods if each.issuers]
    discovery = Discovery(methods[0].issuers[0])
    endpoint = addresses.served[0].path
    served = {path for each in addresses.served for path in each.endpoints} - {"/"}
    inside = {METADATA_PATH: endpoint, **{METADATA_PATH + each: each for each in sorted(served)}}
    urls = addresses_for(addresses.resource, addresses.served)
    outside = {METADATA_PATH + urlsplit(urls[each]).path: each for each in sorted(served)}
    # A proxy may have removed a path in front of the server's. Clients leave out a slash at the end.
    paths = {path.rstrip("/"): each for path, each in outside.items()} | outside | inside

    async def default_scopes() -> list[str]:
        """Return the scopes to list for a server that needs none. Otherwise, the Python SDK would request each one that
        the issuer lists, which Keycloak refuses.
        """
        if addresses.resource.startswith(discovery.issuer):  # our own issuer, without OpenID Connect
            return []
        try:
            listed = (await discovery.metadata()).get("scopes_supported")
        except Unavailable:
            return []
        return ["openid"] if isinstance(listed, list) and "openid" in listed else []

    async def describe_resource(request: HttpRequest) -> Response:
        """Respond with the metadata of the requested address, unless it has been removed."""
        scopes = {scope for each in methods for scope in each.scopes} | set(known(paths[request.path]))
        named = [methods[0].scope_prefix + each for each in sorted(scopes - {"offline_access"})]
        url = addresses.urls(request).get(paths[request.path])
        if not any(paths[request.path] in each.endpoints for each in addresses.served):
            return plain_problem(404, "Not found. MCP isn't served at this address.")
        members = {
            "resource": (addresses.resource if request.path == METADATA_PATH else "") or url,
            "authorization_servers": list(dict.fromkeys(issuer for each in methods for issuer in each.issuers)),
            "scopes_supported": named or await default_scopes(),
            "bearer_methods_supported": ["header"],
            "resource_name": name,
        }
        return Response(encode({name: value for name, value in members.items() if value}), 200, _PUBLIC)

    async def describe_server(request: HttpRequest) -> Response:
        """Respond with the metadata of the authorization server."""
        try:
            return Response(encode(await discovery.metadata()), 200, _PUBLIC)
        except Unavailable as exc:
            return plain_problem(503, str(exc), b"retry-after: 5\r\n")

    return {**dict.fromkeys(sorted(paths), describe_resource), SERVER_METADATA_PATH: describe_server}


Ambient = Callable[[HttpRequest, bool], Awaitable[Principal | Response | None]]
"""Returns the principal of an ambient credential, such as a cookie, or None without one that applies. The second
argument is whether the request is for one of the program's own routes.
"""

MAX_CREDENTIAL = 16 * 1024
_LINES_PER_REASON = Rate(1, 60)
"""Maximum lines in the log per address and reason."""
_LINES = Rate(60, 60)
"""Maximum lines in the log about rejected credentials."""
_FORGERIES = Rate(600, 60)
"""Maximum invalid signed tokens per address. Those of a company behind one address are rarely invalid."""
_MAX_CONCURRENT = 8
"""Maximum concurrent verifications per address. Others wait, so that parallel guesses aren't all verified before the
first failure is counted.
"""
_CREDENTIAL = re.compile(rb"[\x21-\x7e]+")
_OTHER_KEY_HEADER = re.compile(rb"(x-)?(goog-)?(api|auth|access)-?(key|token)")
"""Headers in which clients of other servers send keys."""
_KEY_HEADER = re.compile(r"(?i)(?!sec-|x-csrf|csrf|x-xsrf)[a-z0-9-]{0,58}(?:key|token)")


def _is_bearer(value: bytes) -> bool:
    """Return whether an ``Authorization`` header has the only scheme that the guard reads."""
    return value.partition(b" ")[0].lower() == b"bearer"


def _combine(rejections: Sequence[Rejection], *, shown: bool) -> Rejection:
    """Return the rejection by all methods together.

    Args:
        rejections: The rejection of each method.
        shown: Whether one of them has sent the credential to another server. It then counts as a guess, even if it has
            a signature, so that the number of requests to that server is limited.
    """
    seconds = min((each.seconds for each in rejections), default=0.0)
    best = next((each for each in rejections if each.is_genuine), None)
    if best is None:
        best = next((each for each in rejections if each.is_signed), None)
        best = best and replace(best, is_signed=not shown)
    if best is None:
        # It could have been meant for any method.
        best = rejections[0] if len(rejections) == 1 else Rejection()
    return replace(best, seconds=seconds)


class AuthGuard:
    """The guard of one running server."""

    def __init__(
        self,
        methods: Sequence[AuthMethod],
        challenges: ChallengeResponses,
        *,
        key_header: str = "",
        failures: Rate,
        clock: Clock = monotonic,
    ) -> None:
        if key_header and not _KEY_HEADER.fullmatch(key_header):
            raise ValueError(
                f"auth_key_header can't be {key_header!r}. Use a header such as X-API-Key, whose name ends with "
                "Key or Token, so that its value is kept out of logs."
            )
        self._key_header = key_header.lower().encode()
        """Header in which clients may send a key or token, in addition to ``Authorization``."""
        self.methods: tuple[AuthMethod, ...] = tuple(sorted(methods, key=lambda each: each.shows))
        """Methods that verify locally come first, so that their credentials aren't sent elsewhere."""
        self.on_failure: Callable[[str], None] = lambda address: None
        """Called with the address of an invalid credential, unless the address is throttled."""
        self.note: ObserveMessage = ignore_message
        """Observes messages that are rejected for their scopes."""
        self.pool: StoreLimiter | None = None
        """Limiter that shares failures between workers."""
        self.ambient: Ambient | None = None
        """Authenticates requests without an ``Authorization`` header."""
        self.on_refresh: list[Callable[[Callable[[str, float], None]], None]] = []
        """Called once a second with the callback of `refresh`, for users who have signed out."""
        self.clock: Clock = clock
        self.challenges: ChallengeResponses = challenges
        self.verdicts: Verdicts = Verdicts()
        self._rejections = RejectionCache()
        self.header_lines: HeaderLineCache = HeaderLineCache()
        """Cached header lines of the server's connections, including valid credentials."""
        self.on_revocation: list[Callable[[], None]] = []
        """Called when credentials may have been revoked."""
        self._epochs = [method.epoch() for method in methods]
        self._failures = Limiter("sign-in", failures, clock=clock, pool=lambda: self.pool)
        self._forgeries = Limiter("forged", _FORGERIES, clock=clock)
        """Signed tokens that aren't valid. They can't be guessed, but verifying each takes time."""
        self._lines_per_reason = Limiter("log", _LINES_PER_REASON, clock=clock, max_keys=10_000)
        self._lines = Limiter("log", _LINES, clock=clock)
        self._checks = KeyedSemaphore(_MAX_CONCURRENT)
        self.limits: RequestLimits = UNLIMITED
        """Rate limits that rejected credentials count toward."""

    def protect(self, handler: Handler, *, scope: str = "", message: str = "", own: bool = False) -> Handler:
        """Wrap a handler in this guard.

        Args:
            handler: Handler to protect.
            scope: Additional scope that callers need.
            message: Describes a request without that scope for message logs.
            own: Whether it's one of the program's own routes, which the sign-in cookie opens.
        """
        clock, known, needed = self.clock, self.verdicts.get, frozenset((scope,)) if scope else frozenset[str]()

        async def ask(request: HttpRequest) -> Response | Sink | None:
            found = await self(request, own=own)
            if not isinstance(found, Principal):
                return found
            if not found.has(needed):
                if message:
                    self.note(message, "http", status="403", principal=found, address=request.peer)
                return self.challenges.insufficient(request, needed)
            request.principal = found
            return await handler(request)

        def authenticate(request: HttpRequest) -> Awaitable[Response | Sink | None]:
            # Fast path: one lookup, no extra coroutine.
            headers = request.headers
            verdict = known(headers.get(b"authorization", b""))
            if verdict is None or verdict[1] <= clock() or len(headers) != len(request.raw_headers):
                return ask(request)
            request.principal = verdict[0]
            return handler(request)

        return ask if needed or self._key_header else authenticate

    async def __call__(self, request: HttpRequest, *, own: bool = False) -> Principal | Response:
        """Return the principal, or the response that rejects the request."""
        if request.root_path and self.challenges.addresses is not None:
            self.challenges.addresses.mount(request.root_path)
        value = request.headers.get(b"authorization")
        names = [name for name, _ in request.raw_headers if name in (b"authorization", self._key_header)]
        # If a header is repeated, another parser could use the other value.
        if repeated := [name for name in names if names.count(name) > 1]:
            return self.challenges.for_malformed(request, f"The {repeated[0].decode().title()} header is repeated.")
        if self._key_header and (key := request.headers.get(self._key_header)) is not None:
            # So both headers share cached verdicts, throttling, and the rules for their content.
            given = b"Bearer " + key.strip(b" ")
            if not _CREDENTIAL.fullmatch(given[7:]):
                name = self._key_header.decode().title()
                text = f"The {name} header must have only the key or token, without Bearer."
                return self.challenges.for_malformed(request, text)
            if value is not None and _is_bearer(value) and b"Bearer " + value.partition(b" ")[2].strip(b" ") != given:
                return self.challenges.for_malformed(
                    request, "The request has two different credentials. Send only one."
                )
            value = given  # a proxy may have used Authorization for another scheme
        if value is None:
            found = await self.ambient(request, own) if self.ambient is not None else None
            return self.challenges.for_missing(request) if found is None else found
        verdict = self.cached_verdict(value)
        return await self._judge(request, value) if verdict is None else verdict.principal

    async def _judge(  # noqa: PLR0911  one for each outcome
        self, request: HttpRequest, value: bytes
    ) -> Principal | Response:
        scheme, _, credential = value.partition(b" ")
        credential = credential.strip(b" ")
        if not _is_bearer(value):
            return self.challenges.for_missing(request)
        if not _CREDENTIAL.fullmatch(credential):
            return self.challenges.for_malformed(
                request, "The Authorization header has no valid token. Send Bearer, a space, and the token."
            )
        # Normalize the header, so that variants don't fill the cache.
        key = b"%b %b" % (scheme if scheme == b"bearer" else b"Bearer", credential)
        if (verdict := self.cached_verdict(key)) is not None:
            return verdict.principal
        try:
            async with self.verification_slot(request.peer):
                if (verdict := self.cached_verdict(key)) is not None:  # another request has verified it
                    return verdict.principal
                found, lacking = await self.check(request.peer, credential.decode("ascii"))
        except Unavailable as exc:
            self._log(request.peer, "It can't be verified at the moment.", exc.why)
            return self.challenges.unavailable(str(exc))
        if found is None:
            return self._throttle_response(peer_network(request.peer))
        if isinstance(found, Rejection):
            over = self.limits.charge(None, request.peer)
            return (
                self.challenges.wrong(request, found.reason)
                if over is None
                else plain_problem(429, over.message, over.head)
            )
        if lacking:
            return self.challenges.insufficient(request, lacking)
        self.verdicts.keep(key, Verdict(found.principal, self.clock() + found.seconds))
        self.header_lines.keep_credential(key)
        return found.principal

    def cached_verdict(self, key: bytes) -> Verdict | None:
        """Return the verdict on a credential, if it's still valid."""
        verdict = self.verdicts.get(key)
        return None if verdict is None or verdict.until <= self.clock() else verdict

    def verification_slot(self, address: str) -> AbstractAsyncContextManager[None]:
        """Wait for a slot to verify a credential from an address. Call `check`, or `refuse_throttled` and
        `record_failure`, inside.

        Raises:
            Unavailable: No slot was free in time.
        """
        return self._checks.hold(peer_network(address))

    async def check(self, address: str, credential: str) -> tuple[Identity | Rejection | None, frozenset[str]]:
        """Identify a credential from an address, and count it if it's a wrong guess.

        A guess is a credential that a legitimate caller wouldn't have. So these aren't counted: tokens whose signature
        is valid, although something else is wrong with them; tokens signed by an unknown private key, which can't be
        guessed; credentials that were valid before; and credentials that the address has already presented,
        unless they were sent to another server again. An address with too many guesses can still use methods whose
        credentials can't be guessed.

        Returns:
            The identity and the required scopes that it lacks, or the rejection, or None after too many guesses.

        Raises:
            Unavailable: See `identify`.
        """
        network, now = peer_network(address), self.clock()
        key = RejectionCache.key(network, credential)
        before, throttled = self._rejections.get(key), self._failures.wait(network) > 0
        lacking, was_shown, until = frozenset[str](), False, 0.0
        if before is not None and now < before.until:
            found: Identity | Rejection = before.rejection
            until = before.until  # repeating a credential doesn't extend its rejection
        else:
            if self._forgeries.wait(network) > 0 and not self._was_valid(credential):
                return None, lacking
            methods = [each for each in self.methods if not each.guessable] if throttled else self.methods
            found, lacking = await self.identify(credential, methods)
            was_shown = any(each.shows for each in methods)
            if isinstance(found, Rejection) and found.is_signed and not found.is_genuine:
                self._forgeries.take(network)
        if isinstance(found, Identity):
            if lacking:
                self._log(address, "The token lacks required scopes.", f"It needs {' and '.join(sorted(lacking))}.")
            return found, lacking
        if throttled:
            return (found if found.is_genuine or found.is_signed else None), lacking
        is_guess = not (found.is_genuine or found.is_signed or self._was_valid(credential))
        if is_guess and (before is None or was_shown):
            self._report_guess(network)
        if is_guess or found.seconds > 0:
            self._rejections.keep(key, CachedRejection(network, found, until or now + found.seconds))
        self.on_failure(address)
        if found.reason:
            self._log(address, found.reason, found.details)
        return found, lacking

    def _was_valid(self, credential: str) -> bool:
        """Return whether a credential was valid when it was last verified, as far as this worker knows."""
        raw = credential.encode()
        return b"Bearer " + raw in self.verdicts or b"bearer " + raw in self.verdicts

    def _log(self, address: str, reason: str, details: str) -> None:
        """Log why a credential was rejected, in a limited number of lines."""
        kind = f"{peer_network(address)} {reason}"
        if self._lines.wait("") <= 0 and self._lines_per_reason.take(kind) <= 0:
            self._lines.take("")
            logger.info(
                "Rejected a credential from %s. %s",
                address or "a client",
                f"{reason} {redact_foreign(details)}".rstrip(),
            )

    async def identify(
        self, credential: str, methods: Sequence[AuthMethod] | None = None
    ) -> tuple[Identity | Rejection, frozenset[str]]:
        """Return a credential's owner from the first method that accepts it, and the required scopes that it lacks; or
        why it isn't valid.

        Args:
            methods: The methods to try, by default all.

        Raises:
            Unavailable: No method accepted the credential, and at least one wasn't available.
        """
        nothing = frozenset[str]()
        if len(credential) > MAX_CREDENTIAL:
            return Rejection(f"Keys and tokens can have up to {MAX_CREDENTIAL // 1024} KiB."), nothing
        failure: Unavailable | None = None
        rejections: list[Rejection] = []
        shown = False
        for method in self.methods if methods is None else methods:
            try:
                found = await method.examine(credential)
            except Unavailable as exc:
                failure = exc
                continue
            if isinstance(found, Identity):
                return found, nothing if found.principal.has(method.scopes) else frozenset(method.scopes)
            rejections.append(found)
            shown |= method.shows
        if failure is not None:
            raise failure
        return _combine(rejections, shown=shown), nothing

    def refuse_throttled(self, address: str) -> Response | None:
        """Return the refusal for an address with too many invalid credentials, or None if it may try again."""
        key = peer_network(address)
        return self._throttle_response(key) if self._failures.wait(key) > 0 else None

    def _throttle_response(self, key: str) -> Response:
        wait = max(self._failures.wait(key), self._forgeries.wait(key))
        text = "Too many failed sign-ins from your address. Try again after the time in Retry-After."
        head = self._failures.header_lines(key, wait)
        return plain_problem(429, text, head + _NO_STORE)

    def record_failure(self, address: str) -> None:
        """Count a wrong password from an address."""
        self.on_failure(address)
        self._report_guess(peer_network(address))

    def _report_guess(self, network: str) -> None:
        """Count a guess. Log when it's the one that locks the address out."""
        was_free = self._failures.wait(network) <= 0
        self._failures.report(network)
        if was_free and (seconds := self._failures.wait(network)) > 0:
            text = "Too many failed sign-ins from %s. Further ones are refused for %d seconds."
            logger.warning(text, network or "a client", math.ceil(seconds))

    def holds(self, id: str) -> bool:
        """Return whether a principal with this id may still have a credential."""
        return any(method.holds(id) for method in self.methods)

    def lacks(self, id: str) -> bool:
        """Return whether to close the streams of this principal, which may have no valid credential any more."""
        return not self.holds(id)

    def has_several(self) -> bool:
        """Return whether it's known that there's more than one principal."""
        return sum(method.count() for method in self.methods) > 1

    def has_one(self) -> bool:
        """Return whether it's known that there's only one principal."""
        return all(method.rights() is not None for method in self.methods) and [
            method.count() for method in self.methods if method.count()
        ] == [1]

    def revocation_id(self, principal: Principal) -> str:
        """See `AuthMethod.revocation_id`."""
        return next((found for method in self.methods if (found := method.revocation_id(principal))), "")

    async def is_revoked(self, revocation_id: str) -> bool:
        """See `AuthMethod.is_revoked`."""
        for method in self.methods:
            if await method.is_revoked(revocation_id):
                return True
        return False

    async def prefetch(self) -> None:
        """Fetch issuers' metadata and keys before the first token and log failures."""
        await prefetch_all(self.methods)

    def close(self) -> None:
        """Release resources when the server stops."""
        for method in self.methods:
            method.close()

    def refresh(self, opened: Callable[[str, float], None] = lambda owner, until: None) -> bool:
        """End cached verdicts if a credential may have been revoked and return whether they were ended. Call once a
        second.

        Args:
            opened: Closes the streams of a user who has signed out; receives the owner and the expiry.
        """
        for end in self.on_refresh:
            end(opened)
        epochs = [method.epoch() for method in self.methods]
        if epochs == self._epochs:
            return False
        self._epochs = epochs
        self.verdicts.expire()
        self._rejections.clear()
        self.header_lines.forget_credentials()
        for on_revoked in self.on_revocation:
            on_revoked()
        return True
