"""`/authorize` and the callback of upstreams: a person signs in, agrees or not, and goes back to the client.

Nothing is stored before the person has answered. A client that nobody has agreed to always gets the page; so does one
whose answers any program on the person's device could catch (RFC 8252 §8.6).
"""

from millstream._http.message import Request, Response
from millstream._limits.everywhere import Everywhere
from millstream._limits.gcra import Rate
from millstream.auth._browser import is_own
from millstream.auth._issuing import pages
from millstream.auth._issuing.answers import OAuthError, Parameters, form_of
from millstream.auth._issuing.asking import Asking, NotAClient, NotGranted
from millstream.auth._issuing.clients import Clients
from millstream.auth._issuing.grants import Grants
from millstream.auth._issuing.people import LOCAL, People
from millstream.auth._issuing.plan import Plan
from millstream.auth._issuing.records import Asked, Client, digest
from millstream.auth._issuing.redirects import is_identified, named_by, shown_host
from millstream.auth._issuing.slowed import SLOW, WRONG, Slowed
from millstream.auth._issuing.tickets import Tickets
from millstream.auth._issuing.trips import TOO_OLD, Trip, Trips
from millstream.auth._issuing.vault import Vault
from millstream.auth._issuing.ways import Returned, SignInFailed, User
from millstream.auth._method import Unavailable

REMEMBERED = 90 * 86_400.0
_AGREED = Rate(60, 3600)
"""What one person agrees to."""


