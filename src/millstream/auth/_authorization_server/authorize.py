"""`/authorize` and the callback of upstreams (OAuth 2.1 §4.1.1, RFC 7636, RFC 8707): check the request, sign the user
in, ask for consent, and redirect to the client.

Errors are shown to the user until the redirect URI is verified; then they're sent to the client, with `state` and
`iss`. Nothing is stored before the user submits the form. The consent page is always shown for new clients, and for
clients whose redirects another program on the user's device could intercept (RFC 8252 §8.6).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from msgspec import Struct, structs

from millstream._http.message import HttpRequest, Response
from millstream._limits import Limiter, Rate
from millstream._server.calls.vault import Vault, digest
from millstream.auth import _pages as pages
from millstream.auth._authorization_server.clients import Clients
from millstream.auth._authorization_server.config import IssuerConfig
from millstream.auth._authorization_server.grants import TokenEndpoints
from millstream.auth._authorization_server.records import (
    CODE,
    AuthorizationRequest,
    OAuthClient,
    OAuthError,
    Parameters,
    form_of,
    is_app,
    is_identified,
    is_loopback,
    named_by,
    see,
    shown_host,
)
from millstream.auth._authorization_server.tickets import TOO_OLD, PendingLogin, Tickets, callback_error
from millstream.auth._authorization_server.users import LoginThrottle
from millstream.auth._method import NotAdmitted, Unavailable
from millstream.auth._pages import cross_origin_text, is_same_origin
from millstream.auth.providers import Callback, SignInFailed, User

CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")
"""Base64url of a SHA-256."""
_MAX_STATE = 4096
_PROMPTS = {"none", "login", "consent", "select_account"}


class NotGranted(Exception):
    """The request can't be granted. The client receives an error response."""

    def __init__(self, client: OAuthClient, redirect: str, answer: Response, text: str) -> None:
        super().__init__(text)
        self.client = client
        self.redirect = redirect
        self.answer = answer
        """Redirect to the client with the error."""


