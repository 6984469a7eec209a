"""Lookup of clients by id: configured ones, metadata documents, and registrations.

The operator's list of upstream users who may sign in: ``allow=["@example.com"]``, or ``["*"]`` for everyone.

An upstream returns verified names, such as an e-mail address, its domain, or a login. The first entry that equals one
of them applies. Only whole names match, without regard to ASCII case.

`POST /register`: dynamic client registration (RFC 7591). Registered clients are unverified.

Unused registrations expire after a day, or earlier when the storage for their address is full. Registrations are
rate-limited per address.
"""

import re
from collections.abc import Callable, Collection, Mapping
from hashlib import sha256
from typing import Any, cast

from msgspec import Struct

from millstream._http.hosts import is_loopback
from millstream._http.message import HttpRequest, Response, peer_network
from millstream._limits.limiters import Limiter, Rate
from millstream._protocol.jsonrpc import MALFORMED, decoder
from millstream._server.functions.description import Names
from millstream._stores.rates import share_for
from millstream.auth._authorization_server.answers import OAuthError, reply
from millstream.auth._authorization_server.config import IssuerConfig
from millstream.auth._authorization_server.documents import Documents, RedirectRefused, client_of, is_document
from millstream.auth._authorization_server.login_methods import SignInFailed
from millstream.auth._authorization_server.provider import RegistrationDenied
from millstream.auth._authorization_server.records import OAuthClient, digest, new_secret
from millstream.auth._authorization_server.signing import Vault
from millstream.auth._key_file import check_scopes
from millstream.auth._method import Unavailable

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
    """The users who may sign in."""

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
            self._entries[lower(name)] = _entry(at, lower(name), check_scopes(tuple(scopes)))
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

    def some(self, beginning: str = "", containing: str = "") -> bool:
        """Return whether an entry starts with `beginning` and contains `containing`."""
        return any(each.startswith(beginning) and containing in each for each in self._entries)


def _entry(at: str, name: str, scopes: tuple[str, ...]) -> AllowlistEntry:
    said = " ".join((at, name, *sorted(scopes))).encode()
    return AllowlistEntry(scopes, float(int.from_bytes(sha256(said).digest()[:6])))  # 48 bits: exact in a float


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
    """All clients."""

    def __init__(self, config: IssuerConfig, vault: Vault, documents: Documents | None) -> None:
        """Create the lookup. `documents` is None if metadata documents aren't supported."""
        self._lookups = Limiter("client-lookup", _LOOKUPS, pool=lambda: vault.pool)
        self._config = config
        self._vault = vault
        self._documents = documents

    async def find(self, client_id: str, may_fetch: Callable[[], bool] = lambda: True) -> OAuthClient | None:
        """Return a client; None if the id is unknown.

        Args:
            client_id: The client's id.
            may_fetch: Returns whether the client's metadata document may be fetched now.

        Raises:
            Unavailable: The client's document can't be fetched, or none are; the message gives the reason.
        """
        if not client_id or len(client_id) > _MAX_ID or not client_id.isascii() or not client_id.isprintable():
            return None
        found = await self._config.provider.find_client(client_id) or self._config.clients.get(client_id)
        if found is not None:
            return found
        if self._documents is None:
            return None  # the provider finds all clients
        if is_document(client_id):
            if not self._config.metadata_documents:
                raise Unavailable("This server doesn't fetch metadata documents. Register the client instead.")
            return await self._documents.find(client_id, may_fetch)
        for kind in ("oauth-client", "oauth-new"):
            found = await self._vault.get(f"{kind}:{client_id}", OAuthClient)
            if found is not None:
                return found
        return None

    def lookups_by(self, request: HttpRequest) -> Callable[[], bool]:
        """Return a function that counts a fetch for a request, and returns whether it's allowed. At a development
        server, only callers on this machine may cause one.
        """
        return lambda: (
            (self._config.secure or is_loopback(request.peer)) and self._lookups.report(peer_network(request.peer)) <= 0
        )

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
METHODS = ("none", "client_secret_basic", "client_secret_post", "private_key_jwt")
_decode = decoder(dict[str, Any])


class RegistrationEndpoint:
    """The registration endpoint."""

    def __init__(self, config: IssuerConfig, clients: Clients, vault: Vault) -> None:
        self._config = config
        self._clients = clients
        self._vault = vault
        self._limiter = Limiter("register", RATE, pool=lambda: vault.pool)

    async def post(self, request: HttpRequest) -> Response:
        """Register a client."""
        key = peer_network(request.peer)
        wait = await self._limiter.charge(key)
        if wait > 0:
            raise OAuthError(
                "temporarily_unavailable",
                "Too many registrations from your address. Try again later.",
                429,
                self._limiter.header_lines(key, wait),
            )
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
            await self._config.provider.check_registration(client)
        except RedirectRefused as exc:
            raise OAuthError("invalid_redirect_uri", str(exc)) from None
        except ValueError as exc:
            raise OAuthError("invalid_client_metadata", str(exc)) from None
        except RegistrationDenied as exc:
            raise OAuthError("access_denied", str(exc), 403) from None
        await self._clients.add(client)
        return reply(_describe(client, secret, int(self._vault.clock()), said), 201)


def read_metadata(request: HttpRequest) -> dict[str, Any]:
    """Return the client metadata in a request.

    Raises:
        OAuthError: The body isn't a JSON object, or is too large.
    """
    kind = request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
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
