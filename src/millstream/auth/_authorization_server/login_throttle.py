"""Limits on failed logins with a name and password.

Attempts in progress count as failures until they finish, so many parallel guesses get no more tries than sequential
ones. An attempt takes a seat, of which there are as many as failures are left, and waits for one if all are taken. A
correct password gives the seat back. Workers that share a store count together; while the store doesn't answer, each
worker counts alone.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from enum import Enum
from secrets import randbelow, token_hex
from typing import Final

from millstream._http.message import peer_network
from millstream._limits.gcra import Limiter, Rate
from millstream._limits.hashed_keys import hash_key
from millstream._limits.store_limiter import StoreLimiter
from millstream._stores.rates import Pace, Seat
from millstream.auth._authorization_server.accounts import Accounts
from millstream.auth._authorization_server.login_methods import SignInFailed, User
from millstream.auth._authorization_server.vault import Vault
from millstream.auth._keyed_semaphore import PATIENCE

_MAX_WAITING: Final = 256
"""Those of one key who wait here. More than that aren't people."""
_LOOK_AGAIN: Final = 0.05, 0.5
"""Seconds between two looks for a free seat in the store, which tells nobody: the first ones, and the most."""


class _May(Enum):
    """Whether somebody may try."""

    NOW = 1
    LATER = 2
    """If those who try now don't fail."""
    NOT = 3
    """There were too many failures."""


class FailureLimiter:
    """Some rates of failures, each for every key by itself. A try counts for one key of each."""

    __slots__ = ("_done", "_failures", "_patience", "_trying", "_vault", "_waiting")

    def __init__(self, rates: Mapping[str, Rate], vault: Vault, *, patience: float = PATIENCE) -> None:
        self._failures = tuple(Limiter(name, rate) for name, rate in rates.items())
        self._patience = patience
        self._vault = vault
        # For one event loop
        self._trying: Counter[tuple[str, str]] = Counter()
        self._waiting: Counter[tuple[str, str]] = Counter()
        self._done: dict[tuple[str, str], dict[asyncio.Future[None], None]] = {}
        """Those who wait for the end of a try, in the order of coming."""

    def __len__(self) -> int:
        return len(self._trying) + len(self._waiting)

    @asynccontextmanager
    async def trying(self, *keys: str) -> AsyncGenerator[bool, None]:
        """Whether somebody may try inside the block, even if all who are trying fail. Waits for those, but not long."""
        tries = frozenset((limiter.name, key) for limiter, key in zip(self._failures, keys, strict=True))
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience
        if not await self._begin(keys, tries, until):
            yield False
            return
        pool, seats = self._vault.pool, list[Seat]()
        try:
            yield pool is None or await self._sit(pool, keys, seats, until)
        finally:
            _less(self._trying, tries)
            self._wake(tries)
            if pool is not None and seats:
                await pool.give_back(seats)

    async def failed(self, *keys: str) -> None:
        """It was wrong."""
        pool = self._vault.pool
        for limiter, key in zip(self._failures, keys, strict=True):
            limiter.take(key)
            if pool is not None:
                await pool.take([_pace(limiter, key)])

    # In this worker

    async def _begin(self, keys: Sequence[str], tries: frozenset[tuple[str, str]], until: float) -> bool:
        """Count a try as one that is under login, once it may be; False if it may not."""
        may = self._may(keys)
        if may is _May.LATER and all(self._waiting[each] < _MAX_WAITING for each in tries):
            self._waiting.update(tries)
            try:
                async with asyncio.timeout_at(until):
                    while may is _May.LATER:
                        await self._end_of_one(tries)
                        may = self._may(keys)
            except TimeoutError:
                pass
            finally:
                _less(self._waiting, tries)
        if may is _May.NOW:
            self._trying.update(tries)
        return may is _May.NOW

    def _may(self, keys: Sequence[str]) -> _May:
        found = _May.NOW
        for limiter, key in zip(self._failures, keys, strict=True):
            trying = self._trying.get((limiter.name, key), 0)
            if limiter.wait(key) > 0:
                return _May.NOT
            if trying and limiter.left(key) <= trying:
                found = _May.LATER
        return found

    async def _end_of_one(self, tries: frozenset[tuple[str, str]]) -> None:
        """Wait until somebody who tried one of these is done."""
        done = asyncio.get_running_loop().create_future()
        for each in tries:
            self._done.setdefault(each, {})[done] = None
        try:
            await done
        finally:
            for each in tries:
                waiting = self._done.get(each, {})
                waiting.pop(done, None)
                if not waiting:
                    self._done.pop(each, None)

    def _wake(self, tries: frozenset[tuple[str, str]]) -> None:
        for each in tries:
            for done in self._done.get(each, ()):
                if not done.done():
                    done.set_result(None)

    # In the store

    async def _sit(self, pool: StoreLimiter, keys: Sequence[str], seats: list[Seat], until: float) -> bool:
        """Whether the others leave a try for each key; what is taken for that goes to `seats`."""
        loop, (pause, most) = asyncio.get_running_loop(), _LOOK_AGAIN
        me = token_hex(8)
        while (may := await self._take_seats(pool, keys, seats, me)) is _May.LATER:
            if loop.time() + pause >= until:
                return False
            await asyncio.sleep(pause * (0.75 + randbelow(500) / 1000))
            pause = min(pause * 2, most)
        return may is _May.NOW

    async def _take_seats(self, pool: StoreLimiter, keys: Sequence[str], seats: list[Seat], me: str) -> _May:
        charges = [_pace(limiter, key, cost=0.0) for limiter, key in zip(self._failures, keys, strict=True)]
        decision = await pool.take(charges)
        if decision is None:
            return _May.NOW
        left = [int(taken.left + 1e-3) for taken in decision.taken]
        if min(left) < 1:
            return _May.NOT
        asked = [Seat(charge.key, count, me) for charge, count in zip(charges, left, strict=True)]
        decision = await pool.take(asked)
        if decision is None:
            return _May.NOW
        if any(taken.wait > 0 for taken in decision.taken):
            return _May.LATER
        # A try that failed since the first look gave its seat back, and leaves less than there are seats for.
        decision = await pool.take(charges)
        if decision is not None and any(
            int(taken.left + 1e-3) < count for taken, count in zip(decision.taken, left, strict=True)
        ):
            await pool.give_back(asked)
            return _May.LATER
        seats += asked
        return _May.NOW


