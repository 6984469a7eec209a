"""A file of user accounts: names, scopes, and Argon2 password hashes.

``millstream users`` manages it. Servers apply changes within a second. A removed user's tokens become invalid.
"""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from millstream._protocol.errors import LocalError
from millstream.auth._authorization_server.login_methods import User
from millstream.auth._authorization_server.passwords import Checks, hash_password
from millstream.auth._key_file import check_scopes
from millstream.auth._locked_file import Stamp, lock, read_file, replace_file, stamp_of

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


_decode = msgspec.json.Decoder(_Users).decode


class UserFile:
    """The file as a login method (`login_methods.Passwords`)."""

    def __init__(self, path: Path) -> None:
        """Create the object; `load` reads the file."""
        self.path = path
        self.users: dict[str, StoredUser] = {}
        self._seen: Stamp | None = None
        self._check = Checks()
        self._epoch = 0

    def load(self) -> None:
        """Read the file.

        Raises:
            LocalError: the file is missing or malformed, or other users may write to it.
        """
        raw, stamp = read_file(self.path, "user file", "millstream users add NAME")
        try:
            users = _decode(raw).users
        except msgspec.DecodeError as exc:
            raise LocalError(f"{self.path} isn't a user file: {exc}. `millstream users add NAME` writes one.") from exc
        self.users = {each.name.casefold(): each for each in users}
        self._seen = stamp

    # As a login method

    async def check(self, name: str, password: str) -> User | None:
        """Return the user with a name and password."""
        self.epoch()
        known = self.users.get(name.casefold())
        right = await self._check(password, None if known is None else known.password)
        return None if known is None or not right else self.find(known.name)

    def find(self, subject: str) -> User | None:
        """Return the user with a name."""
        known = self.users.get(subject.casefold())
        return (
            None if known is None or known.name != subject else User(known.name, known.name, known.scopes, known.since)
        )

    def epoch(self) -> int:
        """Return the number of changes to the file. While the file is unreadable, its users count as removed."""
        if self._seen != stamp_of(self.path) or self._seen is None:
            try:
                self.load()
                self._epoch += 1
            except LocalError as exc:
                if self.users:
                    logger.error("%s Users can't sign in until this is fixed.", exc)
                    self._epoch += 1
                self.users = {}
        return self._epoch

    # Used by ``millstream users``

    def add(self, name: str, password: str, scopes: tuple[str, ...], now: float) -> None:
        """Add a user.

        Raises:
            ValueError: the name, a scope, or the password is invalid, or the name is taken.
            LocalError: the file can't be used.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} isn't a valid user name. Use up to 64 letters, digits, dots, dashes, @, + and _."
            )
        user = StoredUser(name, hash_password(password), now, check_scopes(scopes))

        def put(users: dict[str, StoredUser]) -> None:
            if name.casefold() in users:
                raise ValueError(f"The user {name!r} already exists. Choose another name.")
            users[name.casefold()] = user

        self._change(put)

    def remove(self, name: str) -> None:
        """Remove a user and revoke their grants.

        Raises:
            ValueError: the user doesn't exist.
            LocalError: the file can't be used.
        """

        def take(users: dict[str, StoredUser]) -> None:
            _find_user(users, name)
            del users[name.casefold()]

        self._change(take)

    def set_password(self, name: str, password: str, now: float) -> None:
        """Change a user's password and revoke their grants.

        Raises:
            ValueError: the user doesn't exist, or the password is invalid.
            LocalError: the file can't be used.
        """
        hashed = hash_password(password)

        def put(users: dict[str, StoredUser]) -> None:
            users[name.casefold()] = msgspec.structs.replace(_find_user(users, name), password=hashed, since=now)

        self._change(put)

    def _change(self, change: Callable[[dict[str, StoredUser]], None]) -> None:
        with lock(self.path):
            if self.path.exists():
                self.load()
            users = dict(self.users)
            change(users)
            body = msgspec.json.format(msgspec.json.encode(_Users(tuple(users.values()))), indent=2)
            replace_file(self.path, body + b"\n")
            self.users = users


def _find_user(users: dict[str, StoredUser], name: str) -> StoredUser:
    found = users.get(name.casefold())
    if found is None:
        raise ValueError(f"There is no user {name!r}. See: millstream users list")
    return found
