"""`POST /revoke` (RFC 7009) and `POST /introspect` (RFC 7662): a token's end, and whether it has come."""

from collections.abc import Callable, Mapping
from typing import Any

from millstream._http.message import Request, Response
from millstream.auth._issuing.answers import OAuthError, form_of, reply
from millstream.auth._issuing.client_proof import ClientProof
from millstream.auth._issuing.grants import Grants
from millstream.auth._issuing.people import People
from millstream.auth._issuing.plan import Plan
from millstream.auth._issuing.records import Client, Grant
from millstream.auth._issuing.signing import Signing
from millstream.auth._jose import InvalidToken, read_header, verify


class Endings:
    """The two endpoints, and what both ask."""

    def __init__(
        self, plan: Plan, proof: ClientProof, grants: Grants, signing: Signing, people: People,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._plan = plan
        self._proof = proof
        self._grants = grants
        self._signing = signing
        self._people = people
        self._clock = clock

    async def standing(self, claims: Mapping[str, Any]) -> Grant | bool:
        """The grant of an access token of ours; True for one without; False when somebody has ended it."""
        id = claims.get("grant_id")
        if id is not None:
            grant = await self._grants.get(str(id))
            return grant if grant is not None and self._people.again(grant) is not None else False
        client = str(claims.get("client_id"))
        known = self._plan.clients.get(client) or await self._plan.provider.find_client(client)
        return known is not None and not await self._grants.revoked(str(claims.get("jti")))

    async def revoke(self, request: Request) -> Response:
        """End a token, and the grant that it came from. An unknown one has ended already."""
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

    async def _revoke(self, client: Client, token: str) -> None:
        found = await self._grants.find(token)
        if found is not None:
            said, grant = found
            if grant.client == client.id:
                await self._grants.end(said.grant, grant.subject)
            return
        claims = await self.claims(token)
        if claims is None or claims.get("client_id") != client.id:
            return
        if "grant_id" in claims:
            await self._grants.end(str(claims["grant_id"]), str(claims["sub"]))
        else:
            await self._grants.revoke_token(str(claims["jti"]), str(claims["sub"]), float(claims["exp"]))

    async def introspect(self, request: Request) -> Response:
        """Tell whether a token counts, to a client of the program's author; to others, of their own tokens."""
        try:
            form = form_of(request)
            client = await self._proof.client(request, form)
            if client.method == "none":
                raise OAuthError("invalid_client", "Only a client that shows who it is may ask.", 401)
            token = form.get("token")
            if not token:
                raise OAuthError("invalid_request", "token is missing.")
            said = await self._said(token)
            known = said is not None and (client.source == "given" or said["client_id"] == client.id)
            return reply({"active": True, **said} if known and said is not None else {"active": False})
        except OAuthError as exc:
            return exc.response()

    async def _said(self, token: str) -> dict[str, Any] | None:
        found = await self._grants.find(token)
        if found is not None:
            said, grant = found
            if said.generation != grant.generation or self._people.again(grant) is None:
                return None
            return {"client_id": grant.client, "sub": grant.subject, "scope": " ".join(grant.scopes),
                    "iss": self._plan.url, "token_type": "refresh_token"}  # fmt: skip
        claims = await self.claims(token)
        if claims is None or claims["exp"] <= self._clock() or await self.standing(claims) is False:
            return None
        return {**claims, "token_type": "DPoP" if "cnf" in claims else "Bearer"}

    async def claims(self, token: str) -> dict[str, Any] | None:
        """What an access token of ours says; None for any other text. Its time may be over."""
        try:
            header = read_header(token)
            if header.alg != "ES256" or header.typ != "at+jwt":
                return None
            for key in await self._signing.find(header.kid, header.alg):
                claims = verify(token, key, header.alg)
                return claims if claims.get("iss") == self._plan.url else None
        except (InvalidToken, ValueError):
            pass
        return None
