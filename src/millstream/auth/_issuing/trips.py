"""Trips to somebody else who signs people in: a browser goes away with a state, and comes back with it once.

The state is random, counts once and for ten minutes, and belongs to the browser that went away, which a cookie names.
Whoever was talked into finishing what somebody else has begun, in another browser, ends here.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

from msgspec import Struct

from millstream._http.message import Handler, Request, Response, neighborhood
from millstream._limits.gcra import Limiter, Rate
from millstream.auth._issuing import pages
from millstream.auth._issuing.answers import OAuthError, Parameters
from millstream.auth._issuing.metadata import CALLBACK
from millstream.auth._issuing.records import Asked, digest, new_secret
from millstream.auth._issuing.tickets import Tickets, name_of, same_browser
from millstream.auth._issuing.vault import Vault
from millstream.auth._issuing.ways import Away, Renewing, Returned

TOO_OLD = "This page is too old, or was opened in another browser. Go back to the program and start again."
_AWAY_SECONDS = 600.0
_MAX_AWAY = 2048
_AWAY_KIND = b"oauth away"
_LEAVING = Rate(200, 60)
"""Those of one address who go away: each leaves something here, and a flood would displace the others'."""


class Trip(Struct, frozen=True, omit_defaults=True):
    """A browser that was sent away."""

    browser: str
    way: str
    kept: bytes
    asked: Asked | None = None
    """What a client asks for, and the person has agreed to; None where no client asks."""
    page: str = ""
    """The page of ours that they want to open then."""


class Place(Protocol):
    """Where browsers are sent."""

    name: str
    label: str

    async def begin(self, callback: str, state: str) -> Away:
        """See `Upstream.begin`."""
        ...


Arrive = Callable[[Request, Trip, Returned], Awaitable[Response]]


class Trips:
    """Sends browsers away, and knows those that come back."""

    def __init__(self, vault: Vault, tickets: Tickets, base: str) -> None:
        """`base` is what the addresses of the callbacks begin with."""
        self._vault = vault
        self._tickets = tickets
        self._base = base
        # Process
        self._leaving = Limiter("upstream", _LEAVING)

    async def begin(self, request: Request, place: Place, *, asked: Asked | None = None, page: str = "") -> Response:
        """The page that leads a browser away.

        Raises:
            SignInFailed: it can't be sent there now.
        """
        if self._leaving.take(neighborhood(request.peer)) > 0:
            said = "Too many people sign in from your address. Try again in a minute."
            return pages.wrong("Wait a little", said, 429)
        state = new_secret()
        browser, cookie = self._tickets.browser(request)
        callback = self._callback(place.name)
        if asked is not None and asked.renewal and isinstance(place, Renewing):
            away = await place.begin_anew(callback, state, asked.renewal)
        else:
            away = await place.begin(callback, state)
        if len(away.kept) > _MAX_AWAY:
            raise ValueError(f"{place.name} keeps {len(away.kept)} bytes; {_MAX_AWAY} are allowed.")
        trip = Trip(name_of(browser), place.name, away.kept, asked, page)
        sealed = self._vault.seal(_AWAY_KIND, trip)
        await self._vault.put(f"oauth-away:{digest(state)}", sealed.encode(), _AWAY_SECONDS, lossy=True)
        return pages.lead_on(away.url, place.label, cookie)

    def returning(self, name: str, arrive: Arrive) -> Handler:
        """The handler of a callback: `arrive` gets those who come back to it by the browser in which they went."""

        async def returned(request: Request) -> Response:
            try:
                given = Parameters(request.query)
            except OAuthError as exc:
                return pages.wrong("This link doesn't work", str(exc), exc.status, up="../../")
            trip = await self._take(given.get("state"))
            if trip is None or trip.way != name or given.repeated:
                return pages.wrong("Start again", TOO_OLD, 400, up="../../")
            if not same_browser(trip.browser, self._tickets.known_browser(request)):
                return pages.wrong("Start again", TOO_OLD, 403, up="../../")
            return await arrive(request, trip, Returned(given.values(), self._callback(name), trip.kept))

        return returned

    def _callback(self, name: str) -> str:
        return f"{self._base}{CALLBACK}{name}"

    async def _take(self, state: str) -> Trip | None:
        if not state:
            return None
        sealed = await self._vault.take(f"oauth-away:{digest(state)}")
        return self._vault.open(_AWAY_KIND, sealed.decode("latin-1"), Trip) if sealed else None
