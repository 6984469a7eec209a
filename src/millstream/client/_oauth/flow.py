"""`OAuth`: credentials that take care of themselves. Give it to a client as ``Options(auth=OAuth())``."""

import asyncio
import base64
import hashlib
import secrets
import ssl
import time
from collections.abc import Mapping
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Struct

from millstream._protocol.suggesting import suggesting
from millstream.client._errors import AccessDenied, ClientError
from millstream.client._http.url import Url
from millstream.client._oauth.discovery import (
    Issuer,
    Resource,
    challenge_parameters,
    find_at_origin,
    find_issuer,
    find_resource,
)
from millstream.client._oauth.fetching import checked, fetch, post_form
from millstream.client._oauth.keeping import default_store
from millstream.client._oauth.person import Loopback, Visit, answer_of
from millstream.client._oauth.store import Registration, Store, Tokens

_EARLY = 30.0
"""Seconds before its end at which a token is renewed."""


class _Given(Struct):
    """The answer of a token endpoint."""

    access_token: str = ""
    refresh_token: str = ""
    scope: str = ""
    expires_in: float = 0
    error: str = ""
    error_description: str = ""


@suggesting
class OAuth:
    """Gets tokens when a server asks for them, and keeps them fresh: ``Options(auth=OAuth(scope="orders:read"))``.

    Args:
        store: where tokens and registrations are kept; without it, a file that only you can read.
        client_id: who you are at the issuer, if it has registered you.
        client_secret: the secret that goes with it.
        client_metadata_url: a page about your client, for issuers that read it instead of registering it.
        name: how your client is called when it registers.
        scope: the rights to ask for; without it, those that the server names.
        as_itself: the client acts for itself, not for a person (client credentials).
        visit: opens a URL for the person and gives the one they came back to; without it, a browser and a port here.
        redirect_uri: where `visit` comes back to.
        tls: certificates to trust.
    """

    def __init__(
        self,
        *,
        store: Store | None = None,
        client_id: str = "",
        client_secret: str = "",
        client_metadata_url: str = "",
        name: str = "Millstream",
        scope: str = "",
        as_itself: bool = False,
        visit: Visit | None = None,
        redirect_uri: str = "http://127.0.0.1:8765/callback",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._store = store or default_store()
        self._ours = Registration(client_id, client_secret)
        self._only = ""
        """The only issuer that these credentials go to, once there is one."""
        self._metadata_url = client_metadata_url
        self._name = name
        self._scope = scope
        self._as_itself = as_itself
        self._visit = visit
        self._redirect_uri = redirect_uri
        self._tls = tls
        self._lock = asyncio.Lock()

    def bound_to(self, issuer: str) -> "OAuth":
        """Let nobody but this issuer have these credentials, whatever a server says about who gives its tokens.

        Without it, a `client_id` and its secret go to the first issuer that the server names, and to no other one
        after that.

        Example:
            >>> OAuth(client_id="me", client_secret=secret).bound_to("https://login.example.com")
        """
        self._only = issuer
        return self

    # What the HTTP engine asks

    async def headers(self, url: Url) -> Mapping[str, str]:
        """The token for this server, renewed if it's about to end."""
        tokens = self._tokens(url)
        if tokens is not None and tokens.expires_at and tokens.expires_at - _EARLY < time.time():
            async with self._lock:
                if self._tokens(url) == tokens and tokens.refresh_token:  # a store may give a copy
                    issuer = await find_issuer(tokens.issuer, self._tls)
                    if issuer is not None:
                        await self._renew(url, issuer, tokens, str(url))
            tokens = self._tokens(url)
        return {"Authorization": f"Bearer {tokens.access_token}"} if tokens is not None else {}

    async def challenged(self, url: Url, status: int, challenge: str) -> bool:
        """Get a token, or one with more rights.

        Raises:
            AccessDenied: the server and the issuer don't fit together, or the person declined.
        """
        asked = challenge_parameters(challenge)
        if status == 403 and asked.get("error") != "insufficient_scope":
            return False
        before = self._tokens(url)
        async with self._lock:
            if self._tokens(url) != before:
                return True  # another call has got one meanwhile
            await self._get(url, status, asked, before)
        return True

    # Tokens

    async def _get(self, url: Url, status: int, asked: dict[str, str], before: Tokens | None) -> None:
        checked(str(url))
        resource = await find_resource(url, asked.get("resource_metadata", ""), self._tls)
        issuer = await self._issuer(url, resource)
        self._bind(url, issuer.issuer)
        target = resource.resource if resource is not None and resource.resource else str(url)
        same = before is not None and before.issuer == issuer.issuer
        renewable = same and status == 401
        if before is not None and renewable and before.refresh_token and await self._renew(url, issuer, before, target):
            return
        wanted = self._wanted(asked, resource, issuer, before if same and status == 403 else None)
        if self._as_itself:
            form = {"grant_type": "client_credentials", "resource": target}
            who = self._ours
        else:
            form, who = await self._authorize(issuer, target, wanted)
        if wanted and self._as_itself:
            form["scope"] = wanted
        given = await self._ask(issuer, who, form)
        if given.error or not given.access_token:
            self._forget(issuer.issuer)
            raise AccessDenied(f"{issuer.issuer} gives no token: {given.error_description or given.error}.", 401)
        self._keep(url, issuer, given, wanted, "")

    async def _issuer(self, url: Url, resource: Resource | None) -> Issuer:
        if resource is None:
            return await find_at_origin(url, self._tls)
        named = resource.authorization_servers[0]
        found = await find_issuer(named, self._tls)
        if found is None:
            raise AccessDenied(f"{named} gives the tokens for {url}, but has no metadata.", 401)
        return found

    def _bind(self, url: Url, issuer: str) -> None:
        """Credentials belong to an issuer: a server mustn't have them sent to another one."""
        if self._only and issuer != self._only:
            raise AccessDenied(f"{url} wants tokens of {issuer}, but these credentials are for {self._only}.", 401)
        if self._ours.client_id:
            self._only = issuer

    def _wanted(self, asked: dict[str, str], resource: Resource | None, issuer: Issuer, before: Tokens | None) -> str:
        """The scopes to ask for: what the challenge says, else what the server lists; with those that we have."""
        scopes = (self._scope or asked.get("scope", "")).split()
        if not scopes and resource is not None:
            scopes = list(resource.scopes_supported)
        if before is not None:
            scopes = [*before.scope.split(), *scopes]
        if "offline_access" in issuer.scopes_supported and not self._as_itself:
            scopes.append("offline_access")
        return " ".join(dict.fromkeys(scopes))

    async def _renew(self, url: Url, issuer: Issuer, tokens: Tokens, target: str) -> bool:
        who = self._store.load().registrations.get(issuer.issuer, self._ours)
        form = {"grant_type": "refresh_token", "refresh_token": tokens.refresh_token, "resource": target}
        try:
            given = await self._ask(issuer, who, form)
        except ClientError:
            return False
        if given.error or not given.access_token:
            return False
        self._keep(url, issuer, given, tokens.scope, tokens.refresh_token)
        return True

    async def _authorize(self, issuer: Issuer, target: str, scope: str) -> tuple[dict[str, str], Registration]:
        """Send the person to the authorization server; the form that buys a token with what they bring back."""
        if "S256" not in issuer.code_challenge_methods_supported:
            raise AccessDenied(f"{issuer.issuer} does not support PKCE with S256: its codes could be stolen.", 401)
        loopback = Loopback() if self._visit is None else None
        redirect = self._redirect_uri if loopback is None else await loopback.open()
        try:
            who = await self._register(issuer, redirect)
            verifier, state = secrets.token_urlsafe(48), secrets.token_urlsafe(24)
            digest = hashlib.sha256(verifier.encode()).digest()
            query = {
                "response_type": "code",
                "client_id": who.client_id,
                "redirect_uri": redirect,
                "state": state,
                "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
                "code_challenge_method": "S256",
                "resource": target,
                **({"scope": scope} if scope else {}),
                **({"prompt": "consent"} if "offline_access" in scope.split() else {}),
            }
            checked(issuer.authorization_endpoint)
            mark = "&" if "?" in issuer.authorization_endpoint else "?"
            visit = self._visit or (loopback.visit if loopback is not None else None)
            assert visit is not None  # noqa: S101  one of both is there
            answer = answer_of(await visit(f"{issuer.authorization_endpoint}{mark}{urlencode(query)}"))
        finally:
            if loopback is not None:
                await loopback.close()
        code = code_of(answer, state, issuer)
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect, "code_verifier": verifier}
        return {**form, "resource": target}, who

    # Who we are

    async def _register(self, issuer: Issuer, redirect: str) -> Registration:
        if self._ours.client_id:
            return self._ours
        if self._metadata_url and issuer.client_id_metadata_document_supported:
            return Registration(self._metadata_url, "", "none")
        kept = self._store.load()
        known = kept.registrations.get(issuer.issuer)
        if known is not None and self._visit is not None:
            return known  # a browser here has another port each time, and so another redirect URI
        if not issuer.registration_endpoint:
            raise AccessDenied(f"{issuer.issuer} registers no clients. Give OAuth a client_id that it knows.", 401)
        about = {
            "client_name": self._name,
            "redirect_uris": [redirect],
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "application_type": "native",
            "token_endpoint_auth_method": method_of(issuer, Registration()),
        }
        kind = {"Content-Type": "application/json"}
        body = msgspec.json.encode(about)
        reply = await fetch("POST", issuer.registration_endpoint, headers=kind, body=body, tls=self._tls)
        try:
            found = msgspec.json.decode(reply.body, type=Registration)
        except msgspec.MsgspecError:
            found = Registration()
        if reply.status not in (200, 201) or not found.client_id:
            raise _unregistered(issuer.issuer, reply.status)
        kept.registrations[issuer.issuer] = found
        self._store.save(kept)
        return found

    async def _ask(self, issuer: Issuer, who: Registration, form: dict[str, str]) -> _Given:
        """Ask the token endpoint."""
        headers: dict[str, str] = {}
        method = method_of(issuer, who)
        if method == "client_secret_basic":
            pair = f"{quote(who.client_id, safe='')}:{quote(who.client_secret, safe='')}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        else:
            form = {**form, "client_id": who.client_id}
            if method == "client_secret_post":
                form["client_secret"] = who.client_secret
        reply = await post_form(issuer.token_endpoint, form, headers, self._tls)
        try:
            return msgspec.json.decode(reply.body, type=_Given)
        except msgspec.MsgspecError:
            return _Given(error=f"status {reply.status}")

    # What is kept

    def _tokens(self, url: Url) -> Tokens | None:
        return self._store.load().tokens.get(str(url))

    def _keep(self, url: Url, issuer: Issuer, given: _Given, scope: str, refresh_token: str) -> None:
        until = time.time() + given.expires_in if given.expires_in else 0
        refresh = given.refresh_token or refresh_token
        kept = self._store.load()
        kept.tokens[str(url)] = Tokens(given.access_token, issuer.issuer, refresh, given.scope or scope, until)
        self._store.save(kept)

    def _forget(self, issuer: str) -> None:
        kept = self._store.load()
        if kept.registrations.pop(issuer, None) is not None:
            self._store.save(kept)


