"""The clients of the authorization server, and the list of upstream users who may sign in.

The operator configures a client, or the client describes itself: its id is the URL of a metadata document, or it
registers at `POST /register`.
"""

import re
from collections.abc import Callable, Collection, Mapping
from ipaddress import ip_address
from typing import Any, cast

from msgspec import Struct

from millstream._http.client.pool import FetchedDocument, OutboundError, check_url, fetch, is_public
from millstream._http.hosts import is_loopback
from millstream._http.message import Handler, HttpRequest, Response, media_type, peer_network
from millstream._limits import Limiter, Rate
from millstream._protocol.json_schema import is_array, is_object
from millstream._protocol.jsonrpc import MALFORMED, decoder
from millstream._recent import Recent
from millstream._server.functions.description import Names
from millstream._stores.rates import share_for
from millstream._tasks import SingleFlight
from millstream.auth._authorization_server.config import IssuerConfig
from millstream.auth._authorization_server.records import (
    ASSERTED,
    CODE,
    METHODS,
    REFRESH,
    OAuthClient,
    OAuthError,
    check_redirect,
    digest,
    fingerprint,
    new_secret,
    reply,
)
from millstream.auth._authorization_server.tickets import Vault
from millstream.auth._jose import public_set
from millstream.auth._key_file import check_scopes
from millstream.auth._method import Unavailable
from millstream.auth.providers import RegistrationDenied, SignInFailed

MAX_BYTES = 5 * 1024
_DEFAULT_CACHE_SECONDS = 300.0
_MAX_CACHE_SECONDS = 86_400.0
_MAX_CACHED = 512
_MAX_CONCURRENT_FETCHES = 16
TOO_MANY = "Too many client documents are being looked up. Try again in a minute."
_NO_ACCESS = (
    "If the server has no access to the internet, its operator can set metadata_documents=False in auth.issuer(…). "
    "Then, clients register instead."
)
MAX_REDIRECTS = 16
MAX_NAME = 80
_AGE = re.compile(r"(?:^|[,\s])max-age=(\d{1,9})")


def judge_of(*, here: bool) -> Callable[[str], bool]:
    """Return a predicate for allowed addresses: public ones, and loopback if `here` is set."""
    return (
        (lambda address: is_public(address) or ip_address(address.partition("%")[0]).is_loopback) if here else is_public
    )


def check_id(url: str) -> None:
    """Check that a URL is a valid client id.

    Raises:
        Unavailable: The URL isn't valid.
    """
    try:
        parts = check_url(url)
    except OutboundError as exc:
        raise Unavailable(f"The client id isn't a valid client URL. {exc}") from None
    dots = any(
        each in (".", "..") or each.lower() in ("%2e", "%2e%2e", ".%2e", "%2e.") for each in parts.path.split("/")
    )
    if parts.path in ("", "/") or "#" in url or dots:
        raise Unavailable("The client id must be a URL with a path, without a fragment or dot segments.")


def read_document(url: str, answer: FetchedDocument) -> OAuthClient:
    """Return the client that a document describes.

    Raises:
        Unavailable: The document is invalid, or describes another client.
    """
    kind = media_type(answer.headers)
    if kind != b"application/json" and not (kind.startswith(b"application/") and kind.endswith(b"+json")):
        raise Unavailable("The client's metadata document is not JSON.")
    try:
        said = _decode(answer.body)
    except MALFORMED:
        raise Unavailable("The client's metadata document is not JSON.") from None
    if said.get("client_id") != url:
        raise Unavailable("The client's metadata document describes another client.")
    if "client_secret" in said or "client_secret_expires_at" in said:
        raise Unavailable("The client's metadata document is public, but contains a secret. Remove it.")
    try:
        return client_of(url, said, "document", methods=("none", "private_key_jwt"), default="none")
    except ValueError as exc:
        raise Unavailable(f"The client's metadata document is invalid. {exc}") from None


