"""Limits on failed logins with a name and password.

Attempts in progress count as failures until they finish, so parallel guesses get no more tries than sequential ones.
There is one slot for each remaining failure. An attempt takes a slot, waiting for one if necessary, and a correct
password releases it. Workers that share a store count together; while it's unavailable, each worker counts alone.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from enum import Enum
from itertools import count
from secrets import token_hex

from millstream._backoff import retry_delay
from millstream._http.message import peer_network
from millstream._limits.limiters import Limiter, Rate, StoreLimiter
from millstream._stores.rates import ConcurrencySlot
from millstream.auth._authorization_server.signing import Vault
from millstream.auth._authorization_server.users import Accounts
from millstream.auth._method import PATIENCE
from millstream.auth.providers import SignInFailed, User

_MAX_WAITING = 256
"""Maximum waiting attempts per key; people don't make more."""
_POLL_SECONDS = 0.05, 0.5
"""Initial and maximum seconds between polls for a free slot in the store, which sends no notifications."""


class _May(Enum):
    """Whether an attempt is allowed."""

    NOW = 1
    LATER = 2
    """It depends on whether the attempts in progress fail."""
    NOT = 3
    """There were too many failures."""


class FailureLimiter:
    """Limits the rate of failures per key, for several rates. An attempt has one key for each rate."""

    def __init__(self, rates: Mapping[str, Rate], vault: Vault, *, patience: float = PATIENCE) -> None:
        self._failures = tuple(Limiter(name, rate, pool=lambda: vault.pool) for name, rate in rates.items())
        self._patience = patience
        self._vault = vault
        # State of one event loop
        self._trying: Counter[tuple[str, str]] = Counter()
        self._done: dict[tuple[str, str], dict[asyncio.Future[None], None]] = {}
        """Waiting attempts, in order of arrival."""

    def __len__(self) -> int:
        return len(self._trying) + len(self._done)

    @asynccontextmanager
    async def attempt(self, *keys: str) -> AsyncGenerator[bool, None]:
        """Yield whether an attempt is allowed. Waits for attempts in progress if their failures would exceed a
        limit.
        """
        tries = frozenset((limiter.name, key) for limiter, key in zip(self._failures, keys, strict=True))
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience
        if not await self._begin(keys, tries, until):
            yield False
            return
        pool, slots = self._vault.pool, list[ConcurrencySlot]()
        try:
            yield pool is None or await self._wait_for_slots(pool, keys, slots, until)
        finally:
            self._trying.subtract(tries)
            for each in tries:
                if not self._trying[each]:
                    del self._trying[each]
            self._wake(tries)
            if pool is not None and slots:
                await pool.give_back(slots)

    async def record_failure(self, *keys: str) -> None:
        """Count a failure."""
        for limiter, key in zip(self._failures, keys, strict=True):
            await limiter.charge(key)

    # In this worker

    async def _begin(self, keys: Sequence[str], tries: frozenset[tuple[str, str]], until: float) -> bool:
        """Start an attempt as soon as it's allowed; return False if it's refused."""
        may = self._may(keys)
        if may is _May.LATER and all(len(self._done.get(each, ())) < _MAX_WAITING for each in tries):
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    while may is _May.LATER:
                        await self._end_of_one(tries)
                        may = self._may(keys)
        if may is _May.NOW:
            self._trying.update(tries)
        return may is _May.NOW

    def _may(self, keys: Sequence[str]) -> _May:
        found = _May.NOW
        for limiter, key in zip(self._failures, keys, strict=True):
            attempt = self._trying.get((limiter.name, key), 0)
            if limiter.wait(key) > 0:
                return _May.NOT
            if attempt and limiter.count_remaining(key) <= attempt:
                found = _May.LATER
        return found

    async def _end_of_one(self, tries: frozenset[tuple[str, str]]) -> None:
        """Wait until an attempt on one of these keys has finished."""
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

    async def _wait_for_slots(
        self, pool: StoreLimiter, keys: Sequence[str], slots: list[ConcurrencySlot], until: float
    ) -> bool:
        """Return whether the store has a free slot for each key. Adds the slots taken to `slots`."""
        loop, me, polls = asyncio.get_running_loop(), token_hex(8), count()
        while (may := await self._take_slots(pool, keys, slots, me)) is _May.LATER:
            pause = retry_delay(next(polls), *_POLL_SECONDS)
            if loop.time() + pause >= until:
                return False
            await asyncio.sleep(pause)
        return may is _May.NOW

    async def _take_slots(self, pool: StoreLimiter, keys: Sequence[str], slots: list[ConcurrencySlot], me: str) -> _May:
        charges = [limiter.pace(key, 0.0) for limiter, key in zip(self._failures, keys, strict=True)]
        decision = await pool.take(charges)
        if decision is None:
            return _May.NOW
        left = [int(taken.remaining + 1e-3) for taken in decision.results]
        if min(left) < 1:
            return _May.NOT
        asked = [ConcurrencySlot(charge.key, count, me) for charge, count in zip(charges, left, strict=True)]
        decision = await pool.take(asked)
        if decision is None:
            return _May.NOW
        if any(taken.wait > 0 for taken in decision.results):
            return _May.LATER
        # Another attempt may have failed since the first poll, which leaves fewer slots.
        decision = await pool.take(charges)
        if decision is not None and any(
            int(taken.remaining + 1e-3) < count for taken, count in zip(decision.results, left, strict=True)
        ):
            await pool.give_back(asked)
            return _May.LATER
        slots += asked
        return _May.NOW


