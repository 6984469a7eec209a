"""`POST /register`: dynamic client registration (RFC 7591). Registered clients are unverified.

Unused registrations expire after a day, or earlier when the storage for their address is full. Registrations are
rate-limited per address.
"""

from typing import Any

from millstream._http.message import HttpRequest, Response, peer_network
from millstream._limits.limiters import Limiter, Rate
from millstream._protocol.jsonrpc import MALFORMED, decoder
from millstream._stores.rates import share_for
from millstream.auth._authorization_server.answers import OAuthError, reply
from millstream.auth._authorization_server.clients import Clients
from millstream.auth._authorization_server.config import IssuerConfig
from millstream.auth._authorization_server.documents import RedirectRefused, client_of
from millstream.auth._authorization_server.provider import RegistrationDenied
from millstream.auth._authorization_server.records import OAuthClient, digest, new_secret
from millstream.auth._authorization_server.vault import Vault

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
        try:
            return await self._register(request)
        except OAuthError as exc:
            return exc.response()

    async def _register(self, request: HttpRequest) -> Response:
        key = peer_network(request.peer)
        wait = await self._limiter.charge(key)
        if wait > 0:
            raise OAuthError(
                "temporarily_unavailable", "Too many registrations from your address. Try again later.", 429,
                self._limiter.header_lines(key, wait),
            )  # fmt: skip
        said = read_metadata(request)
        secret = new_secret()
        try:
            client = client_of(
                f"{share_for(key)}.mc_{new_secret()[:22]}", said, "registered",
                methods=METHODS, default="client_secret_basic", secret_hash=digest(secret),
            )  # fmt: skip
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
        OAuthError: the body isn't a JSON object, or is too large.
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
