"""User accounts, with each user's login method, state, and grantable scopes, and the file of password hashes."""

import asyncio
import logging
import re
import secrets
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import ClassVar

import msgspec
from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from msgspec import Struct

from millstream._override import override
from millstream._protocol.errors import LocalError, suggest_keywords
from millstream.auth._authorization_server.config import IssuerConfig
from millstream.auth._authorization_server.records import Grant, OAuthClient
from millstream.auth._key_file import RecordFile, check_scopes
from millstream.auth.providers import Selective, SignInFailed, UpstreamLogin, User

LOCAL = ""
"""Login method of users who have a password on this server."""


class Accounts:
    """All accounts that can sign in."""

    def __init__(self, config: IssuerConfig) -> None:
        self._config = config
        self.passwords = config.passwords
        self.upstreams: Mapping[str, UpstreamLogin] = config.upstreams

    async def check(self, name: str, password: str) -> User | None:
        """Return the user with a name and password."""
        return None if self.passwords is None else await self.passwords.check(name, password)

    def current_user(self, user: User, login: str) -> User | None:
        """Return a user's current state; None if they may no longer sign in."""
        if login in self._config.identities:
            return user if user.since == self._config.identities[login].number else None
        if login != LOCAL:
            upstream = self.upstreams.get(login)
            stays = upstream is not None and not (isinstance(upstream, Selective) and not upstream.still(user))
            return user if stays else None
        found = None if self.passwords is None else self.passwords.find(user.subject)
        return found if found is not None and found.since == user.since else None

    def user_of_grant(self, grant: Grant) -> User | None:
        """Return the user who approved a grant, with the scopes at that time; None if they may no longer sign in."""
        return self.current_user(User(grant.subject, grant.name, grant.scopes, grant.since), grant.login)

    async def grantable(self, user: User, client: OAuthClient, scopes: tuple[str, ...]) -> tuple[str, ...]:
        """Return the scopes that the client can get: the default ones, and the ones that the user may grant."""
        allowed = {*self._config.scopes, *await self._config.provider.grantable(user, client, scopes)}
        return tuple(each for each in scopes if each in allowed)

    @staticmethod
    def from_upstream(name: str, user: User) -> User:
        """Return the user with a subject that is unique across login methods."""
        return msgspec.structs.replace(user, subject=f"{name}:{user.subject}")


MIN_PASSWORD = 8
MAX_PASSWORD = 1024
_ITERATIONS, _MEMORY, _LANES = 3, 64 * 1024, 1
"""Cost parameters of a hash; memory in KiB."""
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


logger = logging.getLogger("millstream")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,63}")


class StoredUser(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One account in the file."""

    name: str
    password: str
    """Argon2id hash in the PHC string format."""
    since: float
    """Time of the account's creation or last password change, in Unix seconds."""
    scopes: tuple[str, ...] = ()


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
        """Return the user with a name and password."""
        self.epoch()
        known = self.users.get(name.casefold())
        right = await self._verify(password, None if known is None else known.password)
        return None if known is None or not right else self.find(known.name)

    async def _verify(self, password: str, kept: str | None) -> bool:
        """See `verify_password`. Runs in a thread, with limited concurrency.

        Raises:
            SignInFailed: Too many checks are waiting.
        """
        if self._waiting >= _MAX_WAITING:
            raise SignInFailed("Too many people are signing in at the moment. Try again in a minute.")
        loop = asyncio.get_running_loop()
        for each in [each for each in self._semaphores if each.is_closed()]:
            del self._semaphores[each]
        self._waiting += 1
        try:
            async with self._semaphores.setdefault(loop, asyncio.Semaphore(_MAX_CONCURRENT_CHECKS)):
                return await asyncio.to_thread(verify_password, password, kept)
        finally:
            self._waiting -= 1

    def find(self, subject: str) -> User | None:
        """Return the user with a name."""
        known = self.users.get(subject.casefold())
        return (
            None if known is None or known.name != subject else User(known.name, known.name, known.scopes, known.since)
        )

    def epoch(self) -> int:
        """Return the number of changes to the file. While the file is unreadable, its users count as removed."""
        if self.has_changed():
            try:
                self.load()
                self._epoch += 1
            except LocalError as exc:
                if self.users:
                    logger.error("%s Users can't sign in until this is fixed.", exc)
                    self._epoch += 1
                self.use(())
        return self._epoch

    # Used by ``millstream users``

    def add(self, name: str, password: str, scopes: tuple[str, ...], now: float) -> None:
        """Add a user.

        Raises:
            ValueError: The name, a scope, or the password is invalid, or the name is taken.
            LocalError: The file can't be used.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} isn't a valid user name. Use up to 64 letters, digits, dots, dashes, @, + and _."
            )
        user = StoredUser(name, hash_password(password), now, check_scopes(scopes))
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
    found.load()
    return found
