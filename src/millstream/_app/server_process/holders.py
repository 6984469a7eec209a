"""Which worker holds the state of a caller or session.

Each worker's lease in the store has a note that says where the worker receives requests. It's sealed, so someone who
can only write to the store can't redirect requests. A claim in the store names the worker that holds the state of a
principal, or of a session whose first worker has ended. The first worker that gets a request makes the claim. Workers
remember it, so steady calls don't use the store, and nobody's state moves when a worker starts.

A worker that was suspended for longer than its lease gets a new name. What others have claimed meanwhile is theirs.
"""

from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import msgspec
from msgspec import Struct, structs

from millstream._protocol.errors import LocalError
from millstream._recent import Recent
from millstream._server.calls.services import Services
from millstream._server.peers import HolderChange
from millstream._stores.rates import share_for
from millstream._stores.workers import LeasedWorker, read_again
from millstream._transports.streamable import MAX_CACHED_SESSIONS
from millstream._troubles import LogOnce

_KIND = b"worker"
_CLAIM = "holder:"
_CLAIM_TTL = 86400.0
"""Seconds for which a claim that nobody uses stays in the store."""
_RENEWAL = 3600.0
"""Seconds after which a claim in use is written again."""
_TRIES = 20
_MAX_GONE = 10_000
_SPLIT = "Requests of one caller come to several machines, so each of them keeps another state for the caller"
_STAY = (
    "Set MILLSTREAM_PEER on each machine, send all requests of a caller to one machine, or set keeps_state = false for "
    "upstreams that keep no state."
)


class Place(Struct, frozen=True, array_like=True):
    """Where a worker receives requests from others."""

    path: str
    """The path of a socket on its machine, or empty if it receives none."""
    leaving: bool = False
    """Whether it's stopping, and only finishes its calls."""
    host: str = ""
    """The address at which other machines reach it, or empty if they can't."""
    port: int = 0
    digest: str = ""
    """The digest of the gateway's file in force, if there's one."""