def _less(counts: Counter[tuple[str, str]], tries: frozenset[tuple[str, str]]) -> None:
    counts.subtract(tries)
    for each in tries:
        if not counts[each]:
            del counts[each]


def _pace(limiter: Limiter, key: str, *, cost: float = 1.0) -> Pace:
    """What to ask of the store; a cost of 0 only looks."""
    return Pace(hash_key(limiter.name, key), limiter.rate.count, limiter.rate.seconds, cost, cost)


SLOW = "Too many attempts. Wait a minute, then try again."
WRONG = "The name or the password is wrong."
_FAILURES = Rate(10, 60)
"""Wrong passwords of one network."""
_FROM_NETWORK = Rate(10, 300)
"""Wrong passwords for one name from one network, fewer than `_NAMED`: a single network can't lock a name out."""
_NAMED = Rate(30, 300)
"""Wrong passwords for one name from all networks together."""
_FROM_DEVICE = Rate(10, 300)
"""Wrong passwords from a browser in which this person has logged in before."""


class LoginThrottle:
    """Checks names and passwords, no faster than a person types: one count for every page that asks for them.

    A browser from which a person has logged in before (a device) has a count of its own. Guesses from elsewhere can't
    lock that person out there.
    """

    def __init__(self, accounts: Accounts, vault: Vault) -> None:
        self._accounts = accounts
        rates = {"sign-in-password": _FAILURES, "sign-in-network": _FROM_NETWORK, "sign-in-name": _NAMED}
        self._attempts = FailureLimiter(rates, vault)
        self._devices = FailureLimiter({"sign-in-device": _FROM_DEVICE}, vault)

    async def check(self, peer: str, name: str, password: str, *, device: str = "") -> User | str:
        """Return the person of a name and password, or the text of a refusal: `SLOW`, `WRONG`, or another one.

        Args:
            peer: address of the browser.
            name: as typed.
            password: as typed.
            device: id of the browser, if the person has logged in there before (`Tickets.device`).
        """
        network, hash_key = peer_network(peer), name.casefold()[:128]
        limiter = self._devices if device else self._attempts
        keys = (device,) if device else (network, f"{network} {hash_key}", hash_key)
        async with limiter.trying(*keys) as may:
            if not may:
                return SLOW
            try:
                user = await self._accounts.check(name, password)
            except SignInFailed as exc:
                return str(exc)
            if user is None:
                await limiter.failed(*keys)
        return user or WRONG
