"""API keys as an auth method: fixed keys, and those of a file that can change while the server runs."""

import logging
import time
from collections.abc import Callable
from hmac import compare_digest
from math import inf

from millstream._protocol.errors import LocalError
from millstream._protocol.principal import Principal
from millstream.auth._key_file import KeyFile, StoredKey, digest_of
from millstream.auth._method import AuthMethod, Identity

logger = logging.getLogger("millstream")

_BELIEVED = 3600.0
"""Seconds for which a verdict about a key is valid; revocations take effect within a second (`refresh`)."""
_TOLD = 10.0
"""Seconds for the revocation to reach every guard with this method."""


class KeyMethod(AuthMethod):
    """The API keys of one server."""

    def __init__(
        self, given: tuple[StoredKey, ...], file: KeyFile | None, *, clock: Callable[[], float] = time.time
    ) -> None:
        """Create the method and read the file.

        Raises:
            LocalError: the file can't be used.
        """
        self._given = given
        self._file = file
        self._clock = clock
        self._epoch = 0
        """Counter of changes to the file or to the set of valid keys."""
        self._names = frozenset[str]()
        """Digests of the keys that were valid at the last check."""
        self._taken: dict[str, float] = {}
        """Names of recently removed or expired keys -> when. The name may have another key."""
        if file is not None:
            file.load()
        self.epoch()

    async def identify(self, credential: str) -> Identity | None:
        """Return the owner of a key. Compares all keys in constant time."""
        digest, now = digest_of(credential), self._clock()
        found: StoredKey | None = None
        for each in self._all():
            if compare_digest(each.hash, digest) and each.valid(now):
                found = each
        if found is None:
            return None
        left = _BELIEVED if found.expires is None else min(_BELIEVED, found.expires - now)
        until = inf if found.expires is None else found.expires
        return Identity(Principal(found.name, client=found.name, scopes=frozenset(found.scopes), until=until), left)

    def _all(self) -> tuple[StoredKey, ...]:
        return self._given if self._file is None else (*self._given, *self._file.keys)

    def holds(self, id: str) -> bool:
        """Return whether this name has a valid key. If one of several was revoked, everything opened under the name
        ends;
        holders of the other keys reconnect.
        """
        return id in self._names and id not in self._taken

    def epoch(self) -> int:
        """Return a number that changes with the file, and when a key expires."""
        file, now = self._file, self._clock()
        self._taken = {name: at for name, at in self._taken.items() if abs(now - at) < _TOLD}
        if file is not None and file.has_changed():
            before = file.keys
            self._epoch += self._read(file)
            self._taken |= {each.name: now for each in before if each not in file.keys}
        names = frozenset(each.name for each in self._all() if each.valid(now))
        if names != self._names:
            self._names = names
            self._epoch += 1
        return self._epoch

    @staticmethod
    def _read(file: KeyFile) -> bool:
        """Read the file again. If it's unreadable, its keys stop working, because they may have been revoked."""
        try:
            file.load()
        except LocalError as exc:
            if not file.keys:
                return False
            logger.error("%s Until then, none of its keys work.", exc)
            file.keys = ()
        return True
