"""A file of API keys: names, scopes and expiry beside the SHA-256 of each key, which itself stands nowhere.

A key is made here from 32 random bytes, so that a plain hash is enough: nobody can guess what was hashed.
"""

import re
import secrets
from collections.abc import Callable, Collection
from hashlib import sha256
from pathlib import Path

import msgspec
from msgspec import Struct

from millstream._protocol.errors import LocalError
from millstream.auth._kept_file import Stamp, locked, read_file, replace_file, stamp_of

PREFIX = "ms_"
"""What every key that is made here begins with: scanners for leaked secrets find it by that."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,128}")
"""RFC 6749 §3.3, scope-token."""


class StoredKey(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One key, as the file has it."""

    name: str
    hash: str
    """SHA-256 of the key, hexadecimal."""
    created: float
    """Unix time in seconds, as is `expires`."""
    scopes: tuple[str, ...] = ()
    expires: float | None = None

    def valid(self, now: float) -> bool:
        """Whether it can be used now."""
        return self.expires is None or now < self.expires


class _Keys(Struct, forbid_unknown_fields=True):
    keys: tuple[StoredKey, ...] = ()


_decode = msgspec.json.Decoder(_Keys).decode


def digest_of(key: str) -> str:
    """What is kept of a key."""
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def check_name(name: str) -> str:
    """A name that a key can have.

    Raises:
        ValueError: it isn't one.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} can't be a key's name. Use up to 64 letters, digits, dots, dashes, @ and _.")
    return name


def check_key(name: str, key: str) -> None:
    """Make sure that a key can be sent in a header.

    Raises:
        TypeError: it isn't a text.
        ValueError: it can't.
    """
    if not isinstance(key, str):  # pyright: ignore[reportUnnecessaryIsInstance]  os.environ.get gives None
        raise TypeError(
            f"The key {name!r} must be a string, not {type(key).__name__}. If it comes from the environment, "
            "its variable is not set."
        )
    if not key.strip() or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"The key {name!r} is empty, or has blanks or characters that a header can't hold.")


def check_scopes(scopes: "Collection[str]") -> tuple[str, ...]:
    """Scopes as RFC 6749 has them.

    Raises:
        ValueError: one is not.
        TypeError: one scope without a list.
    """
    if isinstance(scopes, str):
        raise TypeError(f"scopes is a list: [{scopes!r}]")
    for scope in scopes:
        if not _SCOPE.fullmatch(scope):
            raise ValueError(f"{scope!r} can't be a scope. Use letters, digits and signs, without blanks and quotes.")
    return tuple(scopes)


class KeyFile:
    """The file."""

    __slots__ = ("_seen", "keys", "path")

    def __init__(self, path: Path) -> None:
        """Nothing is read before `load`."""
        self.path = path
        self.keys: tuple[StoredKey, ...] = ()
        self._seen: Stamp | None = None
        """Of what was read last."""

    def load(self) -> None:
        """Read the file.

        Raises:
            LocalError: it is not there, is none, or others may write to it.
        """
        raw, stamp = read_file(self.path, "key file", "millstream keys add NAME")
        try:
            self.keys = _decode(raw).keys
        except msgspec.DecodeError as exc:
            raise LocalError(f"{self.path} isn't a key file: {exc}") from exc
        self._seen = stamp

    def changed(self) -> bool:
        """Whether somebody has written the file since it was read. One that is gone has changed."""
        return self._seen is None or self._seen != stamp_of(self.path)

    def add(self, name: str, scopes: tuple[str, ...], now: float, expires: float | None) -> str:
        """Make a key, and give it: it is shown once and kept nowhere.

        Raises:
            ValueError: the name or a scope cannot be, or a key has the name.
            LocalError: the file cannot be used.
        """
        check_name(name)
        check_scopes(scopes)
        key = PREFIX + secrets.token_urlsafe(32)

        def put(keys: tuple[StoredKey, ...]) -> tuple[StoredKey, ...]:
            if any(each.name == name for each in keys):
                raise ValueError(f"There is a key {name!r} already. Rotate or revoke it, or choose another name.")
            return (*keys, StoredKey(name, digest_of(key), now, scopes, expires))

        self._change(put)
        return key

    def revoke(self, name: str) -> None:
        """Take a key away, with those that it was rotated from.

        Raises:
            ValueError: there is none of that name.
            LocalError: the file cannot be used.
        """

        def take(keys: tuple[StoredKey, ...]) -> tuple[StoredKey, ...]:
            left = tuple(each for each in keys if each.name != name)
            if len(left) == len(keys):
                raise ValueError(f"There is no key {name!r}. See: millstream keys list")
            return left

        self._change(take)

    def rotate(self, name: str, now: float, grace: float) -> str:
        """A new key in place of an old one, which still works for so many seconds: the same caller, the same scopes.

        Raises:
            ValueError: there is no key of that name.
            LocalError: the file cannot be used.
        """
        key = PREFIX + secrets.token_urlsafe(32)

        def exchange(keys: tuple[StoredKey, ...]) -> tuple[StoredKey, ...]:
            old = [each for each in keys if each.name == name]
            if not old:
                raise ValueError(f"There is no key {name!r}. See: millstream keys list")
            newest = old[-1]
            until = now + grace if newest.expires is None else min(newest.expires, now + grace)
            kept = [msgspec.structs.replace(newest, expires=until)] if grace > 0 else []
            others = [each for each in keys if each.name != name]
            return (*others, *kept, StoredKey(name, digest_of(key), now, newest.scopes, newest.expires))

        self._change(exchange)
        return key

    def _change(self, change: "Callable[[tuple[StoredKey, ...]], tuple[StoredKey, ...]]") -> None:
        with locked(self.path):
            if self.path.exists():
                self.load()
            keys = change(self.keys)
            body = msgspec.json.format(msgspec.json.encode(_Keys(keys)), indent=2)
            replace_file(self.path, body + b"\n")
            self.keys = keys
