"""API keys as an auth method: fixed keys, and keys from a file that can change while the server runs."""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from hmac import compare_digest
from math import inf
from pathlib import Path

from millstream._override import override
from millstream._protocol.errors import LocalError
from millstream._protocol.principal import Principal
from millstream.auth._key_file import KeyFile, StoredKey, check_key, check_scopes, digest_of
from millstream.auth._method import AuthMethod, Identity

logger = logging.getLogger("millstream")

_VERDICT_SECONDS = 3600.0
"""Seconds that a verdict on a key is cached. Revocations take effect within a second (`AuthGuard.refresh`)."""
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
    stored = tuple(StoredKey(name, digest_of(key), now, check_scopes(scopes)) for name, key, scopes in given)
    return KeyMethod(stored, KeyFile(Path(file)) if file else None)


class KeyMethod(AuthMethod):
    """The API keys of one server."""

    def __init__(
        self, given: tuple[StoredKey, ...], file: KeyFile | None, *, clock: Callable[[], float] = time.time
    ) -> None:
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
        if file is not None:
            file.load()
        self.epoch()

    @override
    async def identify(self, credential: str) -> Identity | None:
        """Return the owner of a key. Compares it with all keys in constant time."""
        digest, now = digest_of(credential), self._clock()
        found: StoredKey | None = None
        for each in self._all():
            if compare_digest(each.hash, digest) and each.valid(now):
                found = each
        if found is None:
            return None
        left = _VERDICT_SECONDS if found.expires is None else min(_VERDICT_SECONDS, found.expires - now)
        until = inf if found.expires is None else found.expires
        return Identity(
            Principal(found.name, client=found.name, scopes=frozenset(found.scopes), expires_at=until), left
        )

    def _all(self) -> tuple[StoredKey, ...]:
        return self._fixed_keys if self._file is None else (*self._fixed_keys, *self._file.keys)

    @override
    def holds(self, id: str) -> bool:
        """Return whether this name has a valid key. After one of its keys is revoked, return False for a moment, which
        closes all streams of the name; clients with its other keys reconnect.
        """
        return id in self._names and id not in self._revoked_at

    @override
    def count(self) -> int:
        """Return the number of names with a valid key."""
        return len(self._names)

    @override
    def epoch(self) -> int:
        """Return a number that changes when the file changes or a key expires."""
        file, now = self._file, self._clock()
        self._revoked_at = {name: at for name, at in self._revoked_at.items() if abs(now - at) < _REVOCATION_SECONDS}
        if file is not None and file.has_changed():
            before = file.keys
            self._epoch += self._read(file)
            self._revoked_at |= {each.name: now for each in before if each not in file.keys}
        names = frozenset(each.name for each in self._all() if each.valid(now))
        if names != self._names:
            self._names = names
            self._epoch += 1
        return self._epoch

    @staticmethod
    def _read(file: KeyFile) -> bool:
        """Reload the file, and return whether its keys changed. An unreadable file has no valid keys."""
        try:
            file.load()
        except LocalError as exc:
            if not file.keys:
                return False
            logger.error("%s Its keys don't work until this is fixed.", exc)
            file.keys = ()
        return True
