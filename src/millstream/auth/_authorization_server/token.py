"""The token endpoint (OAuth 2.1 §3.2), and those for introspection (RFC 7662) and revocation (RFC 7009).

`POST /token` exchanges codes, refresh tokens, and client credentials for access tokens. `POST /introspect` returns
whether a token is active, and its claims. `POST /revoke` revokes a token together with its grant.
"""

import hmac
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from msgspec import Struct

from millstream._http.message import HttpRequest, Response
from millstream._oauth import s256
from millstream.auth._authorization_server.authorize import Targets
from millstream.auth._authorization_server.client_proof import ClientProof, Identities
from millstream.auth._authorization_server.clients import Clients
from millstream.auth._authorization_server.config import IssuerConfig
from millstream.auth._authorization_server.grants import Grants, TokenReuse, TokenSigner
from millstream.auth._authorization_server.records import (
    ASSERTED,
    CLIENT,
    CODE,
    REFRESH,
    Grant,
    OAuthClient,
    OAuthError,
    Parameters,
    form_of,
    reply,
)
from millstream.auth._authorization_server.tickets import Vault
from millstream.auth._authorization_server.users import Accounts
from millstream.auth._jose import read_claims
from millstream.auth.providers import User

_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")
"""Syntax of a code verifier (RFC 7636 §4.1)."""
_Answer = Mapping[str, object]


async def read_token(request: HttpRequest, proof: ClientProof) -> tuple[OAuthClient, str]:
    """Return the authenticated client of a request, and the token that it names."""
    form = form_of(request)
    client = await proof.client(request, form)
    token = form.get("token")
    if not token:
        raise OAuthError("invalid_request", "token is missing.")
    return client, token


