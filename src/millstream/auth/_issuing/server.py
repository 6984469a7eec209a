"""The authorization server, put together: `Issuer` is what a program names, `RunningIssuer` what serves in one loop.

The running one is a method of the guard, too. It verifies its own tokens without asking anybody over the network, and
looks once a minute, and when a worker tells of it, whether the grant of a token still stands.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any

from millstream._http.message import JSON_HEAD, Handler, Request, Response, Sink
from millstream._http.problems import plain_problem
from millstream._limits.pool import Pool
from millstream._protocol.errors import LocalError
from millstream._protocol.jsonrpc import encode
from millstream._server.calls.services import Services
from millstream.auth._claims import Rules, judge
from millstream.auth._issuing import pages
from millstream.auth._issuing.asking import Asking, Targets
from millstream.auth._issuing.client_proof import ClientProof
from millstream.auth._issuing.clients import Clients
from millstream.auth._issuing.consent import Consent
from millstream.auth._issuing.documents import Documents
from millstream.auth._issuing.endings import Endings
from millstream.auth._issuing.grants import ENDED, Grants
from millstream.auth._issuing.identities import Identities
from millstream.auth._issuing.key_proof import KeyProof
from millstream.auth._issuing.metadata import (
    AUTHORIZE,
    CALLBACK,
    INTROSPECT,
    KEYS,
    REGISTER,
    REVOKE,
    SHARED,
    TOKEN,
    metadata,
    places,
)
from millstream.auth._issuing.people import People
from millstream.auth._issuing.plan import Plan
from millstream.auth._issuing.records import Grant
from millstream.auth._issuing.registration import Registration
from millstream.auth._issuing.signing import Signing
from millstream.auth._issuing.slowed import Slowed
from millstream.auth._issuing.tickets import Tickets
from millstream.auth._issuing.token import TokenEndpoint
from millstream.auth._issuing.trips import TOO_OLD, Trip, Trips
from millstream.auth._issuing.vault import Vault
from millstream.auth._issuing.visitors import Visitors
from millstream.auth._issuing.ways import Returned
from millstream.auth._method import Fetching, Identity, Landing, Unavailable, prefetch_all

logger = logging.getLogger("millstream")

_TRIES = 8
_MAX_MET = 20_000
_ANYBODY = ""
"""In place of an id: nobody knows of whom something has ended."""
_PUBLIC = JSON_HEAD + b"cache-control: public, max-age=300\r\n"


class Issuer:
    """An authorization server that does not run yet. ``auth.issuer(…)`` makes it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def bind(self, services: Services, name: str, known: Callable[[], Collection[str]]) -> "RunningIssuer":
        """The authorization server of one running server.

        Args:
            services: of that server.
            name: what it is called.
            known: the scopes that something of it takes now.
        """
        return RunningIssuer(self.plan, services, name, known)


