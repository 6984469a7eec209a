"""User accounts: the file of password hashes, and limits on failed logins."""

import asyncio
import re
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import ClassVar

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from msgspec import Struct

from millstream._confidential import Confidential
from millstream._http.message import peer_network
from millstream._limits import Limiter, Rate
from millstream._override import override
from millstream._server.calls.vault import Vault
from millstream._suggestions import suggest_keywords
from millstream.auth._key_file import Record, RecordFile, check_groups, check_scopes
from millstream.auth._method import KeyedSemaphore, NotAdmitted, Unavailable
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


class StoredUser(Confidential, Record, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One account in the file."""

    password: str
    """Argon2id hash in the PHC string format."""
    since: float
    """Time of the account's creation or last password change, in Unix seconds."""
    scopes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    """Groups for policies, in the claim `groups` of the user's tokens."""


class _Users(Struct, forbid_unknown_fields=True):
    users: tuple[StoredUser, ...] = ()


def check_user_name(name: str) -> None:
    """Check the name of a user.

    Raises:
        ValueError: It's invalid.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} isn't a valid user name. Use up to 64 letters, digits, dots, dashes, @, + and _.")


class UserFile(RecordFile[StoredUser]):
    """A file of names, scopes, and password hashes, as a login method (`millstream.auth.providers.Passwords`).

    ``millstream users`` manages it. Servers apply changes within a second. A removed user's tokens become invalid.
    """

    kind = "user"
    effect = "Users can't sign in"
    contents: ClassVar[type[Struct]] = _Users

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.users: dict[str, StoredUser] = {}
        """Records by case-folded name."""
        self._threads = ThreadPoolExecutor(_MAX_CONCURRENT_CHECKS, "passwords")
        self._waiting = 0
        self._epoch = 0

    @override
    def use(self, records: tuple[StoredUser, ...]) -> None:
        """Use these records until the file is read again."""
        self.users = {each.name.casefold(): each for each in records}
        super().use(tuple(self.users.values()))

    @staticmethod
    @override
    def fold(name: str) -> str:
        return name.casefold()

    # As a login method

    async def check(self, name: str, password: str) -> User | None:
        """Return the user with a name and password. Passwords are verified in two threads.

        Raises:
            SignInFailed: Too many checks are waiting.
        """
        self.epoch()
        known = self.users.get(name.casefold())
        if self._waiting >= _MAX_WAITING:
            raise SignInFailed("Too many people are signing in at the moment. Try again in a minute.")
        hashed = None if known is None else known.password
        self._waiting += 1
        try:
            right = await asyncio.get_running_loop().run_in_executor(self._threads, verify_password, password, hashed)
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
        self._epoch += self.reload()
        return self._epoch

    # Used by ``millstream users``

    def add(self, name: str, password: str, scopes: tuple[str, ...], now: float, groups: tuple[str, ...] = ()) -> None:
        """Add a user.

        Raises:
            ValueError: The name, a scope, or the password is invalid, or the name is taken.
            LocalError: The file can't be used.
        """
        check_user_name(name)
        user = StoredUser(name, hash_password(password), now, check_scopes(scopes), check_groups(groups))
        with self.change() as users:
            if name.casefold() in self.users:
                raise ValueError(f"The user {name!r} already exists. Choose another name.")
            users.append(user)

    def set_password(self, name: str, password: str, now: float) -> None:
        """Change a user's password and revoke their grants.

        Raises:
            ValueError: The user doesn't exist, or the password is invalid.
            LocalError: The file can't be used.
        """
        self.replace(name, password=hash_password(password), since=now)


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


SLOW = "Too many attempts. Wait a minute, then try again."
WRONG = "The name or password is wrong."
_FROM_DEVICE = Rate(10, 300)
"""Failed passwords per known device."""
_FAILURES = Rate(10, 60)
"""Failed passwords per network."""
_FROM_NETWORK = Rate(10, 300)
"""Failed passwords per name and network. Less than `_NAMED`, so that a single network can't lock an account."""
_NAMED = Rate(15, 300)
"""Failed passwords per name, from all networks together, and the same number in the reserved allowance."""
_FROM_NEW = Rate(3, 3600)
"""Failed passwords per name and network in the reserved allowance."""
_AT_ONCE = 4
"""Maximum concurrent password checks per network. It's more than one, because many people can share an address."""


class LoginThrottle:
    """Checks names and passwords at a limited rate, shared by all pages that ask for them.

    Each attempt is counted in advance, on all workers, and given back unless the password is wrong. On each worker,
    attempts for a name take turns, so they don't count against each other, and a network has a few at a time. While the
    store is unavailable, each worker counts separately.

    Known devices, which are browsers in which the user has logged in before, have their own limit, so attackers
    elsewhere can't lock the user out. Half of a name's allowance is reserved for networks with few failures, so that a
    few attackers can't keep the user out of a new browser either.
    """

    def __init__(self, passwords: Passwords | None, vault: Vault) -> None:
        self._passwords = passwords
        self._vault = vault
        # Each limit stops guesses that the others let through: in a known browser, for many names from one network, for
        # one name from one network, for one name from a few networks, and for one name from everywhere.
        self._devices = vault.limiter("sign-in-device", _FROM_DEVICE)
        self._networks = vault.limiter("sign-in-password", _FAILURES)
        self._pairs = vault.limiter("sign-in-network", _FROM_NETWORK)
        self._new = vault.limiter("sign-in-new", _FROM_NEW)
        self._names = vault.limiter("sign-in-name", _NAMED)
        # Attempts are counted before their check, so concurrent right passwords would use up the limits of their name.
        self._of_networks = KeyedSemaphore(_AT_ONCE)
        self._turns = KeyedSemaphore(1)

    async def check(self, peer: str, name: str, password: str, *, device: str = "") -> User:
        """Return the user with a name and password.

        Args:
            peer: Address of the browser.
            name: Name as typed.
            password: Password as typed.
            device: Id of the known device, if the user has logged in there before (`Tickets.device`).

        Raises:
            NotAdmitted: The name or password is wrong, they can't be checked, or there were too many attempts.
        """
        network, lowered = peer_network(peer), name.casefold()[:128]
        pair = f"{network} {lowered}"
        common = {self._networks: network, self._pairs: pair}
        try:
            if device:
                async with self._turns.hold(device):
                    return await self._try(name, password, {self._devices: device})
            async with self._of_networks.hold(network), self._turns.hold(f"name {lowered}"):
                reserved = {**common, self._new: pair, self._names: f"new {lowered}"}
                return await self._try(name, password, reserved, {**common, self._names: f"any {lowered}"})
        except Unavailable:
            raise NotAdmitted(SLOW, 429) from None

    async def _try(self, name: str, password: str, *allowances: Mapping[Limiter, str]) -> User:
        """Check a password, counted in the first allowance that isn't used up. An allowance has one or more limits."""
        for limits in allowances:
            if await self._charge(limits, 1.0):
                break
        else:
            raise NotAdmitted(SLOW, 429)
        is_wrong = False
        try:
            user = None if self._passwords is None else await self._passwords.check(name, password)
            is_wrong = user is None
        except SignInFailed as exc:
            raise NotAdmitted(str(exc), 403) from None
        except Unavailable as exc:
            raise NotAdmitted(str(exc), 503) from None
        finally:
            if not is_wrong:
                await self._charge(limits, -1.0)
        if user is None:
            raise NotAdmitted(WRONG, 403, wrong=True)
        return user

    async def _charge(self, limits: Mapping[Limiter, str], cost: float) -> bool:
        """Take from all limits, and return whether each had enough. If not, take nothing."""
        waits = [limiter.wait(key, cost) for limiter, key in limits.items()]
        if (pool := self._vault.pool) is not None and max(waits) <= 0:
            decision = await pool.take([limiter.pace(key, cost) for limiter, key in limits.items()])
            waits = [each.wait for each in decision] if decision is not None else waits
        if max(waits) > 0:
            return False  # don't remember the wait, because another worker may give back what it took
        for limiter, key in limits.items():
            limiter.take(key, cost)
        return True