SLOW = "Too many attempts. Wait a minute, then try again."
WRONG = "The name or password is wrong."
_FAILURES = Rate(10, 60)
"""Failed passwords per network."""
_FROM_NETWORK = Rate(10, 300)
"""Failed passwords per name and network. Less than `_NAMED`, so that a single network can't lock an account."""
_NAMED = Rate(15, 300)
"""Failed passwords per name, from all networks together, and as many again from networks without failures."""
_BEFORE = Rate(3, 3600)
"""Failed passwords after which a network is no longer one without failures, per name and network."""
_FROM_DEVICE = Rate(10, 300)
"""Failed passwords per known device."""


class LoginThrottle:
    """Checks names and passwords at a limited rate, shared by all pages that ask for them.

    Known devices, which are browsers in which the user has logged in before, have their own limit, so attackers
    elsewhere can't lock the user out. Half of a name's allowance is for networks that haven't failed before, so that a
    few attackers can't keep the user out of a new browser, either.
    """

    def __init__(self, accounts: Accounts, vault: Vault) -> None:
        self._accounts = accounts
        rates = {"sign-in-password": _FAILURES, "sign-in-network": _FROM_NETWORK, "sign-in-name": _NAMED}
        self._attempts = FailureLimiter(rates, vault)
        self._before = FailureLimiter({"sign-in-before": _BEFORE}, vault)
        self._devices = FailureLimiter({"sign-in-device": _FROM_DEVICE}, vault)

    async def check(self, peer: str, name: str, password: str, *, device: str = "") -> User | str:
        """Return the user with a name and password, or an error message: `SLOW`, `WRONG`, or another one.

        Args:
            peer: Address of the browser.
            name: Name as typed.
            password: Password as typed.
            device: Id of the known device, if the user has logged in there before (`Tickets.device`).
        """
        if device:
            return await self._try(self._devices, (device,), name, password)
        network, lowered = peer_network(peer), name.casefold()[:128]
        pair = f"{network} {lowered}"
        async with self._before.attempt(pair) as is_first:
            found: User | str = SLOW
            for kind in ("new", "any") if is_first else ("any",):
                if found == SLOW:
                    found = await self._try(self._attempts, (network, pair, f"{kind} {lowered}"), name, password)
            if found == WRONG:
                await self._before.record_failure(pair)
        return found

    async def _try(self, limiter: FailureLimiter, keys: Sequence[str], name: str, password: str) -> User | str:
        async with limiter.attempt(*keys) as may:
            if not may:
                return SLOW
            try:
                user = await self._accounts.check(name, password)
            except SignInFailed as exc:
                return str(exc)
            if user is None:
                await limiter.record_failure(*keys)
        return user or WRONG