class AuthorizationRequests(Struct, frozen=True):
    """Parses and checks authorization requests."""

    config: IssuerConfig
    clients: Clients

    async def read(self, given: Parameters, request: HttpRequest) -> tuple[OAuthClient, AuthorizationRequest]:
        """Return the client and its authorization request.

        Raises:
            OAuthError: The client or its redirect URI is invalid. The message is for the user.
            NotGranted: The request is invalid; contains the response for the client.
        """
        client, redirect = await self._client(given, request)
        state = given.get("state").encode("utf-8", "surrogateescape") or None
        try:
            if self.config.identities and self.config.passwords is None and not self.config.upstreams:
                raise OAuthError(
                    "access_denied", "This server has no sign-in page. Use a grant from an identity provider."
                )
            return client, self._parse_request(given, client, redirect, state)
        except OAuthError as exc:
            echoed = None if "state" in given.repeated else state
            answer = self.refuse(redirect, echoed, exc.error, str(exc))
            raise NotGranted(client, redirect, answer, str(exc)) from None

    def refuse(self, redirect: str, state: bytes | None, error: str, text: str) -> Response:
        """Redirect the browser to the client with an error."""
        return self.answer(redirect, state, {"error": error, "error_description": text})

    def answer(self, redirect: str, state: bytes | None, values: Mapping[str, str]) -> Response:
        """Redirect the browser to the client with a response and the common parameters.

        The redirect URI keeps its own query (RFC 6749 §3.1.2).
        """
        sent = {**values, **({} if state is None else {"state": state}), "iss": self.config.url}
        said = urlencode(sent, quote_via=quote, errors="surrogateescape")
        mark = "&" if urlsplit(redirect).query else "" if redirect.endswith("?") else "?"
        return see(f"{redirect}{mark}{said}")

    async def _client(self, given: Parameters, request: HttpRequest) -> tuple[OAuthClient, str]:
        if {"client_id", "redirect_uri"} & set(given.repeated):
            raise OAuthError(
                "invalid_request",
                "The program that sent you here repeated its id or its address. Report this to its developer.",
            )
        try:
            client = await self.clients.find(given.get("client_id"), request)
        except Unavailable as exc:
            raise OAuthError("invalid_request", str(exc)) from None
        if client is None:
            raise OAuthError(
                "invalid_request", "The program that sent you here is unknown. Go back to it and connect again."
            )
        redirect = given.get("redirect_uri")
        if not redirect and len(client.redirect_uris) == 1:
            return client, client.redirect_uris[0]
        if not named_by(client.redirect_uris, redirect):
            raise OAuthError(
                "invalid_request",
                "The program that sent you here isn't registered for the address that it would send you back to. Close "
                "this page, or connect again if you trust the program.",
            )
        return client, redirect

    def _parse_request(
        self, given: Parameters, client: OAuthClient, redirect: str, state: bytes | None
    ) -> AuthorizationRequest:
        if given.repeated:
            raise OAuthError("invalid_request", "A parameter is repeated.")
        if "request" in given or "request_uri" in given:
            raise OAuthError("request_not_supported", "Request objects aren't supported.")
        if given.get("response_type") != "code":
            error = "unsupported_response_type" if given.get("response_type") else "invalid_request"
            raise OAuthError(error, "response_type must be code.")
        if given.get("response_mode") not in ("", "query"):
            raise OAuthError("invalid_request", "response_mode must be query.")
        if CODE not in client.grant_types:
            raise OAuthError("unauthorized_client", "This client acts for itself, and can't sign in users.")
        if state is not None and len(state) > _MAX_STATE:
            raise OAuthError("invalid_request", "state can be at most 4096 bytes long.")
        if given.get("code_challenge_method") != "S256" or not CHALLENGE.fullmatch(given.get("code_challenge")):
            raise OAuthError("invalid_request", "Send a code_challenge with code_challenge_method=S256 (PKCE).")
        prompt = tuple(given.get("prompt").split())
        if not set(prompt) <= _PROMPTS or ("none" in prompt and len(prompt) > 1):
            raise OAuthError(
                "invalid_request", "prompt must be none, or one or more of login, consent, and select_account."
            )
        return AuthorizationRequest(
            client.id,
            redirect,
            given.get("code_challenge"),
            self.config.requested_resources(given.all("resource")),
            self.config.requested_scopes(given.get("scope")),
            state,
            bool(given.get("redirect_uri")),
            prompt,
        )


REMEMBERED = 90 * 86_400.0
CONSENT_RATE = Rate(60, 3600)
"""Maximum consents per user per hour."""


