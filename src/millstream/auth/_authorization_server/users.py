"""User accounts: the file of password hashes, and limits on failed logins.

Attempts in progress are treated as failures until they finish, so parallel guesses get no more tries than sequential
ones. There is one slot for each remaining failure. An attempt takes a slot, waiting for one if necessary, and a correct
password releases it. Workers that share a store count together; while it's unavailable, each worker counts separately.
"""

import asyncio
import re
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import ClassVar

import msgspec
from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from msgspec import Struct

from millstream._http.message import peer_network
from millstream._limits import Limiter, Rate, StoreLimiter
from millstream._override import override
from millstream._protocol.errors import Confidential, suggest_keywords
from millstream._stores.rates import ConcurrencySlot
from millstream._tasks import retry_delay
from millstream.auth._authorization_server.tickets import Vault
from millstream.auth._key_file import RecordFile, check_scopes
from millstream.auth._method import PATIENCE
from millstream.auth.providers import Passwords, SignInFailed, User

MIN_PASSWORD = 8
MAX_PASSWORD = 1024
_ITERATIONS, _MEMORY, _LANES = 3, 64 * 1024, 1
"""Cost parameters of a hash, with the memory in KiB."""
_MAX_CONCURRENT_CHECKS = 2
_MAX_WAITING = 64


def hash_password(password: str) -> str:
    """Return the hash of a password, with its parameters and salt.

    The hash is Argon2id (RFC 9106), in the PHC string format. A check takes about 50 ms of CPU time and 64 MiB, so
    checks run in threads, two at a time. Unknown names and wrong passwords take the same time.

    Raises:
        ValueError: The password is too short or too long.
    """
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise ValueError(f"A password must have {MIN_PASSWORD} to {MAX_PASSWORD} characters.")
    return _hash(password)


def verify_password(password: str, kept: str | None) -> bool:
    """Return whether `kept` is the hash of this password. Without a hash, do the same work and return False."""
    try:
        Argon2id.verify_phc_encoded(_bytes_of(password[:MAX_PASSWORD]), kept or _unknown())
    except (InvalidKey, ValueError):
        return False
    return kept is not None and len(password) <= MAX_PASSWORD


def _hash(password: str) -> str:
    salt = secrets.token_bytes(16)
    function = Argon2id(salt=salt, length=32, iterations=_ITERATIONS, lanes=_LANES, memory_cost=_MEMORY)
    return function.derive_phc_encoded(_bytes_of(password))


@cache
def _unknown() -> str:
    """Return a hash that matches no password, for checks of unknown names."""
    return _hash(secrets.token_urlsafe(16))


def _bytes_of(password: str) -> bytes:
    # Forms and terminals may send bytes that aren't UTF-8.
    return password.encode("utf-8", "surrogatepass")


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,63}")


