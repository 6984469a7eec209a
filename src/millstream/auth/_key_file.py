"""API keys: fixed ones, and a file of names, scopes, groups, expiry, and the SHA-256 of each key. Keys aren't stored.

Keys are made from 32 random bytes, so a plain hash is sufficient.
"""

import contextlib
import logging
import os
import re
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from hmac import compare_digest
from math import inf
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import msgspec
from msgspec import Struct

from millstream._override import override
from millstream._protocol.errors import LocalError
from millstream._protocol.principal import EVERYTHING, Principal
from millstream._server.calls.vault import digest, new_secret
from millstream._server.functions.description import Names
from millstream._suggestions import suggest_keywords
from millstream._troubles import LogOnce
from millstream.auth._method import AuthMethod, Clock, Identity, Rejection, Rights
from millstream.files import Stamp, open_lock, stamp_of, write_private

PREFIX = "ms_"
"""Prefix that lets secret scanners recognize leaked keys."""
SHORTEST_KEY = 16
"""Minimum characters of a key that can't be guessed remotely."""
_PATH = re.compile(r"\.(env|json|keys|toml|txt|ya?ml)$")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,63}")
SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,128}")
"""Syntax of a scope: scope-token of RFC 6749 §3.3."""


class Record(Struct, frozen=True):
    """A key or user in a file. It also has scopes and groups."""

    name: str


R = TypeVar("R", bound=Record)


