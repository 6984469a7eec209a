"""A file of people who may sign in: names and scopes beside Argon2 hashes of their passwords.

``millstream users`` looks after it. A server reads it again within a second of a change: whoever was removed has no
token then that counts.
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
from millstream.auth._kept_file import Stamp, locked, read_file, replace_file, stamp_of
from millstream.auth._key_file import check_scopes

logger = logging.getLogger("millstream")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,63}")


class StoredUser(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One person, as the file has them."""

    name: str
    password: str
    """Argon2id, in its own notation."""
    since: float
    """When they were added, or got their last password: Unix time in seconds."""
    scopes: tuple[str, ...] = ()


class _Users(Struct, forbid_unknown_fields=True):
    users: tuple[StoredUser, ...] = ()


_decode = msgspec.json.Decoder(_Users).decode


class UserFile:
    """The file. It is a way to sign in (`ways.Passwords`)."""

    def __init__(self, path: Path) -> None:
        """Nothing is read before `load`."""
        self.path = path
        self.users: dict[str, StoredUser] = {}
        self._seen: Stamp | None = None
        self._check = Checks()
        self._epoch = 0

    def load(self) -> None:
        """Read the file.

        Raises:
            LocalError: it is not there, is none, or others may write to it.
        """
        raw, stamp = read_file(self.path, "user file", "millstream users add NAME")
        try:
            users = _decode(raw).users
        except msgspec.DecodeError as exc:
            raise LocalError(f"{self.path} isn't a user file: {exc}") from exc
        self.users = {each.name.casefold(): each for each in users}
        self._seen = stamp

    # As a way to sign in

    async def check(self, name: str, password: str) -> User | None:
        """The person of a name and password."""
        self.epoch()
        known = self.users.get(name.casefold())
        right = await self._check(password, None if known is None else known.password)
        return None if known is None or not right else self.find(known.name)

    def find(self, subject: str) -> User | None:
        """The person of a name."""
        known = self.users.get(subject.casefold())
        return (
            None if known is None or known.name != subject else User(known.name, known.name, known.scopes, known.since)
        )

    def epoch(self) -> int:
        """How often the file has changed. One that cannot be read takes its people away: they may have been removed."""
        if self._seen != stamp_of(self.path) or self._seen is None:
            try:
                self.load()
                self._epoch += 1
            except LocalError as exc:
                if self.users:
                    logger.error("%s Until then, nobody can sign in.", exc)
                    self._epoch += 1
                self.users = {}
        return self._epoch

    # As ``millstream users`` changes it

    def add(self, name: str, password: str, scopes: tuple[str, ...], now: float) -> None:
        """Add a person.

        Raises:
            ValueError: the name, a scope or the password cannot be, or somebody has the name.
            LocalError: the file cannot be used.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} can't be a user's name. Use up to 64 letters, digits, dots, dashes, @, + and _."
            )
        user = StoredUser(name, hash_password(password), now, check_scopes(scopes))

        def put(users: dict[str, StoredUser]) -> None:
            if name.casefold() in users:
                raise ValueError(f"There is a user {name!r} already. Choose another name.")
            users[name.casefold()] = user

        self._change(put)

    def remove(self, name: str) -> None:
        """Remove a person. Whatever they have allowed a client ends.

        Raises:
            ValueError: there is nobody of that name.
            LocalError: the file cannot be used.
        """

        def take(users: dict[str, StoredUser]) -> None:
            _known(users, name)
            del users[name.casefold()]

        self._change(take)

    def set_password(self, name: str, password: str, now: float) -> None:
        """Give a person another password. Whatever they have allowed a client before ends.

        Raises:
            ValueError: there is nobody of that name, or the password cannot be one.
            LocalError: the file cannot be used.
        """
        hashed = hash_password(password)

        def put(users: dict[str, StoredUser]) -> None:
            users[name.casefold()] = msgspec.structs.replace(_known(users, name), password=hashed, since=now)

        self._change(put)

    def _change(self, change: Callable[[dict[str, StoredUser]], None]) -> None:
        with locked(self.path):
            if self.path.exists():
                self.load()
            users = dict(self.users)
            change(users)
            body = msgspec.json.format(msgspec.json.encode(_Users(tuple(users.values()))), indent=2)
            replace_file(self.path, body + b"\n")
            self.users = users


def _known(users: dict[str, StoredUser], name: str) -> StoredUser:
    found = users.get(name.casefold())
    if found is None:
        raise ValueError(f"There is no user {name!r}. See: millstream users list")
    return found