class StoredUser(Confidential, Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One account in the file."""

    name: str
    password: str
    """Argon2id hash in the PHC string format."""
    since: float
    """Time of the account's creation or last password change, in Unix seconds."""
    scopes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    """Groups for policies, in the claim `groups` of the user's tokens."""


class _Users(Struct, forbid_unknown_fields=True):
    users: tuple[StoredUser, ...] = ()


class UserFile(RecordFile[StoredUser]):
    """A file of names, scopes, and password hashes, as a login method (`millstream.auth.providers.Passwords`).

    ``millstream users`` manages it. Servers apply changes within a second. A removed user's tokens become invalid.
    """

    kind = "user"
    contents: ClassVar[type[Struct]] = _Users

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.users: dict[str, StoredUser] = {}
        """Records by case-folded name."""
        self._semaphores: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}
        self._waiting = 0
        self._epoch = 0

    @override
    def use(self, records: tuple[StoredUser, ...]) -> None:
        """Use these records until the file is read again."""
        self.users = {each.name.casefold(): each for each in records}
        super().use(tuple(self.users.values()))

    # As a login method

    async def check(self, name: str, password: str) -> User | None:
        """Return the user with a name and password. Passwords are verified in threads, with limited concurrency.

        Raises:
            SignInFailed: Too many checks are waiting.
        """
        self.epoch()
        known = self.users.get(name.casefold())
        if self._waiting >= _MAX_WAITING:
            raise SignInFailed("Too many people are signing in at the moment. Try again in a minute.")
        loop = asyncio.get_running_loop()
        for each in [each for each in self._semaphores if each.is_closed()]:
            del self._semaphores[each]
        self._waiting += 1
        try:
            async with self._semaphores.setdefault(loop, asyncio.Semaphore(_MAX_CONCURRENT_CHECKS)):
                right = await asyncio.to_thread(verify_password, password, None if known is None else known.password)
        finally:
            self._waiting -= 1
        return None if known is None or not right else self.find(known.name)

    def find(self, subject: str) -> User | None:
        """Return the user with a name."""
        known = self.users.get(subject.casefold())
        if known is None or known.name != subject:
            return None
        return User(known.name, known.name, known.scopes, known.since, known.groups)

    def epoch(self) -> int:
        """Return the number of changes to the file. While the file is unreadable, its users are treated as removed."""
        self._epoch += self.reload("Users can't sign in")
        return self._epoch

    # Used by ``millstream users``

    def add(self, name: str, password: str, scopes: tuple[str, ...], now: float, groups: tuple[str, ...] = ()) -> None:
        """Add a user.

        Raises:
            ValueError: The name, a scope, or the password is invalid, or the name is taken.
            LocalError: The file can't be used.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} isn't a valid user name. Use up to 64 letters, digits, dots, dashes, @, + and _."
            )
        if wrong := [each for each in groups if not _NAME.fullmatch(each)]:
            raise ValueError(f"{wrong[0]!r} isn't a valid group. Use the same characters as in user names.")
        user = StoredUser(name, hash_password(password), now, check_scopes(scopes), groups)
        with self.change() as users:
            if name.casefold() in self.users:
                raise ValueError(f"The user {name!r} already exists. Choose another name.")
            users.append(user)

    def remove(self, name: str) -> None:
        """Remove a user and revoke their grants.

        Raises:
            ValueError: The user doesn't exist.
            LocalError: The file can't be used.
        """
        with self.change() as users:
            del users[_find_user(users, name)]

    def set_password(self, name: str, password: str, now: float) -> None:
        """Change a user's password and revoke their grants.

        Raises:
            ValueError: The user doesn't exist, or the password is invalid.
            LocalError: The file can't be used.
        """
        hashed = hash_password(password)
        with self.change() as users:
            at = _find_user(users, name)
            users[at] = msgspec.structs.replace(users[at], password=hashed, since=now)


def _find_user(users: list[StoredUser], name: str) -> int:
    """Return the position of a user."""
    found = next((at for at, each in enumerate(users) if each.name.casefold() == name.casefold()), None)
    if found is None:
        raise ValueError(f"There is no user {name!r}. See: millstream users list")
    return found


@suggest_keywords
def users(*, file: str | Path) -> UserFile:
    """Return the accounts in a file, for `issuer`: ``issuer(users(file="users.json"))``.

    Args:
        file: The file that ``millstream users`` writes. Running servers read changes within a second.

    Raises:
        LocalError: The file can't be read.
    """
    found = UserFile(Path(file))
    found.load_for_server()
    return found


_MAX_WAITING_ATTEMPTS = 256
"""Maximum waiting attempts per key. People don't make more."""
_POLL_SECONDS = 0.05, 0.5
"""Initial and maximum seconds between polls for a free slot in the store, which sends no notifications."""


_Tries = tuple[tuple[Limiter, str], ...]
"""The limits that apply to an attempt, each with the key that it counts."""