def client_of(
    id: str, said: Mapping[str, Any], source: str, *, methods: tuple[str, ...], default: str, secret_hash: str = ""
) -> OAuthClient:
    """Return a client from its metadata (RFC 7591 §2).

    Raises:
        ValueError: The metadata is invalid; `RedirectRefused` for a redirect URI.
    """
    method = said.get("token_endpoint_auth_method", default)
    if method not in methods:
        raise ValueError(f"token_endpoint_auth_method must be one of {', '.join(methods)}.")
    kind = said.get("application_type")
    native = {"native": True, "web": False}.get(kind) if isinstance(kind, str) else None
    uris = said.get("redirect_uris")
    if not is_array(uris) or not 0 < len(uris) <= MAX_REDIRECTS:
        raise RedirectRefused(f"redirect_uris must be a list of 1 to {MAX_REDIRECTS} URIs.")
    for each in uris:
        try:
            check_redirect(each if isinstance(each, str) else "", native=native)
        except ValueError as exc:
            raise RedirectRefused(str(exc)) from None
    grants = said.get("grant_types", [CODE])
    if not is_array(grants) or CODE not in grants:
        raise ValueError("grant_types must include authorization_code.")
    keys, keys_url = _keys_of(said) if method == "private_key_jwt" else (None, "")
    name = said.get("client_name")
    if said.get("dpop_bound_access_tokens", False) is not False:
        raise ValueError("Sender-constrained tokens (dpop_bound_access_tokens) aren't supported.")
    return OAuthClient(
        id,
        name=_plain(name) if isinstance(name, str) else "",
        redirect_uris=tuple(uris),
        method=method,
        secret_hash=secret_hash if method.startswith("client_secret") else "",
        grant_types=tuple(each for each in (CODE, REFRESH, ASSERTED) if each in grants),
        keys=keys,
        keys_url=keys_url,
        source=source,
    )


class RedirectRefused(ValueError):
    """A redirect URI isn't allowed."""


def _keys_of(said: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, str]:
    keys, url = said.get("jwks"), said.get("jwks_uri")
    if is_object(keys) and url is None:
        return public_set(keys), ""
    if isinstance(url, str) and keys is None:
        try:
            check_url(url)
        except OutboundError as exc:
            raise ValueError(f"jwks_uri is invalid. {exc}") from None
        return None, url
    raise ValueError("private_key_jwt requires either jwks or jwks_uri.")


def _plain(name: str) -> str:
    """Return a name without control characters and characters that reverse text."""
    return " ".join("".join(each if each.isprintable() else " " for each in name).split())[:MAX_NAME]


def _age_of(answer: FetchedDocument) -> float:
    control = answer.headers.get(b"cache-control", b"").decode("latin-1").lower()
    if "no-store" in control or "no-cache" in control:
        return 0.0
    age = _AGE.search(control)
    return min(float(age[1]), _MAX_CACHE_SECONDS) if age else _DEFAULT_CACHE_SECONDS


EVERYBODY = "*"
_DOMAIN = r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+"
EMAIL = rf"[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~-]+@{_DOMAIN}|@{_DOMAIN}"
"""Pattern of an e-mail address, or of a domain after ``@``."""

Allow = Names | Mapping[str, Names]
"""Entries of the list, or a mapping of entries to the scopes that their users may grant to clients."""


class AllowlistEntry(Struct, frozen=True):
    """An entry of the list."""

    scopes: tuple[str, ...]
    number: float
    """Hash of the entry, its scopes, and the upstream."""


class Allowlist:
    """The users who may sign in.

    The operator lists them: ``allow=["@example.com"]``, or ``["*"]`` for everyone. An upstream returns verified names,
    such as an e-mail address, its domain, or a login. The first entry that equals one of them applies. Only whole names
    match, without regard to ASCII case.
    """

    def __init__(self, given: Allow, at: str, *, form: str, examples: str) -> None:
        """Parse the list. `at` is the upstream's URL, `form` the pattern of an entry; `examples` is for error messages.

        Raises:
            ValueError: The list is empty, or an entry can't match any user of the upstream.
            TypeError: The list is a string.
        """
        if isinstance(cast("object", given), str):
            raise TypeError(f"allow must be a list: allow=[{given!r}]")
        if not given:
            raise ValueError(f"allow must list who may sign in: {examples}.")
        pairs = cast("Mapping[str, Names]", given if isinstance(given, Mapping) else dict.fromkeys(given, ()))
        self._entries: dict[str, AllowlistEntry] = {}
        for name, scopes in pairs.items():
            if name != EVERYBODY and not re.fullmatch(form, name):
                raise ValueError(f"allow can't contain {name!r}. Valid entries: {examples}.")
            if isinstance(cast("object", scopes), str):
                raise TypeError(f"The scopes of {name!r} must be a list: [{scopes!r}]")
            key, allowed = lower(name), check_scopes(scopes)
            self._entries[key] = AllowlistEntry(allowed, fingerprint(allowed, at, key))
        self._numbers = {each.number for each in self._entries.values()}

    def find(self, names: Collection[str], shown: str) -> AllowlistEntry:
        """Return the first entry that equals one of the names. `shown` is the user's name in error messages.

        Raises:
            SignInFailed: No entry matches.
        """
        known = {EVERYBODY, *map(lower, names)}
        for name, entry in self._entries.items():
            if name in known:
                return entry
        raise SignInFailed(
            f"{shown} may not sign in here. Use another account, or contact the operator of this server."
        )

    def has_entry(self, number: float) -> bool:
        """Return whether the entry with this number still exists, with the same scopes."""
        return number in self._numbers

    def some(self, text: str) -> bool:
        """Return whether an entry contains a text."""
        return any(text in each for each in self._entries)