class AuthorizationEndpoint(AuthorizationRequests, frozen=True):
    """The authorization endpoint."""

    vault: Vault
    grants: TokenEndpoints
    throttle: LoginThrottle
    tickets: Tickets
    brand: Callable[[], Mapping[str, Any]]
    """Returns the server's name and icon for its pages."""
    consent_limiter: Limiter

    # Requests from the browser

    async def get(self, request: HttpRequest) -> Response:
        """Handle `GET /authorize`: show the consent page, or redirect if the user has already consented."""
        try:
            client, authorization = await self.read(Parameters(request.query), request)
        except OAuthError as exc:
            return pages.wrong("This link doesn't work", str(exc))
        except NotGranted as exc:
            return await self._refuse(request, exc)
        user = self._signed_in(request)
        if authorization.renewal:
            user = None
        if user and "consent" not in authorization.prompt:
            scopes = await self.config.grantable(user, client, authorization.scopes)
            if await self._may_skip(user, client, authorization, scopes):
                return await self._go_back(authorization, user, scopes)
        if "none" in authorization.prompt:
            error, text = (
                "consent_required" if user else "login_required",
                "The user must sign in or give consent.",
            )
            answer = self.refuse(authorization.redirect_uri, authorization.state, error, text)
            return await self._refuse(request, NotGranted(client, authorization.redirect_uri, answer, text))
        return await self._page(request, client, authorization, user)

    async def _refuse(self, request: HttpRequest, refused: NotGranted) -> Response:
        """Send the error to the client.

        For a client that's neither configured by the operator nor approved by the user, show a page instead of an
        automatic redirect to a web site, so this server isn't an open redirector (RFC 9700 §4.11.2).
        """
        user = self._signed_in(request)
        if (
            refused.client.source == "given"
            or not is_identified(refused.redirect)
            or (user and await self._agreed_to(user, refused.client))
        ):
            return refused.answer
        return pages.stop(refused.answer, shown_host(refused.redirect), str(refused))

    def _signed_in(self, request: HttpRequest) -> User | None:
        user = self.tickets.person(request)
        return user and self.config.current_user(user)

    async def _may_skip(
        self, user: User, client: OAuthClient, authorization: AuthorizationRequest, scopes: tuple[str, ...]
    ) -> bool:
        if not is_identified(authorization.redirect_uri):
            return False
        agreed = await self._agreed_to(user, client)
        if not all(each in agreed and set(scopes) <= set(agreed[each]) for each in authorization.resources):
            return False
        return await self.config.provider.may_skip_consent(user, client, scopes)

    async def _agreed_to(self, user: User, client: OAuthClient) -> dict[str, tuple[str, ...]]:
        """Return the scopes that the user has granted the client, by resource."""
        return await self.vault.get(_agreed_key(user, client), dict[str, tuple[str, ...]]) or {}

    async def _page(
        self,
        request: HttpRequest,
        client: OAuthClient,
        authorization: AuthorizationRequest,
        user: User | None,
        *,
        said: str = "",
        name: str = "",
        status: int = 200,
        head: bytes = b"",
    ) -> Response:
        """Return the page where a user signs in and approves a client.

        Args:
            authorization: Its authorization request.
            user: The signed-in user of this browser.
            said: Error of the previous attempt.
            name: Name from the previous attempt.
            status: Status of the response.
            head: Additional header lines.
        """
        browser, cookie = self.tickets.browser(request)
        scopes = await self.config.grantable(user, client, authorization.scopes) if user else authorization.scopes
        uri, brand, passwords = authorization.redirect_uri, self.brand(), self.config.passwords is not None
        facts = {"Opens the app" if is_app(uri) else "Takes you back to": shown_host(uri)}
        if authorization.resources != (self.config.audience,):
            facts = {"Would use": ", ".join(each.partition("://")[2] for each in authorization.resources), **facts}
        if client.source == "document":
            facts = {"Described by": client.id.partition("://")[2].partition("/")[0], **facts}
        return pages.render(
            "consent.html",
            status,
            cookie + head,
            leaves=True,
            images=pages.DATA if brand["icon"] else "",
            client=client,
            facts=facts,
            warning=_warning(client, uri),
            user=user,
            passwords=passwords,
            focused=passwords and user is None,
            upstreams=self.config.upstreams.values(),
            ticket=self.tickets.seal_request(browser, structs.replace(authorization, user=user and user.subject)),
            scope_descriptions={each: self.config.described.get(each, "") or each for each in scopes},
            notice=said,
            typed=name,
            **brand,
        )

    # The submitted form

    async def post(self, request: HttpRequest) -> Response:
        """Handle `POST /authorize`: the form of the consent page, from the browser that it was shown in."""
        if not is_same_origin(request):
            return pages.wrong("Not from here", cross_origin_text(request), 403)
        try:
            form = form_of(request)
        except OAuthError as exc:
            return pages.wrong("This form is malformed", str(exc), exc.status)
        authorization = self.tickets.open_request(self.tickets.known_browser(request), form.get("ticket"))
        if authorization is None:
            return pages.wrong("Start again", TOO_OLD, 403)
        client = await self._still_there(request, authorization)
        if client is None:
            return pages.wrong("Start again", "The program is no longer registered. Go back to it and connect again.")
        if form.get("answer") == "deny":
            return self.refuse(authorization.redirect_uri, authorization.state, "access_denied", "The user declined.")
        if form.get("answer") == "other":
            return await self._page(request, client, authorization, None, head=self.tickets.forget())
        if form.get("way"):
            return await self._send_away(request, client, authorization, form.get("way"))
        return await self._agree(request, client, authorization, form)

    async def _still_there(self, request: HttpRequest, authorization: AuthorizationRequest) -> OAuthClient | None:
        try:
            client = await self.clients.find(authorization.client, request)
        except Unavailable:
            return None
        return client if client and named_by(client.redirect_uris, authorization.redirect_uri) else None

    async def _agree(
        self, request: HttpRequest, client: OAuthClient, authorization: AuthorizationRequest, form: Parameters
    ) -> Response:
        cookie = b""
        if "password" in form:
            name = form.get("name")
            try:
                user = await self.check_password(request, name, form.get("password"))
            except NotAdmitted as exc:
                if exc.wrong:
                    self.vault.report_failure(request.peer)
                return await self._page(
                    request, client, authorization, None, said=str(exc), name=name, status=exc.status
                )
            cookie = self.tickets.keep(user) + self.tickets.keep_device(name)
        else:
            person = self._signed_in(request)
            # A page that requires a login doesn't show a user.
            if person is None or person.subject != authorization.user or form.get("answer") != "allow":
                return await self._page(request, client, authorization, None, said="Sign in first.", status=403)
            user = person
        return await self._finish(client, authorization, user, cookie)

    async def check_password(self, request: HttpRequest, name: str, password: str) -> User:
        """Return the user with a name and password.

        Raises:
            NotAdmitted: The name or password is wrong, or there were too many attempts.
        """
        return await self.throttle.check(request.peer, name, password, device=self.tickets.device(request, name))

    async def _finish(
        self, client: OAuthClient, authorization: AuthorizationRequest, user: User, cookie: bytes
    ) -> Response:
        """Complete the consent."""
        if await self.consent_limiter.charge(user.subject) > 0:
            return pages.wrong(
                "Wait a little", "You have approved too many requests in the last hour. Try again later.", 429
            )
        scopes = await self.config.grantable(user, client, authorization.scopes)
        agreed = await self._agreed_to(user, client)
        agreed |= {each: tuple(dict.fromkeys((*agreed.get(each, ()), *scopes))) for each in authorization.resources}
        await self.vault.put(_agreed_key(user, client), agreed, REMEMBERED, lossy=True)
        await self.clients.renew(client)
        return await self._go_back(authorization, user, scopes, cookie)

    async def _go_back(
        self, authorization: AuthorizationRequest, user: User, scopes: tuple[str, ...], cookie: bytes = b""
    ) -> Response:
        code = await self.grants.make_code(authorization, user, scopes)
        answer = self.answer(authorization.redirect_uri, authorization.state, {"code": code})
        return Response(answer.body, answer.status, answer.head + cookie)

    # Upstreams

    async def _send_away(
        self, request: HttpRequest, client: OAuthClient, authorization: AuthorizationRequest, name: str
    ) -> Response:
        upstream = self.config.upstreams.get(name)
        if upstream is None:
            return pages.wrong("Start again", "This way to sign in is no longer available.")
        try:
            return await self.tickets.begin(request, upstream, authorization=authorization)
        except SignInFailed as exc:
            said = str(exc)
        return await self._page(request, client, authorization, None, said=said, status=503)

    async def handle_callback(
        self, request: HttpRequest, pending: PendingLogin, authorization: AuthorizationRequest, callback: Callback
    ) -> Response:
        """Handle the callback of an upstream after consent."""
        client = await self._still_there(request, authorization)
        if client is None:
            return callback_error(
                "Start again", "The program is no longer registered. Go back to it and connect again."
            )
        try:
            person = await self.config.from_upstream(pending.login, callback)
        except SignInFailed as exc:
            return callback_error("You aren't signed in", str(exc), 403)
        return await self._finish(client, authorization, person, self.tickets.keep(person))


def _warning(client: OAuthClient, uri: str) -> str:
    if is_loopback(uri):
        return "It runs on your computer, where any program could use that name. Continue only if you just started it."
    if not is_identified(uri):
        return (
            "Your browser will open an app on your device, and any app could have claimed that name. "
            "Continue only if you just started it."
        )
    return "Its name isn't verified. Continue only if you know this address." if client.source == "registered" else ""


def _agreed_key(user: User, client: OAuthClient) -> str:
    """Return the store key for this account's consents. A later account of the same name doesn't inherit them, and a
    new password drops them.
    """
    who = f"{len(user.subject)}:{user.subject}{user.since}"
    return f"oauth-agreed:{digest(f'{len(who)}:{who}{client.id}')}"
