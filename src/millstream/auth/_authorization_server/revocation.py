"""`POST /revoke` (RFC 7009): revoke a token and its grant."""

from millstream._http.message import HttpRequest, Response
from millstream.auth._authorization_server.answers import OAuthError, form_of, reply
from millstream.auth._authorization_server.client_proof import ClientProof
from millstream.auth._authorization_server.grants import Grants
from millstream.auth._authorization_server.introspection import Introspection
from millstream.auth._authorization_server.records import OAuthClient


class Revocation:
    """The revocation endpoint."""

    def __init__(self, proof: ClientProof, grants: Grants, introspection: Introspection) -> None:
        self._proof = proof
        self._grants = grants
        self._introspection = introspection

    async def revoke(self, request: HttpRequest) -> Response:
        """Revoke a token and its grant. Succeeds for unknown tokens, too."""
        try:
            form = form_of(request)
            client = await self._proof.client(request, form)
            token = form.get("token")
            if not token:
                raise OAuthError("invalid_request", "token is missing.")
            await self._revoke(client, token)
            return reply({})
        except OAuthError as exc:
            return exc.response()

    async def _revoke(self, client: OAuthClient, token: str) -> None:
        found = await self._grants.find(token)
        if found is not None:
            said, grant = found
            if grant.client == client.id:
                await self._grants.end(said.grant, grant.subject)
            return
        claims = await self._introspection.claims(token)
        if claims is None or claims.get("client_id") != client.id:
            return
        if "grant_id" in claims:
            await self._grants.end(str(claims["grant_id"]), str(claims["sub"]))
        else:
            await self._grants.revoke_token(str(claims["jti"]), str(claims["sub"]), float(claims["exp"]))