def lower(name: str) -> str:
    """Return an ASCII name in lower case. Other names stay, because some of their letters would become ASCII."""
    return name.lower() if name.isascii() else name


UNUSED = 86_400.0
"""Seconds before an unused registration expires."""
USED = 90 * 86_400.0
"""Seconds after its last use before a registration with a consent expires."""
_MAX_ID = 2048
_LOOKUPS = Rate(60, 60)
"""Maximum fetches of documents and their key sets caused by one address."""


class Clients:
    """All clients.

    A client id can be the URL of a document that describes the client (draft-ietf-oauth-client-id-metadata-document).
    Documents are fetched over https from public addresses, without redirects and with a small size limit. A development
    server may also fetch from its own machine. Each worker caches documents according to their Cache-Control; failures
    aren't cached.
    """

    def __init__(self, config: IssuerConfig, vault: Vault, *, provided: bool = False) -> None:
        """Create the lookup. `provided` means that the provider finds all clients."""
        self._lookups = vault.limiter("client-lookup", _LOOKUPS)
        self._config = config
        self._vault = vault
        self._provided = provided
        self.judge: Callable[[str], bool] = judge_of(here=not config.secure)
        """Returns whether a document may be fetched from an address."""
        self._documents: Recent[str, tuple[float, OAuthClient]] = Recent(_MAX_CACHED)
        """URL -> expiry and client; the oldest are dropped first."""
        self._flight = SingleFlight[OAuthClient]()

    async def find(self, client_id: str, request: HttpRequest) -> OAuthClient | None:
        """Return a client; None if the id is unknown.

        Args:
            client_id: The client's id.
            request: Request that causes the lookup, for the limit on fetches of metadata documents.

        Raises:
            Unavailable: The client's document can't be fetched, or none are; the message gives the reason.
        """
        if not client_id or len(client_id) > _MAX_ID or not client_id.isascii() or not client_id.isprintable():
            return None
        found = await self._config.provider.find_client(client_id) or self._config.clients.get(client_id)
        if found is not None or self._provided:
            return found
        if "://" in client_id:
            return await self._find_described(client_id, request)
        for kind in ("oauth-client", "oauth-new"):
            found = await self._vault.get(f"{kind}:{client_id}", OAuthClient)
            if found is not None:
                return found
        return None

    async def _find_described(self, url: str, request: HttpRequest) -> OAuthClient:
        """Return the client that the document at a URL describes.

        Raises:
            Unavailable: The document is invalid, or can't be fetched.
        """
        if not self._config.metadata_documents:
            raise Unavailable("This server doesn't fetch metadata documents. Register the client instead.")
        kept = self._documents.get(url)
        if kept is not None and kept[0] > self._vault.clock():
            return kept[1]
        check_id(url)
        flight = self._flight
        if not flight.runs(url) and (len(flight) >= _MAX_CONCURRENT_FETCHES or not self.may_fetch(request)):
            raise Unavailable(TOO_MANY)
        return await flight.run(url, lambda: self._fetch(url))

    async def _fetch(self, url: str) -> OAuthClient:
        try:
            answer = await fetch(url, is_allowed=self.judge, max_bytes=MAX_BYTES)
        except OutboundError as exc:
            raise Unavailable(f"The client's metadata document couldn't be fetched. {exc} {_NO_ACCESS}") from None
        client = read_document(url, answer)
        age = _age_of(answer)
        if age > 0:
            self._documents.keep(url, (self._vault.clock() + age, client))
        else:
            self._documents.pop(url, None)
        return client

    def may_fetch(self, request: HttpRequest) -> bool:
        """Count a fetch for a request, and return whether it's allowed. At a development server, only callers on this
        machine may cause one.
        """
        here = self._config.secure or is_loopback(request.peer)
        return here and self._lookups.report(peer_network(request.peer)) <= 0

    async def add(self, client: OAuthClient) -> None:
        """Store a new registration. A flood of registrations displaces only unused ones."""
        await self._vault.put(f"oauth-new:{client.id}", client, UNUSED, lossy=True)

    async def renew(self, client: OAuthClient) -> None:
        """Extend a registration that a user has approved, or that refreshes a token."""
        if client.source == "registered":
            await self._vault.put(f"oauth-client:{client.id}", client, USED)
            await self._vault.kv.delete(f"oauth-new:{client.id}")