class RunningIssuer:
    """An authorization server that runs, in one event loop."""

    def __init__(self, plan: Plan, services: Services, name: str, known: Callable[[], Collection[str]]) -> None:
        vault = Vault(services)
        # Configuration
        self.resource: str = plan.audience or plan.base + services.settings.path.rstrip("/")
        self.issuers: tuple[str, ...] = (plan.url,)
        self.scopes: tuple[str, ...] = plan.scopes
        self.binds: bool = True
        self.shows: bool = False
        self.by_password: bool = plan.passwords is not None
        self.ways: Mapping[str, str] = {name: each.label for name, each in plan.upstreams.items()}
        self.landing: Landing | None = None
        self._plan = plan
        self._clock = vault.clock
        self._vault = vault
        self._known = known
        self._rules = Rules(plan.url, self.resource, plan.implied)
        # Parts
        self.signing: Signing = Signing(vault)
        self.clients: Clients = Clients(plan, vault, Documents(vault.clock, here=not plan.secure))
        self.grants: Grants = Grants(plan, vault, self.signing, self.clients)
        self._people = People(plan)
        targets = Targets(plan, self.resource, lambda: frozenset(known()))
        proof = ClientProof(plan, self.clients, vault)
        self._identities = Identities(plan.url, plan.identities, vault)
        self._token = TokenEndpoint(
            plan, proof, self.clients, self.grants, targets, self._people,
            keys=KeyProof(plan, vault), identities=self._identities,
        )  # fmt: skip
        self._endings = Endings(plan, proof, self.grants, self.signing, self._people, self._clock)
        self._registration = Registration(plan, self.clients, vault)
        asking = Asking(plan, self.clients, targets)
        slowed, tickets = Slowed(self._people, vault), Tickets(vault, secure=plan.secure)
        self._trips = Trips(vault, tickets, plan.base)
        self._consent = Consent(
            plan, vault, self.clients, asking, self.grants, self._people, slowed=slowed, tickets=tickets,
            trips=self._trips, server=name,
        )  # fmt: skip
        self._visitors = Visitors(plan, self._people, self._rules, targets.scopes, slowed=slowed, trips=self._trips)
        # Process
        self._ended: set[str] = set()
        """Ids of principals of whom something has ended since the last look."""
        self._just_ended: set[str] = set()
        self._met: OrderedDict[str, Grant | None] = OrderedDict()
        """Id of a principal -> the grant by which they came last; None for clients that act for themselves."""
        self._changes = 0
        self._words = 0
        """How often somebody has told that something ended."""
        self._stop = vault.hear(ENDED, self._heard, self._missed)

    async def prefetch(self) -> None:
        """See `Fetching.prefetch`."""
        upstreams = (each for each in self._people.upstreams.values() if isinstance(each, Fetching))
        await prefetch_all([self._identities, *upstreams])

    def share(self, pool: Pool) -> None:
        """See `Counting.share`."""
        self._vault.pool = pool

    def tell(self, refused: Callable[[str], None]) -> None:
        """See `Refusing.tell`."""
        self._vault.refused = refused

    def close(self) -> None:
        """Hear no more."""
        self._stop()

    # As a method of the guard

    async def identify(self, credential: str) -> Identity | None:
        """Whom one of our tokens is about."""
        try:
            claims = await self._endings.claims(credential)
            found = judge(claims, self._rules, self._clock()) if claims is not None else None
            if claims is None or found is None:
                return None
            standing = await self._standing(claims)
            if standing is False:
                return None
            self._meet(found.principal.id, standing if isinstance(standing, Grant) else None)
        except LocalError as exc:
            raise Unavailable("The store doesn't answer. Try again later.") from exc
        return found

    async def _standing(self, claims: Mapping[str, Any]) -> Grant | bool:
        """See `Endings.standing`. What ended while the store was asked is asked again: the answer may be older."""
        for _ in range(_TRIES):
            words = self._words
            standing = await self._endings.standing(claims)
            if words == self._words:
                return standing
        raise Unavailable("Too much changes just now. Try again later.")

    def _meet(self, id: str, grant: Grant | None) -> None:
        before = self._met.pop(id, None)
        if before is not None and self._people.again(before) is None:
            # They have another password now: what was opened before ends, however soon they come back.
            self._ended.add(id)
        while len(self._met) >= _MAX_MET:
            self._met.popitem(last=False)
        self._met[id] = grant

    def holds(self, id: str) -> bool:
        """Whether a principal may still have a token. When one of theirs ended, their streams end; those who still may
        come back.
        """
        if not self._just_ended.isdisjoint((id, _ANYBODY)) or id not in self._met:
            return False
        grant = self._met[id]
        return grant is None or self._people.again(grant) is not None

    def epoch(self) -> int:
        """Changes when something has ended anywhere, or somebody was removed."""
        if self._ended:
            self._changes += 1
        self._just_ended, self._ended = self._ended, set()
        people = self._people.passwords
        return self._changes + self.signing.epoch + (0 if people is None else people.epoch())

    def _heard(self, data: bytes) -> None:
        self._words += 1
        self._ended.add(f"{self._plan.url} {data.decode('utf-8', 'replace').partition(' ')[2]}")

    def _missed(self) -> None:
        self._words += 1
        self._ended.add(_ANYBODY)

    # At the server's own pages

    async def admit(self, peer: str, name: str, password: str) -> bytes:
        """See `Welcoming.admit`."""
        return await self._visitors.admit(peer, name, password)

    async def lead(self, request: Request, way: str, page: str) -> Response:
        """See `Leading.lead`."""
        return await self._visitors.lead(request, way, page)

    async def _returned(self, request: Request, trip: Trip, returned: Returned) -> Response:
        if trip.asked is not None:
            return await self._consent.returned(request, trip, trip.asked, returned)
        if self.landing is None:
            return pages.wrong("Start again", TOO_OLD, 400, up="../../")
        return await self._visitors.returned(request, trip, returned, self.landing)

    async def recall(self, kept: bytes) -> Identity | None:
        """See `Welcoming.recall`."""
        found = await self._visitors.recall(kept)
        if found is None:
            return None
        identity, grant = found
        self._meet(identity.principal.id, grant)
        return identity

    # Over HTTP

    def paths(self) -> Mapping[str, Mapping[str, Handler]]:
        """The handlers by path and method: below the issuer's path, and at the root, for proxies that cut it off."""
        ends: dict[str, Mapping[str, Handler]] = {
            AUTHORIZE: {"GET": self._consent.get, "POST": self._consent.post},
            TOKEN: {"POST": self._token.post},
            REVOKE: {"POST": self._endings.revoke},
            INTROSPECT: {"POST": self._endings.introspect},
            KEYS: {"GET": self._keys},
        }
        if self._plan.registration:
            ends[REGISTER] = {"POST": self._registration.post}
        for name in self._people.upstreams:
            ends[CALLBACK + name] = {"GET": self._trips.returning(name, self._returned)}
        found = {prefix + path: each for prefix in {"", self._plan.path} for path, each in ends.items()}
        found |= {path: {"GET": self._metadata} for path in places(self._plan)}
        return {
            path: {method: _told(handler) for method, handler in handlers.items()} for path, handlers in found.items()
        }

    def shared_paths(self) -> frozenset[str]:
        """Those that pages of any origin may use."""
        below = {self._plan.path + each for each in SHARED}
        return frozenset({*SHARED, *below, *places(self._plan)})

    async def _metadata(self, request: Request) -> Response:
        return Response(encode(metadata(self._plan, self._known)), 200, _PUBLIC)

    async def _keys(self, request: Request) -> Response:
        return Response(encode(await self.signing.public()), 200, _PUBLIC)


def _told(handler: Handler) -> Handler:
    """A handler that says so when the store doesn't answer, or is full."""

    async def asked(request: Request) -> Response | Sink | None:
        try:
            return await handler(request)
        except LocalError as exc:
            logger.error("%s %s can't be answered: %s", request.method, request.path, exc)
            return plain_problem(503, "The server can't do this now. Try again later.", b"retry-after: 5\r\n")

    return asked