class Holders:
    """The workers that can hold state.

    Args:
        services: The services of this worker.
        workers: The workers of its store.
        path: The path of this worker's socket for requests from others, if it has one.
        digest: Returns the digest of the gateway's file in force, or an empty string.
    """

    def __init__(self, services: Services, workers: LeasedWorker, path: Path | None, digest: Callable[[], str]) -> None:
        self._services = services
        self._workers = workers
        self._siblings = "" if path is None else f"{path.parent}/"
        """How the paths of the workers of this server begin."""
        self.own = Place("" if path is None else str(path))
        """Where this worker is. Call `announce` after a change."""
        self._digest = digest
        self._noted, self._note = ("", self.own), ""
        """The name and the place in the note, and the note."""
        self.places: dict[str, Place] = {}
        """Where the workers with a lease are, by name."""
        self._gone: Recent[str, bool] = Recent(_MAX_GONE)
        """Worker that takes no more requests, although it may have a lease -> whether the network to it is cut."""
        self._claims: Recent[str, tuple[str, float]] = Recent(MAX_CACHED_SESSIONS)
        """Owner -> its worker, and when this worker learned that, or 0 if the store doesn't have the claim."""
        self.apart: Recent[str, str] = Recent(MAX_CACHED_SESSIONS)
        """Session or owner that this worker serves while the network to its worker is cut -> owner."""
        self._doubted_at = 0.0
        """When messages about claims, or the claims themselves, may have been lost."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when workers have come or gone."""
        self._learn()
        self.close: Callable[[], None] = workers.watch(self._learn)
        """Stop following the other workers."""
        services.handovers.append(self._forget)
        services.peers.on_interruption(self._doubt)
        self._moved: Recent[str, float] = Recent(MAX_CACHED_SESSIONS)
        """Owner -> when another worker took its state from this one."""
        self._split = LogOnce(services.store.troubles, _SPLIT, "Callers stay at one machine again.", remedy=_STAY)
        self._versions = LogOnce(
            services.store.troubles,
            "Machines use different gateway files",
            "All machines use the same gateway file.",
            remedy="Give each machine the same file, and the files that it names.",
        )

    @property
    def me(self) -> str:
        """The name of this worker."""
        return self._workers.me

    @property
    def leaving(self) -> bool:
        """Whether this worker is stopping."""
        return self.own.leaving

    @property
    def is_certain(self) -> bool:
        """Whether what this worker holds is still its own."""
        return not (self.own.leaving or self._workers.may_be_dead)

    async def announce(self) -> None:
        """Tell the other workers where this one is.

        Raises:
            LocalError: The store doesn't respond.
        """
        await self._workers.describe(self._make_note)

    def is_serving(self, worker: str) -> bool:
        """Return whether a worker is running and isn't about to stop."""
        if worker == self.me:
            return not self.own.leaving
        place = self.places.get(worker)
        return place is not None and not place.leaving and worker not in self._gone

    def can_reach(self, worker: str) -> bool:
        """Return whether requests can be forwarded to a worker: it's another one on this machine, or has an address."""
        place = self.places.get(worker)
        is_peer = place is not None and place.host != "" and self.own.host != ""
        return (is_peer or self.is_sibling(worker)) and worker != self.me

    def is_sibling(self, worker: str) -> bool:
        """Return whether a worker is on this machine, and has the same parent."""
        place = self.places.get(worker)
        return place is not None and self._siblings != "" and place.path.startswith(self._siblings)

    def others(self) -> list[str]:
        """Return the other workers that are serving and can be reached."""
        return [each for each in self.places if self.is_serving(each) and self.can_reach(each)]

    def give_up(self, worker: str, *, is_cut: bool) -> None:
        """Send nothing more to a worker, because it refuses requests.

        Args:
            worker: Its name.
            is_cut: Whether the network to it is cut.
        """
        self._gone.keep(worker, is_cut or self.is_cut(worker))

    def is_cut(self, worker: str) -> bool:
        """Return whether the network to a worker is cut: it can't be reached, although it renews its lease."""
        return worker in self.places and self._gone.get(worker, False)

    def resume(self, worker: str) -> None:
        """Note that the network to a worker isn't cut any more, or that the worker has another name."""
        if self.is_cut(worker):
            del self._gone[worker]
        self._doubt()  # this worker may have served its callers meanwhile

    async def confirm(self, worker: str) -> bool:
        """Return whether a worker is serving. Ask the store if this one doesn't know it, or may have been suspended."""
        workers = self._workers
        await workers.make_certain()
        with suppress(LocalError, OSError):
            known = worker == self.me or any(worker in each for each in (self.places, workers.dead, self._gone))
            if not known:
                await workers.read()
                if worker not in workers.live:
                    self._gone.keep(worker, False)
        return self.is_serving(worker)

    async def find(self, owner: str) -> str:
        """Return the worker that holds the state of an owner. If none does, it's this one from now on, or if it's
        stopping, an empty string. If the store can't tell, all workers of this server choose the same one.

        Args:
            owner: See `Services.hand_over`.
        """
        services, workers = self._services, self._workers
        known, since = self._claims.get(owner, ("", 0.0))
        known = known if self._serves(known) else ""
        is_fresh = self._doubted_at < since and services.clock() < since + _RENEWAL and not workers.may_be_dead
        if known and (is_fresh or workers.is_cut_off):
            return known
        digest = sha256(f"{services.server_name}\n{owner}".encode()).hexdigest()[:32]
        kv, key = services.store.kv, f"{_CLAIM}{share_for(owner.partition('.')[0])}.{digest}"
        try:
            if workers.is_cut_off:
                return self._choose(owner)
            await workers.make_certain()
            for attempt in range(_TRIES):
                raw = await read_again(kv, key, attempt)
                before = "" if raw is None else raw.decode("utf-8", "replace")
                worker = before or known
                if not (worker and await self.confirm(worker) and self._serves(worker)):
                    is_running = self.is_serving(worker) or (
                        self.is_cut(worker) and await workers.is_renewing(worker)  # it isn't frozen
                    )
                    if is_running and self._moved.get(owner, -_RENEWAL) + _RENEWAL > services.clock():
                        # The owner's requests come to both machines by turns, and would lose the state each time.
                        self._split.fail(f"A caller's state is at {worker}, too.")
                        worker, before = self.me, ""
                        self.apart.keep(owner, owner)
                        break
                    worker = "" if self.leaving else self.me
                if not worker:
                    return ""
                if await kv.compare_and_set(key, raw, worker.encode(), _CLAIM_TTL):
                    break
            else:
                return known or self._choose(owner)
            if worker != before and before and before not in workers.names:
                services.hand_over(owner)
                await services.peers.broadcast(HolderChange(owner))
        except (LocalError, OSError):
            return known or self._choose(owner)
        self._claims.keep(owner, (worker, services.clock()))
        return worker

    def _choose(self, owner: str) -> str:
        """Return the worker for an owner without a claim, and claim it for that one as soon as the store responds."""
        names = [*self.others(), *(() if self.leaving else (self.me,))]
        chosen = min(names, key=lambda each: sha256(f"{each}\n{owner}".encode()).digest(), default="")
        self._claims.keep(owner, (chosen, 0.0))
        return chosen

    def _doubt(self) -> None:
        """Look for each claim in the store again, because it may have been changed or lost."""
        self._doubted_at = self._services.clock()

    def _serves(self, worker: str) -> bool:
        return self.is_serving(worker) and (worker == self.me or self.can_reach(worker))

    def _forget(self, owner: str) -> None:
        if self._claims.pop(owner, None) is not None:
            self._moved.keep(owner, self._services.clock())

    def _make_note(self, name: str) -> str:
        place = structs.replace(self.own, digest=self._digest())
        if (name, place) != self._noted:
            services, plain = self._services, msgspec.msgpack.encode(place)
            self._noted, self._note = (
                (name, place),
                services.ring.seal(_KIND, plain, services.nonce(), self._bound(name)),
            )
        self._compare(place.digest)
        return self._note

    def _compare(self, digest: str) -> None:
        """Tell operators of machines with another gateway file, at each renewal of the lease."""
        others = {
            f"{place.host or 'another machine'} uses {place.digest}"
            for name, place in self.places.items()
            if "" != place.digest != digest and not self.is_sibling(name) and name not in self._workers.names
        }
        if not (digest and others):
            self._versions.end()
        elif self._versions.lasts:
            self._versions.goes_on()
        else:
            self._versions.fail(f"{', '.join(sorted(others))}, and this one {digest}")

    def _bound(self, name: str) -> bytes:
        return f"{self._services.server_name}\n{name}".encode()

    def _learn(self) -> None:
        # A store that lost its data doesn't know the workers until they renew their leases.
        places = {name: place for name, place in self.places.items() if name not in self._workers.dead}
        for name, note in self._workers.notes.items():
            plain = self._services.ring.open(_KIND, note, self._bound(name))
            if plain is not None:
                places[name] = msgspec.msgpack.decode(plain, type=Place)
        for name in places.keys() & self._gone.keys() - self.places.keys():
            del self._gone[name]
        self.places = places
        self.on_change()