RATE = Rate(100, 3600)
"""Maximum registrations per address."""
_MAX_BODY = 16 * 1024
_decode = decoder(dict[str, Any])


def registration_endpoint(config: IssuerConfig, clients: Clients, vault: Vault) -> Handler:
    """Return the handler that registers clients.

    This is dynamic client registration (RFC 7591). Registered clients are unverified. Unused registrations expire after
    a day, or earlier when the storage for their address is full. They're rate-limited per address.
    """
    limiter = vault.limiter("register", RATE)

    async def post(request: HttpRequest) -> Response:
        key = await charge_registration(limiter, request)
        said = read_metadata(request)
        secret = new_secret()
        try:
            client = client_of(
                f"{share_for(key)}.mc_{new_secret()[:22]}",
                said,
                "registered",
                methods=METHODS,
                default="client_secret_basic",
                secret_hash=digest(secret),
            )
            await config.provider.check_registration(client)
        except RedirectRefused as exc:
            raise OAuthError("invalid_redirect_uri", str(exc)) from None
        except ValueError as exc:
            raise OAuthError("invalid_client_metadata", str(exc)) from None
        except RegistrationDenied as exc:
            raise OAuthError("access_denied", str(exc), 403) from None
        await clients.add(client)
        return reply(_describe(client, secret, int(vault.clock()), said), 201)

    return post


async def charge_registration(limiter: Limiter, request: HttpRequest) -> str:
    """Count a registration, and return the network that it comes from.

    Raises:
        OAuthError: There were too many from this network.
    """
    key = peer_network(request.peer)
    wait = await limiter.charge(key)
    if wait > 0:
        raise OAuthError(
            "temporarily_unavailable",
            "Too many registrations from your address. Try again later.",
            429,
            limiter.header_lines(key, wait),
        )
    return key


def read_metadata(request: HttpRequest) -> dict[str, Any]:
    """Return the client metadata in a request.

    Raises:
        OAuthError: The body isn't a JSON object, or is too large.
    """
    if media_type(request.headers) != b"application/json":
        raise OAuthError("invalid_client_metadata", "Send the metadata as application/json.", 415)
    if len(request.body) > _MAX_BODY:
        raise OAuthError("invalid_client_metadata", "Client metadata can have up to 16 KiB.", 413)
    try:
        return _decode(request.body)
    except MALFORMED:
        raise OAuthError("invalid_client_metadata", "The body is not a JSON object.") from None


def _describe(client: OAuthClient, secret: str, now: int, said: dict[str, Any]) -> dict[str, Any]:
    """Return the response to a registration (RFC 7591 §3.2.1), which is the only one with the secret."""
    kind = said.get("application_type")
    members: dict[str, Any] = {
        "client_id": client.id,
        "client_id_issued_at": now,
        "client_name": client.name,
        "redirect_uris": client.redirect_uris,
        "grant_types": client.grant_types,
        "response_types": ["code"],
        "token_endpoint_auth_method": client.method,
        "application_type": kind if kind in ("native", "web") else None,
        "jwks": client.keys,
        "jwks_uri": client.keys_url,
    }
    if client.secret_hash:
        members |= {"client_secret": secret, "client_secret_expires_at": 0}
    return {name: value for name, value in members.items() if value not in (None, "")}