def method_of(issuer: Issuer, who: Registration) -> str:
    """How we prove who we are at the token endpoint."""
    if who.token_endpoint_auth_method:
        return who.token_endpoint_auth_method
    offered = issuer.token_endpoint_auth_methods_supported
    usable = ["client_secret_basic", "client_secret_post"] if who.client_secret else ["none"]
    if not who.client_id:  # about to register
        usable = ["none", "client_secret_basic", "client_secret_post"]
    return next((method for method in usable if method in offered), usable[0])


def code_of(answer: dict[str, str], state: str, issuer: Issuer) -> str:
    """The code that the person brought back, if everything else about it is right (RFC 9207 for `iss`).

    Raises:
        AccessDenied: it isn't.
    """
    named = answer.get("iss")
    if named is not None and named != issuer.issuer:
        raise AccessDenied(f"The answer is from {named}, but {issuer.issuer} was asked.", 401)
    if named is None and issuer.authorization_response_iss_parameter_supported:
        raise AccessDenied(f"{issuer.issuer} promises to name itself in its answers, and did not.", 401)
    if not secrets.compare_digest(answer.get("state", ""), state):
        raise AccessDenied("The answer belongs to another login.", 401)
    if "code" not in answer:
        reason = answer.get("error_description") or answer.get("error") or "no reason given"
        raise AccessDenied(f"The login did not succeed: {reason}.", 401)
    return answer["code"]


def _unregistered(issuer: str, status: int) -> AccessDenied:
    if status == 404:
        return AccessDenied(f"There's no authorization server at {issuer}. The server may want a key instead.", 401)
    return AccessDenied(f"{issuer} does not register this client (status {status}).", 401)