class StoredKey(Record, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One key in the file."""

    hash: str
    """SHA-256 of the key, in hexadecimal."""
    created: float
    """Creation time; like `expires`, Unix time in seconds."""
    scopes: tuple[str, ...] = ()
    expires: float | None = None
    groups: tuple[str, ...] = ()
    """Groups for policies, in the principal's claim `groups`."""

    def valid(self, now: float) -> bool:
        """Return whether the key is valid now."""
        return self.expires is None or now < self.expires


class _Keys(Struct, forbid_unknown_fields=True):
    keys: tuple[StoredKey, ...] = ()


def check_name(name: str) -> str:
    """Return the name if it's a valid key name.

    Raises:
        ValueError: The name is invalid.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} isn't a valid key name. Use up to 64 letters, digits, dots, dashes, @ and _.")
    return name


def check_key(name: str, key: str) -> None:
    """Raise an error if a key can't be sent in a header.

    Raises:
        TypeError: The key isn't a string.
        ValueError: The key is empty or has invalid characters.
    """
    if not isinstance(key, str):  # pyright: ignore[reportUnnecessaryIsInstance]  os.environ.get returns None
        raise TypeError(
            f"The key {name!r} must be a string, not {type(key).__name__}. If it comes from an environment variable, "
            "set the variable. For several keys, write named_keys={'alice': KEY}."
        )
    if not key.strip() or not key.isascii() or not key.isprintable() or " " in key:
        what = "auth key" if name == "key" else f"key {name!r}"  # the key in the setting has no other name
        raise ValueError(f"The {what} is empty or has invalid characters. Use printable ASCII without spaces.")


def is_path(key: str) -> bool:
    """Return whether a key is the path of a file."""
    return _PATH.search(key) is not None or os.path.isfile(key)  # noqa: PTH113  unlike a Path, it takes any length


def check_strength(name: str, key: str) -> None:
    """Raise an error if a key of a program could be guessed, or is the path of a file.

    Raises:
        ValueError: The key is too short, or a path.
    """
    if is_path(key):
        raise ValueError(f"The key {name!r} is the path of a file. To accept the keys in it, write auth.keys(file=…).")
    if len(key) < SHORTEST_KEY:
        raise ValueError(
            f"The key {name!r} has fewer than {SHORTEST_KEY} characters, so it could be guessed. Use a longer one, or "
            "`millstream keys add` and auth.keys(file=…)."
        )


def check_scopes(scopes: "Collection[str]") -> tuple[str, ...]:
    """Return the scopes as a tuple if all are valid (RFC 6749).

    Raises:
        ValueError: A scope is invalid.
        TypeError: The scopes are a string instead of a list.
    """
    if isinstance(scopes, str):
        raise TypeError(f"scopes must be a list: [{scopes!r}]")
    for scope in scopes:
        if not SCOPE.fullmatch(scope):
            raise ValueError(
                f"{scope!r} isn't a valid scope. Use letters, digits, and punctuation, without spaces or quotes."
            )
    return tuple(scopes)


def check_groups(groups: tuple[str, ...]) -> tuple[str, ...]:
    """Return the groups if all are valid.

    Raises:
        ValueError: A group is invalid.
    """
    if wrong := [each for each in groups if not _GROUP.fullmatch(each)]:
        raise ValueError(f"{wrong[0]!r} isn't a valid group. Use up to 64 letters, digits, dots, dashes, @, + and _.")
    return groups


class RecordFile(Generic[R]):
    """A file of keys or users, which commands change while servers read it.

    It's protected from other users. Changes are written to a temporary file that replaces the original under a lock, so
    readers never see half a file and concurrent commands never undo each other.
    """

    kind: ClassVar[str]
    """The kind of record: ``key`` or ``user``."""
    contents: ClassVar[type[Struct]]
    """The content of the whole file."""
    effect: ClassVar[str]
    """What follows if the file can't be read."""

    def __init__(self, path: Path) -> None:
        """Create the object; `load` reads the file."""
        self.path = path
        self.outage: LogOnce = LogOnce(
            None,  # until a server uses it
            f"{self.effect}, because the file {path} can't be used",
            f"The file {path} can be used again.",
            remedy=f"Restore or correct the file. It has an error if this command fails: millstream {self.kind}s list "
            f"--file {path}",
        )
        self.records: tuple[R, ...] = ()
        self._seen: Stamp | None = None
        """Stamp of the last content read."""

    def load(self) -> None:
        """Read the records from the file.

        Raises:
            LocalError: The file is missing or malformed, or other users may write to it.
        """
        path, command = self.path, f"millstream {self.kind}s add NAME"
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                raw = file.read()
        except OSError as exc:
            fix = "Use the path of a file." if path.is_dir() else f"Create one: {command} --file {path}"
            raise LocalError(f"The {self.kind} file {path} can't be read: {exc.strerror}. {fix}") from exc
        if os.name == "posix" and status.st_mode & 0o022:
            raise LocalError(f"Other users can write to the {self.kind} file {path}. Run: chmod 600 {path}")
        try:
            self.use(getattr(msgspec.json.decode(raw, type=self.contents), f"{self.kind}s"))
        except msgspec.DecodeError as exc:
            raise LocalError(f"{path} isn't a {self.kind} file: {exc}. `{command}` writes one.") from exc
        self._seen = status.st_mtime_ns, status.st_size, status.st_ino

    def load_for_server(self) -> None:
        """Read the file, and warn if it has no records, or if other users may read it.

        Raises:
            LocalError: See `load`.
        """
        self.load()
        if not self.records:
            text = "%s has no %ss. Add one: millstream %ss add NAME --file %s"
            logger.warning(text, self.path, self.kind, self.kind, self.path)
        if os.name == "posix" and self.path.stat().st_mode & 0o004:
            logger.warning("All users on this machine can read %s. Run: chmod o-r %s", self.path, self.path)

    def use(self, records: tuple[R, ...]) -> None:
        """Use these records until the file is read again."""
        self.records = records

    def reload(self) -> bool:
        """Read the file if it has changed and return whether its records may have changed.

        A missing or unreadable file has no records.
        """
        if self._seen is not None and self._seen == stamp_of(self.path):
            return False
        had_records = bool(self.records)
        with self.outage:
            self.load()
        if self.outage.lasts:
            self.use(())
            self._seen = None  # also read it if it comes back unchanged
            return had_records
        return True

    @contextlib.contextmanager
    def change(self) -> Generator[list[R]]:
        """Read the file and write it with the changes that the block makes to the list.

        Raises:
            LocalError: The file can't be used.
        """
        try:
            handle = open_lock(self.path)
        except OSError as exc:
            raise LocalError(f"{self.path.parent} can't be written to: {exc.strerror}.") from exc
        assert handle is not None  # noqa: S101  it's None only without waiting
        try:
            if self.path.exists():
                self.load()
            records = list(self.records)
            yield records
            body = msgspec.json.format(msgspec.json.encode({f"{self.kind}s": records}), indent=2)
            write_private(self.path, body + b"\n")
            self.use(tuple(records))
        finally:
            os.close(handle)

    @staticmethod
    def fold(name: str) -> str:
        """Return the form of a name that identifies a record."""
        return name

    def set_rights(self, name: str, scopes: tuple[str, ...], groups: tuple[str, ...]) -> None:
        """Replace the scopes and groups of a user, or of a key and the keys that it replaced.

        Raises:
            ValueError: The record doesn't exist, or a scope or group is invalid.
            LocalError: The file can't be used.
        """
        self.replace(name, scopes=check_scopes(scopes), groups=check_groups(groups))

    def replace(self, name: str, **fields: Any) -> None:
        """Replace fields of the records with a name. Raises like `remove`."""
        with self.change() as records:
            old = self._find(records, name)
            records[:] = [msgspec.structs.replace(each, **fields) if each in old else each for each in records]

    def remove(self, name: str) -> None:
        """Remove a user and revoke their grants, or revoke a key and the keys that it replaced.

        Raises:
            ValueError: The record doesn't exist.
            LocalError: The file can't be used.
        """
        with self.change() as records:
            self.take(records, name)

    def take(self, records: list[R], name: str) -> R:
        """Remove all records with a name from a list and return the newest one. Raises ValueError if there's none."""
        old = self._find(records, name)
        records[:] = [each for each in records if each not in old]
        return old[-1]

    def _find(self, records: list[R], name: str) -> list[R]:
        found = [each for each in records if self.fold(each.name) == self.fold(name)]
        if not found:
            raise ValueError(f"There is no {self.kind} {name!r}. See: millstream {self.kind}s list")
        return found


class KeyFile(RecordFile[StoredKey]):
    """The key file."""

    kind = "key"
    effect = "The keys in a file don't work"
    contents: ClassVar[type[Struct]] = _Keys

    def add(
        self, name: str, scopes: tuple[str, ...], now: float, expires: float | None, groups: tuple[str, ...] = ()
    ) -> str:
        """Create and return a key. The file stores only its hash.

        Raises:
            ValueError: The name, a scope, or a group is invalid, or the name is taken.
            LocalError: The file can't be used.
        """
        check_name(name)
        check_scopes(scopes)
        check_groups(groups)
        key = PREFIX + new_secret()
        with self.change() as keys:
            if any(each.name == name for each in keys):
                raise ValueError(f"The key {name!r} already exists. Rotate or revoke it, or choose another name.")
            keys.append(StoredKey(name, digest(key), now, scopes, expires, groups))
        return key

    def rotate(self, name: str, now: float, grace: float) -> str:
        """Replace a key with a new one for the same caller, scopes, and groups. The old key works for another `grace`
        seconds.

        Raises:
            ValueError: The key doesn't exist.
            LocalError: The file can't be used.
        """
        key = PREFIX + new_secret()
        with self.change() as keys:
            newest = self.take(keys, name)
            if grace > 0:
                until = now + grace if newest.expires is None else min(newest.expires, now + grace)
                keys.append(msgspec.structs.replace(newest, expires=until))
            keys.append(msgspec.structs.replace(newest, hash=digest(key), created=now))
        return key


logger = logging.getLogger("millstream")

_VERDICT_SECONDS = 3600.0
_REJECTION_SECONDS = 60.0
"""Seconds that a verdict on a key is cached. Revocations take effect within a second (`AuthGuard.refresh`)."""
_LOOK_SECONDS = 0.1
"""Minimum seconds between looks at the file because of unknown keys."""
_REVOCATION_SECONDS = 10.0
"""Seconds after which every guard with this method has polled `epoch` and seen a revocation."""


def key_method(given: Sequence[tuple[str, str, Collection[str]]], file: str | Path) -> "KeyMethod":
    """Return the method for keys with their names and scopes, and for a file.

    Raises:
        TypeError, ValueError: A key or scope is invalid.
        LocalError: The file can't be read.
    """
    for name, key, _ in given:
        check_key(name, key)
    now = time.time()
    stored = tuple(StoredKey(name, digest(key), now, check_scopes(scopes)) for name, key, scopes in given)
    if len({each.hash for each in stored}) < len({(each.hash, each.name) for each in stored}):
        raise ValueError("Two names have the same key, so their callers can't be told apart. Give each its own key.")
    return KeyMethod(stored, KeyFile(Path(file)) if file else None)


class KeyMethod(AuthMethod):
    """The API keys of one server."""

    def __init__(self, given: tuple[StoredKey, ...], file: KeyFile | None, *, clock: Clock = time.time) -> None:
        """Create the method and read the file.

        Raises:
            LocalError: The file can't be read.
        """
        self._fixed_keys = given
        self._file = file
        self._clock = clock
        self._epoch = 0
        """Counter of changes to the file or to the set of valid keys."""
        self._names = frozenset[str]()
        """Names with a valid key at the last check."""
        self._revoked_at: dict[str, float] = {}
        """Name of a recently removed key -> time of removal. The name may have another key."""
        self._looked_at = 0.0
        if file is not None:
            self.outages = (file.outage,)
            file.load_for_server()
        self.epoch()

    @override
    async def identify(self, credential: str) -> Identity | None:
        """Return the owner of a key. Compares it with all keys in constant time."""
        hashed, now = digest(credential), self._clock()
        found: StoredKey | None = None
        for each in self._all():
            if compare_digest(each.hash, hashed) and each.valid(now):
                found = each
        if found is None:
            return None
        until = inf if found.expires is None else found.expires
        claims = {"groups": list(found.groups)} if found.groups else {}
        scopes = frozenset(found.scopes)
        principal = Principal(found.name, client=found.name, scopes=scopes, claims=claims, expires_at=until)
        return Identity(principal, min(_VERDICT_SECONDS, until - now))

    @override
    async def examine(self, credential: str) -> Identity | Rejection:
        """Return the owner of a key, or a rejection to cache until the keys change.

        A key may have been printed a moment ago, so the file is looked at before an unknown one is rejected.
        """
        found = await self.identify(credential)
        if found is None and self._file is not None and not 0 <= self._clock() - self._looked_at < _LOOK_SECONDS:
            self._looked_at = self._clock()
            self.epoch()
            found = await self.identify(credential)
        return found or Rejection(seconds=_REJECTION_SECONDS)

    def _all(self) -> tuple[StoredKey, ...]:
        return self._fixed_keys if self._file is None else (*self._fixed_keys, *self._file.records)

    @override
    def holds(self, id: str) -> bool:
        """Return whether this name has a valid key. After one of its keys is revoked, return False for a moment, which
        closes all streams of the name. Clients with its other keys reconnect.
        """
        return id in self._names and id not in self._revoked_at

    @override
    def count(self) -> int:
        """Return the number of names with a valid key."""
        return len(self._names)

    @override
    def rights(self) -> Rights:
        """See `AuthMethod.rights`."""
        found = self._all()
        return Rights(
            frozenset(scope for each in found for scope in each.scopes),
            frozenset(group for each in found for group in each.groups),
        )

    @override
    def epoch(self) -> int:
        """Return a number that changes when the file changes or a key expires."""
        file, now = self._file, self._clock()
        self._revoked_at = {name: at for name, at in self._revoked_at.items() if abs(now - at) < _REVOCATION_SECONDS}
        before = () if file is None else file.records
        if file is not None and file.reload():
            self._epoch += 1
            self._revoked_at |= {each.name: now for each in before if each not in file.records}
        names = frozenset(each.name for each in self._all() if each.valid(now))
        if names != self._names:
            self._names = names
            self._epoch += 1
        return self._epoch


@suggest_keywords
def keys(
    *given: str, named_keys: Mapping[str, str | tuple[str, Names]] | None = None, file: str | Path = ""
) -> AuthMethod:
    """Accept API keys, sent as ``Authorization: Bearer KEY``.

    Args:
        given: Keys with full access, of at least 16 characters. Read them from the environment; don't write them in
            source code.
        named_keys: Mapping of a name to a key, or to a key and its scopes. The name becomes the principal's `subject`.
        file: A file managed by ``millstream keys``. Changes to it take effect within a second.

    Raises:
        ValueError: No keys are passed, or a key, name, or scope is invalid.
        LocalError: The file can't be read.

    Example:
        ``Server("shop", auth=auth.keys(named_keys={"desk": os.environ["DESK_KEY"]}))``
    """
    if not (given or named_keys or file):
        raise ValueError("auth.keys() requires a key, or a file with keys: auth.keys(file='keys.json')")
    wanted: list[tuple[str, str, Collection[str]]] = [("key", each, (EVERYTHING,)) for each in given]
    for name, value in (named_keys or {}).items():
        key, scopes = (value, ()) if isinstance(value, str) else value
        wanted.append((check_name(name), key, scopes))
    method = key_method(wanted, file)
    for name, key, _ in wanted:
        check_strength(name, key)
    return method