class Consent:
    """The handlers."""

    def __init__(
        self, plan: Plan, vault: Vault, clients: Clients, asking: Asking, grants: Grants, people: People, *,
        slowed: Slowed, tickets: Tickets, trips: Trips, server: str,
    ) -> None:  # fmt: skip
        # Configuration
        self._plan = plan
        self._vault = vault
        self._clients = clients
        self._asking = asking
        self._grants = grants
        self._people = people
        self._slowed = slowed
        self._server = server
        self._tickets = tickets
        self._trips = trips
        # Process
        self._agreed = Everywhere("consent", _AGREED, lambda: vault.pool)

    # The browser comes

    async def get(self, request: Request) -> Response:
        """`GET /authorize`: the page that asks, or the answer where there is nothing to ask."""
        found = await self._read(request)
        if isinstance(found, NotGranted):
            return await self._refuse(request, found)
        if isinstance(found, Response):
            return found
        client, asked = found
        user, way = self._signed_in(request)
        if asked.renewal:
            user = None
        if user is not None and "consent" not in asked.prompt:
            scopes = await self._people.grantable(user, client, asked.scopes)
            if await self._may_skip(user, client, asked, scopes):
                return await self._go_back(asked, user, way, scopes)
        if "none" in asked.prompt:
            error, text = "login_required" if user is None else "consent_required", "The person has to be asked."
            answer = self._asking.refuse(asked.redirect_uri, asked.state, error, text)
            return await self._refuse(request, NotGranted(client, asked.redirect_uri, answer, text))
        return await self._page(request, client, asked, user)

    async def _read(self, request: Request) -> tuple[Client, Asked] | NotGranted | Response:
        try:
            return await self._asking.read(Parameters(request.query), self._clients.lookups.by(request))
        except (NotAClient, OAuthError) as exc:
            return pages.wrong("This link doesn't work", str(exc))
        except NotGranted as exc:
            return exc

    async def _refuse(self, request: Request, refused: NotGranted) -> Response:
        """Tell the client. The browser goes there by itself only where somebody has vouched for the address.

        Anybody can register one, and would have links that begin with our name and end there (RFC 9700 §4.11.2).
        """
        user, _ = self._signed_in(request)
        if refused.client.source == "given" or not is_identified(refused.redirect):
            return refused.answer
        if user is not None and await self._agreed_to(user, refused.client):
            return refused.answer
        return pages.stop(refused.answer, shown_host(refused.redirect), str(refused))

    def _signed_in(self, request: Request) -> tuple[User | None, str]:
        person = self._tickets.person(request)
        return (self._people.still(person.user, person.way), person.way) if person is not None else (None, LOCAL)

    async def _may_skip(self, user: User, client: Client, asked: Asked, scopes: tuple[str, ...]) -> bool:
        if not is_identified(asked.redirect_uri):
            return False
        agreed = await self._agreed_to(user, client)
        if not all(each in agreed and set(scopes) <= set(agreed[each]) for each in asked.resources):
            return False
        return await self._plan.provider.remembers(user, client, scopes)

    async def _agreed_to(self, user: User, client: Client) -> dict[str, tuple[str, ...]]:
        """Resource -> scopes that the person has let the client have there."""
        return await self._vault.get(_agreed_key(user, client), dict[str, tuple[str, ...]]) or {}

    async def _page(
        self, request: Request, client: Client, asked: Asked, user: User | None, *,
        said: str = "", name: str = "", status: int = 200, head: bytes = b"",
    ) -> Response:  # fmt: skip
        browser, cookie = self._tickets.browser(request)
        scopes = asked.scopes if user is None else await self._people.grantable(user, client, asked.scopes)
        shown = pages.Shown(
            self._server, client, asked, self._tickets.ask(browser, asked),
            pages.words_of(scopes, self._plan.described), user, self._people.passwords is not None,
            tuple(self._people.upstreams.values()), said, name, self._asking.elsewhere(asked),
        )  # fmt: skip
        return pages.ask(shown, status, cookie + head)

    # The person answers

    async def post(self, request: Request) -> Response:
        """`POST /authorize`: the form of our own page, from the browser that it was shown to."""
        if not is_own(request):
            return pages.wrong("Not from here", "This form has to be sent from this server's own page.", 403)
        try:
            form = form_of(request)
        except OAuthError as exc:
            return pages.wrong("This form can't be read", str(exc), exc.status)
        asked = self._tickets.asked(self._tickets.known_browser(request), form.get("ticket"))
        if asked is None:
            return pages.wrong("Start again", TOO_OLD, 403)
        client = await self._still_there(request, asked)
        if client is None:
            return pages.wrong("Start again", "The program isn't known any more. Start again from there.")
        if form.get("answer") == "deny":
            return self._asking.refuse(asked.redirect_uri, asked.state, "access_denied", "The person said no.")
        if form.get("answer") == "other":
            return await self._page(request, client, asked, None, head=self._tickets.forget())
        if form.get("way"):
            return await self._send_away(request, client, asked, form.get("way"))
        return await self._agree(request, client, asked, form)

    async def _still_there(self, request: Request, asked: Asked) -> Client | None:
        try:
            client = await self._clients.find(asked.client, self._clients.lookups.by(request))
        except Unavailable:
            return None
        return client if client is not None and named_by(client.redirect_uris, asked.redirect_uri) else None

    async def _agree(self, request: Request, client: Client, asked: Asked, form: Parameters) -> Response:
        cookie = b""
        if "password" in form:
            found = await self._slowed.check(request.peer, form.get("name"), form.get("password"))
            if isinstance(found, str):
                status = 429 if found == SLOW else 403
                if found == WRONG:
                    self._vault.refused(request.peer)
                return await self._page(request, client, asked, None, said=found, name=form.get("name"), status=status)
            user, way = found, LOCAL
            cookie = self._tickets.keep(user, way)
        else:
            person, way = self._signed_in(request)
            if person is None or asked.renewal or form.get("answer") != "allow":
                return await self._page(request, client, asked, None, said="Sign in first.", status=403)
            user = person
        return await self._finish(client, asked, user, way, cookie)

    async def _finish(self, client: Client, asked: Asked, user: User, way: str, cookie: bytes) -> Response:
        """The person has agreed."""
        if await self._agreed.take(user.subject) > 0:
            return pages.wrong("Wait a little", "You have agreed to a lot in the last hour. Try again later.", 429)
        scopes = await self._people.grantable(user, client, asked.scopes)
        agreed = await self._agreed_to(user, client)
        agreed |= {each: tuple(dict.fromkeys((*agreed.get(each, ()), *scopes))) for each in asked.resources}
        await self._vault.put(_agreed_key(user, client), agreed, REMEMBERED, lossy=True)
        await self._clients.used(client)
        return await self._go_back(asked, user, way, scopes, cookie)

    async def _go_back(
        self, asked: Asked, user: User, way: str, scopes: tuple[str, ...], cookie: bytes = b""
    ) -> Response:
        code = await self._grants.make_code(asked, user, way, scopes)
        answer = self._asking.answer(asked.redirect_uri, asked.state, {"code": code})
        return Response(answer.body, answer.status, answer.head + cookie)

    # Upstreams

    async def _send_away(self, request: Request, client: Client, asked: Asked, name: str) -> Response:
        upstream = self._people.upstreams.get(name)
        if upstream is None:
            return pages.wrong("Start again", "This way to sign in isn't offered any more.")
        try:
            return await self._trips.begin(request, upstream, asked=asked)
        except SignInFailed as exc:
            said = str(exc)
        return await self._page(request, client, asked, None, said=said, status=503)

    async def returned(self, request: Request, trip: Trip, asked: Asked, returned: Returned) -> Response:
        """The browser of somebody who has agreed is back from an upstream."""
        client = await self._still_there(request, asked)
        if client is None:
            return pages.wrong("Start again", "The program isn't known any more. Start again from there.", up="../../")
        try:
            user = await self._people.upstreams[trip.way].finish(returned)
        except SignInFailed as exc:
            return pages.wrong("You are not signed in", str(exc), 403, up="../../")
        person = self._people.from_upstream(trip.way, user)
        return await self._finish(client, asked, person, trip.way, self._tickets.keep(person, trip.way))


def _agreed_key(user: User, client: Client) -> str:
    """Of this very person: a namesake, or the same one with a new password, has agreed to nothing."""
    who = f"{len(user.subject)}:{user.subject}{user.since}"
    return f"oauth-agreed:{digest(f'{len(who)}:{who}{client.id}')}"
