"""People at the server's own pages: they come by name and password, or from an upstream, and do there what they could
let a client do.

What a browser keeps names the person and what they were when they came, as a grant does. Whether they still are, and
what they may, is looked up again each time.
"""

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from millstream._http.message import Request, Response
from millstream._protocol.principal import EVERYTHING, Principal
from millstream.auth._claims import Rules, scopes_of
from millstream.auth._issuing.people import LOCAL, People
from millstream.auth._issuing.plan import Plan
from millstream.auth._issuing.records import Client, Grant
from millstream.auth._issuing.slowed import SLOW, WRONG, Slowed
from millstream.auth._issuing.trips import Trip, Trips
from millstream.auth._issuing.vault import packed, read
from millstream.auth._issuing.ways import Returned, SignInFailed, User
from millstream.auth._method import Identity, Landing, NotAdmitted


class Visitors:
    """Those who sign in to the pages."""

    def __init__(
        self, plan: Plan, people: People, rules: Rules, there: Callable[[], frozenset[str]], *, slowed: Slowed,
        trips: Trips,
    ) -> None:  # fmt: skip
        self._plan = plan
        self._people = people
        self._slowed = slowed
        self._trips = trips
        self._rules = rules
        self._there = there
        """Every scope that there is now."""
        # For a provider that looks at the client: no other one has the issuer's own name as its id.
        self._pages = Client(plan.url, "The pages of this server")

    async def admit(self, peer: str, name: str, password: str) -> bytes:
        """See `Welcoming.admit`."""
        user = await self._slowed.check(peer, name, password)
        if isinstance(user, str):
            raise NotAdmitted(user, 429 if user == SLOW else 403, wrong=user == WRONG)
        return packed(Grant(self._pages.id, user.subject, user.name, LOCAL, (), (), since=user.since))

    async def lead(self, request: Request, way: str, page: str) -> Response:
        """See `Leading.lead`."""
        upstream = self._people.upstreams.get(way)
        if upstream is None:
            raise NotAdmitted("This way to sign in isn't offered any more.", 400, wrong=False)
        check_here(request, self._plan.base, page)
        try:
            return await self._trips.begin(request, upstream, page=page)
        except SignInFailed as exc:
            raise NotAdmitted(str(exc), 503, wrong=False) from None

    async def returned(self, request: Request, trip: Trip, returned: Returned, landing: Landing) -> Response:
        """Somebody is back from an upstream, to open a page. Where no client asks, nobody has to agree to one."""
        try:
            user = await self._people.upstreams[trip.way].finish(returned)
        except SignInFailed as exc:
            return landing.refuse(request, trip.page, str(exc))
        who = self._people.from_upstream(trip.way, user)
        grant = Grant(self._pages.id, who.subject, who.name, trip.way, who.scopes, (), since=who.since)
        return landing.land(request, trip.page, packed(grant))

    async def recall(self, kept: bytes) -> tuple[Identity, Grant] | None:
        """Whom that stands for now, and as what they came; None for somebody who may not sign in any more."""
        grant = read(kept, Grant)
        user = self._people.again(grant) if grant is not None else None
        if grant is None or user is None:
            return None
        scopes = await self._scopes(user)
        claims: Mapping[str, Any] = {"name": user.name, **await self._plan.provider.claims(user, self._pages)}
        # Somebody may have been removed meanwhile, and what is found out here is believed for a while.
        if self._people.again(grant) != user:
            return None
        said = {**claims, "iss": self._plan.url, "sub": user.subject}
        return Identity(
            Principal(user.subject, self._plan.url, scopes=scopes, claims=said), self._rules.believed
        ), grant

    async def _scopes(self, user: User) -> frozenset[str]:
        wanted = self._there().union(user.scopes)
        granted = set(await self._people.grantable(user, self._pages, tuple(sorted(wanted))))
        found = scopes_of({"scope": list(granted)}, self._plan.implied)
        # Everything is theirs only if nothing of it was denied.
        return found | {EVERYTHING} if EVERYTHING in granted and granted >= wanted else found


def check_here(request: Request, base: str, page: str) -> None:
    """See whether a browser is where it will come back to: its cookies are kept for that host only.

    Raises:
        NotAdmitted: it is elsewhere, such as at another name of this machine.
    """
    if request.headers.get(b"host", b"").decode("latin-1").lower() != urlsplit(base).netloc.lower():
        raise NotAdmitted(f"Open {base}{page} to sign in this way: only that address is known there.", 400, wrong=False)