class TokenEndpoints(Struct, frozen=True):
    """The endpoints for tokens, and the guard's check of our own tokens."""

    config: IssuerConfig
    vault: Vault
    proof: ClientProof
    clients: Clients
    grants: Grants
    signing: TokenSigner
    targets: Targets
    accounts: Accounts
    identities: Identities

    # Issued tokens

    async def grant_of(self, claims: Mapping[str, Any]) -> Grant | bool:
        """Return the grant of an access token, True for a token without one, or False if it was revoked."""
        id = claims.get("grant_id")
        if id is not None:
            grant = await self.grants.get(str(id))
            return grant if grant is not None and self.accounts.user_of_grant(grant) is not None else False
        client = str(claims.get("client_id"))
        known = self.config.clients.get(client) or await self.config.provider.find_client(client)
        return known is not None and not await self.grants.is_revoked(str(claims.get("jti")))

    async def introspect(self, request: HttpRequest) -> Response:
        """Return whether a token is active. Configured clients may query any token, others only their own."""
        client, token = await read_token(request, self.proof)
        if client.method == "none":
            raise OAuthError("invalid_client", "Only authenticated clients may introspect tokens.", 401)
        said = await self._claims_of(token)
        if said is None or (client.source != "given" and said["client_id"] != client.id):
            return reply({"active": False})
        return reply({"active": True, **said})

    async def _claims_of(self, token: str) -> dict[str, Any] | None:
        found = await self.grants.find(token)
        if found is not None:
            said, grant = found
            if said.generation != grant.generation or self.accounts.user_of_grant(grant) is None:
                return None
            return {
                "client_id": grant.client,
                "sub": grant.subject,
                "scope": " ".join(grant.scopes),
                "iss": self.config.url,
                "token_type": "refresh_token",
            }
        claims = await self.claims(token)
        if claims is None or claims["exp"] <= self.vault.clock() or await self.grant_of(claims) is False:
            return None
        return {**claims, "token_type": "Bearer"}

    async def claims(self, token: str) -> dict[str, Any] | None:
        """Return the claims of one of our access tokens, expired or not; None for any other text."""
        claims = await read_claims(token, self.signing.find, ("ES256",), ("at+jwt",))
        return claims if claims is not None and claims.get("iss") == self.config.url else None

    async def revoke(self, request: HttpRequest) -> Response:
        """Revoke a token and its grant. Succeeds for unknown tokens, too."""
        await self._revoke(*await read_token(request, self.proof))
        return reply({})

    async def _revoke(self, client: OAuthClient, token: str) -> None:
        found = await self.grants.find(token)
        if found is not None:
            said, grant = found
            if grant.client == client.id:
                await self.grants.end(said.grant, grant.subject)
            return
        claims = await self.claims(token)
        if claims is None or claims.get("client_id") != client.id:
            return
        if "grant_id" in claims:
            await self.grants.end(str(claims["grant_id"]), str(claims["sub"]))
        else:
            await self.grants.revoke_token(str(claims["jti"]), str(claims["sub"]), float(claims["exp"]))

    # The token endpoint

    async def post(self, request: HttpRequest) -> Response:
        """Return a token."""
        form = form_of(request)
        kind = form.get("grant_type")
        if not kind:
            raise OAuthError("invalid_request", "grant_type is missing.")
        by_type: dict[str, Callable[[OAuthClient, Parameters], Awaitable[_Answer]]] = {
            CODE: self._from_code,
            REFRESH: self._from_refresh_token,
            CLIENT: self._from_client,
            **({ASSERTED: self._from_identity} if self.config.identities else {}),
        }
        give = by_type.get(kind)
        if give is None:
            raise OAuthError("unsupported_grant_type", f"grant_type must be one of {', '.join(by_type)}.")
        client = await self.proof.client(request, form)
        if kind not in client.grant_types:
            raise OAuthError("unauthorized_client", f"This client may not use {kind}.")
        try:
            return reply(await give(client, form))
        except TokenReuse as exc:
            if exc.ended:  # log once per grant, so that repeated attempts don't fill the log
                self.vault.refused(request.peer)
            raise

    async def _from_code(self, client: OAuthClient, form: Parameters) -> _Answer:
        code = form.get("code")
        if not code or not _VERIFIER.fullmatch(form.get("code_verifier")):
            raise OAuthError("invalid_request", "Send code, and a code_verifier of 43 to 128 characters.")
        found = await self.grants.peek(code)
        if found is None or found[0].authorization.client != client.id:
            raise OAuthError("invalid_grant", "The code is unknown.")
        kept, raw = found
        check_redirect(kept.authorization.redirect_uri, form, named=kept.authorization.named_redirect)
        check_verifier(form, kept.authorization.challenge)
        resources = self._select_resources(form, kept.authorization.resources)
        id, grant, refresh = await self.grants.redeem(code, kept, raw)
        await self.clients.renew(client)
        return await self._answer(client, id, grant, grant.scopes, resources, refresh=refresh)

    async def _from_refresh_token(self, client: OAuthClient, form: Parameters) -> _Answer:
        found = await self.grants.find(form.get("refresh_token"))
        if found is None or found[1].client != client.id:
            raise OAuthError("invalid_grant", "The refresh token is unknown or no longer valid. Sign in again.")
        said, grant = found
        user = self.accounts.user_of_grant(grant)
        if user is None:
            await self.grants.end(said.grant, grant.subject)
            raise OAuthError("invalid_grant", "The user may no longer sign in.")
        scopes = tuple(dict.fromkeys(form.get("scope").split())) or grant.scopes
        if not set(scopes) <= set(grant.scopes):
            raise OAuthError("invalid_scope", "A refresh can't add scopes to the grant.")
        resources = self._select_resources(form, grant.resources)
        scopes = await self.accounts.grantable(user, client, scopes)
        refresh = await self.grants.rotate(said)
        await self.clients.renew(client)
        return await self._answer(client, said.grant, grant, scopes, resources, refresh=refresh)

    async def _from_client(self, client: OAuthClient, form: Parameters) -> _Answer:
        if client.method == "none":
            raise OAuthError("unauthorized_client", "Only a client with a secret or keys can act for itself.")
        scopes = self._grantable_scopes(form.get("scope"), client.scopes)
        resources = self.targets.resources(form.all("resource"))
        return await self.grants.access_token(client, client.id, scopes, resources)

    async def _from_identity(self, client: OAuthClient, form: Parameters) -> _Answer:
        if client.method == "none":
            raise OAuthError(
                "unauthorized_client", ("Only a client with a secret or keys can use grants from identity providers.")
            )
        assertion = form.get("assertion")
        if not assertion:
            raise OAuthError("invalid_request", "assertion is missing.")
        said = await self.identities.read(assertion, client)
        provider = self.config.identities[said.provider]
        granted = self.targets.resources(said.resources)
        resources = self._select_resources(form, granted)
        asked, there = form.get("scope").split(), self.targets.scopes()
        if asked and {*said.scopes, *self.config.scopes}.isdisjoint(asked):
            raise OAuthError("invalid_scope", "The identity provider's grant has none of these scopes.")
        wanted = [each for each in said.scopes if each in there and (not asked or each in asked)]
        user = User(said.subject, said.name, provider.scopes, provider.number)
        scopes = await self.accounts.grantable(user, client, tuple(dict.fromkeys((*self.config.scopes, *wanted))))
        await self.identities.count(said)
        grant = Grant(client.id, user.subject, user.name, said.provider, scopes, granted, since=user.since)
        return await self._answer(client, await self.grants.add(grant), grant, scopes, resources, refresh="")

    def _grantable_scopes(self, asked: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
        """Return the default scopes and the requested ones that are allowed, or all allowed ones if none are requested.

        Clients often request every scope that a server lists; the response contains the actual ones (RFC 6749 §3.3).
        """
        wanted = self.targets.requested_scopes(asked) if asked else allowed
        most = {*self.config.scopes, *allowed}
        if asked and most.isdisjoint(asked.split()):
            raise OAuthError("invalid_scope", "This client may not have these scopes.")
        return tuple(each for each in dict.fromkeys((*self.config.scopes, *wanted)) if each in most)

    async def _answer(
        self,
        client: OAuthClient,
        id: str,
        grant: Grant,
        scopes: tuple[str, ...],
        resources: tuple[str, ...],
        *,
        refresh: str,
    ) -> _Answer:
        user = self.accounts.user_of_grant(grant)
        more = dict(await self.config.provider.claims(user, client)) if user is not None else {}
        if grant.name:
            more.setdefault("name", grant.name)
        token = await self.grants.access_token(client, grant.subject, scopes, resources, grant=id, more=more)
        return {**token, "refresh_token": refresh} if refresh else token

    def _select_resources(self, form: Parameters, granted: tuple[str, ...]) -> tuple[str, ...]:
        """Return the resources of the token: the requested ones, or all granted ones (RFC 8707 §2.2)."""
        if not form.all("resource"):
            return granted
        asked = self.targets.resources(form.all("resource"))
        if not set(asked) <= set(granted):
            raise OAuthError("invalid_target", "The grant isn't valid for this resource.")
        return asked


def check_verifier(form: Parameters, challenge: str) -> None:
    """Check the code verifier of a request against a challenge (RFC 7636 §4.6).

    Raises:
        OAuthError: The verifier is wrong or missing.
    """
    verifier = form.get("code_verifier")
    if not _VERIFIER.fullmatch(verifier):
        raise OAuthError("invalid_request", "Send a code_verifier of 43 to 128 characters.")
    if not hmac.compare_digest(s256(verifier), challenge):
        raise OAuthError("invalid_grant", "code_verifier doesn't match the code_challenge.")


def check_redirect(kept: str, form: Parameters, *, named: bool) -> None:
    """Check that a redirect URI, if sent, equals the one in the authorization request. OAuth 2.1 clients omit it.

    Raises:
        OAuthError: The URIs differ.
    """
    given = form.get("redirect_uri")
    if given and (given != kept or not named):
        raise OAuthError("invalid_grant", "redirect_uri doesn't match the authorization request.")