class FailureLimiter:
    """Limits the rate of failures per key, for several rates. An attempt has one key for each rate."""

    def __init__(self, rates: Mapping[str, Rate], vault: Vault, *, patience: float = PATIENCE) -> None:
        self._failures = tuple(Limiter(name, rate, pool=lambda: vault.pool) for name, rate in rates.items())
        self._patience = patience
        self._vault = vault
        # State of one event loop
        self._trying: Counter[tuple[Limiter, str]] = Counter()
        self._done: dict[tuple[Limiter, str], dict[asyncio.Future[None], None]] = {}
        """Waiting attempts, in order of arrival."""

    def __len__(self) -> int:
        return len(self._trying) + len(self._done)

    @asynccontextmanager
    async def attempt(self, *keys: str) -> AsyncGenerator[bool, None]:
        """Yield whether an attempt is allowed. Waits for attempts in progress if their failures would exceed a
        limit.
        """
        tries = self._tries(keys)
        until = asyncio.get_running_loop().time() + self._patience
        if not await self._begin(tries, until):
            yield False
            return
        pool, slots = self._vault.pool, list[ConcurrencySlot]()
        try:
            yield pool is None or await self._wait_for_slots(pool, tries, slots, until)
        finally:
            self._trying -= Counter(tries)  # removes zero counts
            for each in tries:
                for done in self._done.get(each, ()):
                    if not done.done():
                        done.set_result(None)
            if pool is not None and slots:
                await pool.give_back(slots)

    async def record_failure(self, *keys: str) -> None:
        """Count a failure."""
        for limiter, key in self._tries(keys):
            await limiter.charge(key)

    def _tries(self, keys: Sequence[str]) -> _Tries:
        return tuple(zip(self._failures, keys, strict=True))

    # In this worker

    async def _begin(self, tries: _Tries, until: float) -> bool:
        """Start an attempt as soon as it's allowed. Return False if it's rejected."""
        may = self._may(tries)
        if may is None and all(len(self._done.get(each, ())) < _MAX_WAITING_ATTEMPTS for each in tries):
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    while may is None:
                        await self._end_of_one(tries)
                        may = self._may(tries)
        if may:
            self._trying.update(tries)
        return bool(may)

    def _may(self, tries: _Tries) -> bool | None:
        """Return whether an attempt is allowed, or None if that depends on the attempts in progress."""
        found: bool | None = True
        for limiter, key in tries:
            trying = self._trying[limiter, key]
            if limiter.wait(key) > 0:
                return False
            if trying and limiter.count_remaining(key) <= trying:
                found = None
        return found

    async def _end_of_one(self, tries: _Tries) -> None:
        """Wait until an attempt with one of these keys has finished."""
        done = asyncio.get_running_loop().create_future()
        for each in tries:
            self._done.setdefault(each, {})[done] = None
        try:
            await done
        finally:
            for each in tries:
                del self._done[each][done]
                if not self._done[each]:
                    del self._done[each]

    # In the store

    async def _wait_for_slots(
        self, pool: StoreLimiter, tries: _Tries, slots: list[ConcurrencySlot], until: float
    ) -> bool:
        """Return whether the store has a free slot for each key. Adds the slots taken to `slots`."""
        loop, me, polls = asyncio.get_running_loop(), token_hex(8), count()
        while (may := await self._take_slots(pool, tries, slots, me)) is None:
            pause = retry_delay(next(polls), *_POLL_SECONDS)
            if loop.time() + pause >= until:
                return False
            await asyncio.sleep(pause)
        return may

    async def _take_slots(
        self, pool: StoreLimiter, tries: _Tries, slots: list[ConcurrencySlot], me: str
    ) -> bool | None:
        """Return whether the slots were taken, or None if they're in use by attempts in progress."""
        charges = [limiter.pace(key, 0.0) for limiter, key in tries]
        decision = await pool.take(charges)
        if decision is None:
            return True
        left = [int(taken.remaining + 1e-3) for taken in decision.results]
        if min(left) < 1:
            return False
        asked = [ConcurrencySlot(charge.key, count, me) for charge, count in zip(charges, left, strict=True)]
        decision = await pool.take(asked)
        if decision is None:
            return True
        if any(taken.wait > 0 for taken in decision.results):
            return None
        # Another attempt may have failed since the first poll, which leaves fewer slots.
        decision = await pool.take(charges)
        if decision is not None and any(
            int(taken.remaining + 1e-3) < count for taken, count in zip(decision.results, left, strict=True)
        ):
            await pool.give_back(asked)
            return None
        slots += asked
        return True


SLOW = "Too many attempts. Wait a minute, then try again."
WRONG = "The name or password is wrong."
_FAILURES = Rate(10, 60)
"""Failed passwords per network."""
_FROM_NETWORK = Rate(10, 300)
"""Failed passwords per name and network. Less than `_NAMED`, so that a single network can't lock an account."""
_NAMED = Rate(15, 300)
"""Failed passwords per name, from all networks together, and the same number from networks without failures."""
_BEFORE = Rate(3, 3600)
"""Failed passwords after which a network no longer counts as one without failures, per name and network."""
_FROM_DEVICE = Rate(10, 300)
"""Failed passwords per known device."""


class LoginThrottle:
    """Checks names and passwords at a limited rate, shared by all pages that ask for them.

    Known devices, which are browsers in which the user has logged in before, have their own limit, so attackers
    elsewhere can't lock the user out. Half of a name's allowance is for networks that haven't failed before, so that a
    few attackers can't keep the user out of a new browser either.
    """

    def __init__(self, passwords: Passwords | None, vault: Vault) -> None:
        self._passwords = passwords
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
                user = None if self._passwords is None else await self._passwords.check(name, password)
            except SignInFailed as exc:
                return str(exc)
            if user is None:
                await limiter.record_failure(*keys)
        return user or WRONG
