"""`POST /introspect` (RFC 7662): whether a token is active, and its claims."""

from collections.abc import Callable, Mapping
from typing import Any

from millstream._http.message import HttpRequest, Response
from millstream.auth._authorization_server.accounts import Accounts
from millstream.auth._authorization_server.answers import OAuthError, form_of, reply
from millstream.auth._authorization_server.client_proof import ClientProof
from millstream.auth._authorization_server.config import IssuerConfig
from millstream.auth._authorization_server.grants import Grants
from millstream.auth._authorization_server.records import Grant
from millstream.auth._authorization_server.signing import TokenSigner
from millstream.auth._jose import InvalidToken, read_header, verify


class Introspection:
    """The introspection endpoint, and the guard's check of our own tokens."""

    def __init__(
        self, config: IssuerConfig, proof: ClientProof, grants: Grants, signing: TokenSigner, accounts: Accounts,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._config = config
        self._proof = proof
        self._grants = grants
        self._signing = signing
        self._accounts = accounts
        self._clock = clock

    async def grant_of(self, claims: Mapping[str, Any]) -> Grant | bool:
        """Return the grant of an access token, True for a token without one, or False if it was revoked."""
        id = claims.get("grant_id")
        if id is not None:
            grant = await self._grants.get(str(id))
            return grant if grant is not None and self._accounts.user_of_grant(grant) is not None else False
        client = str(claims.get("client_id"))
        known = self._config.clients.get(client) or await self._config.provider.find_client(client)
        return known is not None and not await self._grants.is_revoked(str(claims.get("jti")))

    async def introspect(self, request: HttpRequest) -> Response:
        """Return whether a token is active. Configured clients may query any token, others only their own."""
        try:
            form = form_of(request)
            client = await self._proof.client(request, form)
            if client.method == "none":
                raise OAuthError("invalid_client", "Only authenticated clients may introspect tokens.", 401)
            token = form.get("token")
            if not token:
                raise OAuthError("invalid_request", "token is missing.")
            said = await self._claims_of(token)
            known = said is not None and (client.source == "given" or said["client_id"] == client.id)
            return reply({"active": True, **said} if known and said is not None else {"active": False})
        except OAuthError as exc:
            return exc.response()

    async def _claims_of(self, token: str) -> dict[str, Any] | None:
        found = await self._grants.find(token)
        if found is not None:
            said, grant = found
            if said.generation != grant.generation or self._accounts.user_of_grant(grant) is None:
                return None
            return {"client_id": grant.client, "sub": grant.subject, "scope": " ".join(grant.scopes),
                    "iss": self._config.url, "token_type": "refresh_token"}  # fmt: skip
        claims = await self.claims(token)
        if claims is None or claims["exp"] <= self._clock() or await self.grant_of(claims) is False:
            return None
        return {**claims, "token_type": "Bearer"}

    async def claims(self, token: str) -> dict[str, Any] | None:
        """Return the claims of one of our access tokens, expired or not; None for any other text."""
        try:
            header = read_header(token)
            if header.alg != "ES256" or header.typ != "at+jwt":
                return None
            for key in await self._signing.find(header.kid, header.alg):
                claims = verify(token, key, header.alg)
                return claims if claims.get("iss") == self._config.url else None
        except (InvalidToken, ValueError):
            pass
        return None
