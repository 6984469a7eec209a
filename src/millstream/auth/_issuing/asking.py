"""The authorization request, checked (OAuth 2.1 §4.1.1, RFC 7636, RFC 8707).

Before client and redirect URI are known to belong together, an error is a page for the person. After that it is for the
client, with `state` and `iss`.
"""

import re
from collections.abc import Callable

from millstream._http.message import Response
from millstream.auth._issuing.answers import OAuthError, Parameters, way_back
from millstream.auth._issuing.clients import Clients
from millstream.auth._issuing.plan import Plan, canonical
from millstream.auth._issuing.records import CODE, Asked, Client
from millstream.auth._issuing.redirects import named_by
from millstream.auth._method import Unavailable

CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")
"""Base64url of a SHA-256."""
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,128}")
_MAX_STATE = 4096
_MAX_SCOPES = 64
_PROMPTS = {"none", "login", "consent", "select_account"}


class NotAClient(Exception):
    """Only the person can hear of it: there is no such client, or the redirect URI is not its own."""


class NotGranted(Exception):
    """The client asks for something that can't be, and gets an answer that says so."""

    def __init__(self, client: Client, redirect: str, answer: Response, text: str) -> None:
        super().__init__(text)
        self.client = client
        self.redirect = redirect
        self.answer = answer
        """Sends the browser back with the error."""


class Targets:
    """What tokens can be for, and which scopes there are."""

    def __init__(self, plan: Plan, own: str, known: Callable[[], frozenset[str]]) -> None:
        self._required = plan.scopes
        self.own = own
        self._known = known
        self._described = frozenset(plan.described)
        self._resources = {canonical(each): each for each in (own, *plan.resources)}

    def scopes(self) -> frozenset[str]:
        """Every scope that there is now."""
        return self._known() | self._described | frozenset(self._required)

    def resources(self, asked: tuple[str, ...]) -> tuple[str, ...]:
        """The resources that a request names; this server where it names none, as old clients do.

        Raises:
            OAuthError: one of them is not served here.
        """
        found = tuple(
            dict.fromkeys(self._resources.get(canonical(each) if "://" in each else "", "") for each in asked)
        )
        if "" in found:
            raise OAuthError("invalid_target", "A resource is the URL of a server that this issuer gives tokens for.")
        return found or (self.own,)

    def wanted(self, text: str) -> tuple[str, ...]:
        """The scopes that a request names and that there are, with those that everybody gets.

        Raises:
            OAuthError: it names some, and none of them exists; or something that isn't a scope.
        """
        names = text.split(" ") if text else []
        if len(names) > _MAX_SCOPES or not all(_SCOPE.fullmatch(each) for each in names):
            raise OAuthError("invalid_scope", "Scopes are separated by single blanks.")
        there = self.scopes()
        found = [each for each in names if each in there]
        if names and not found:
            raise OAuthError("invalid_scope", "This server has none of these scopes.")
        return tuple(dict.fromkeys((*self._required, *found)))


class Asking:
    """Reads authorization requests."""

    def __init__(self, plan: Plan, clients: Clients, targets: Targets) -> None:
        self._plan = plan
        self._clients = clients
        self._targets = targets

    async def read(self, given: Parameters, may_fetch: Callable[[], bool]) -> tuple[Client, Asked]:
        """Who asks for what.

        Raises:
            NotAClient: with a text for the person.
            NotGranted: with an answer for the client.
        """
        client, redirect, named = await self._client(given, may_fetch)
        raw = given.get("state")
        state = raw.encode("utf-8", "surrogateescape").decode("latin-1") if raw else None
        try:
            if self._plan.identities and self._plan.passwords is None and not self._plan.upstreams:
                raise OAuthError("access_denied", "Nobody signs in on a page here, only by identity providers' grants.")
            return client, self._asked(given, client, redirect, state, named)
        except OAuthError as exc:
            echoed = None if "state" in given.repeated else state
            answer = self.refuse(redirect, echoed, exc.error, str(exc))
            raise NotGranted(client, redirect, answer, str(exc)) from None

    def elsewhere(self, asked: Asked) -> tuple[str, ...]:
        """The servers that a request is about, where that is not just this one."""
        return () if asked.resources == (self._targets.own,) else asked.resources

    def refuse(self, redirect: str, state: str | None, error: str, text: str) -> Response:
        """Send the browser back to the client with an error."""
        return self.answer(redirect, state, {"error": error, "error_description": text})

    def answer(self, redirect: str, state: str | None, values: dict[str, str]) -> Response:
        """Send the browser back to the client, with what every answer has."""
        echoed = None if state is None else state.encode("latin-1").decode("utf-8", "surrogateescape")
        return way_back(redirect, {**values, "state": echoed, "iss": self._plan.url})

    async def _client(self, given: Parameters, may_fetch: Callable[[], bool]) -> tuple[Client, str, bool]:
        if {"client_id", "redirect_uri"} & set(given.repeated):
            raise NotAClient("The program that sent you here named itself or its address twice.")
        try:
            client = await self._clients.find(given.get("client_id"), may_fetch)
        except Unavailable as exc:
            raise NotAClient(str(exc)) from None
        if client is None:
            raise NotAClient("The program that sent you here is not known. Go back to it and connect again.")
        redirect = given.get("redirect_uri")
        if not redirect and len(client.redirect_uris) == 1:
            return client, client.redirect_uris[0], False
        if not named_by(client.redirect_uris, redirect):
            raise NotAClient(
                "The program that sent you here wants you back at an address that is not its own. "
                "Close this page, or connect again if you trust the program."
            )
        return client, redirect, True

    def _asked(self, given: Parameters, client: Client, redirect: str, state: str | None, named: bool) -> Asked:
        if given.repeated:
            raise OAuthError("invalid_request", "A parameter is there more than once.")
        if "request" in given or "request_uri" in given:
            raise OAuthError("request_not_supported", "Request objects are not supported.")
        if given.get("response_type") != "code":
            error = "unsupported_response_type" if given.get("response_type") else "invalid_request"
            raise OAuthError(error, "response_type is code.")
        if given.get("response_mode") not in ("", "query"):
            raise OAuthError("invalid_request", "response_mode is query.")
        if CODE not in client.grant_types:
            raise OAuthError("unauthorized_client", "This client acts for itself and not for people.")
        if state is not None and len(state) > _MAX_STATE:
            raise OAuthError("invalid_request", "state has up to 4096 bytes.")
        if given.get("code_challenge_method") != "S256" or not CHALLENGE.fullmatch(given.get("code_challenge")):
            raise OAuthError("invalid_request", "Send a code_challenge with code_challenge_method=S256 (PKCE).")
        prompt = tuple(given.get("prompt").split())
        if not set(prompt) <= _PROMPTS or ("none" in prompt and len(prompt) > 1):
            raise OAuthError("invalid_request", "prompt is none, or some of login, consent and select_account.")
        if given.get("dpop_jkt") and not CHALLENGE.fullmatch(given.get("dpop_jkt")):
            raise OAuthError("invalid_request", "dpop_jkt is the SHA-256 thumbprint of a key.")
        return Asked(
            client.id,
            redirect,
            given.get("code_challenge"),
            self._targets.resources(given.all("resource")),
            self._targets.wanted(given.get("scope")),
            state,
            named,
            prompt,
            given.get("dpop_jkt"),
        )
