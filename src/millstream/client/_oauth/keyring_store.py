"""A token store in the system's key ring: macOS Keychain, Windows Credential Locker, Secret Service, KWallet.

`keyring` is optional, and used only here. The text is split, because Windows limits entries to 1,280 characters
(CRED_MAX_CREDENTIAL_BLOB_SIZE).
"""

from contextlib import AbstractAsyncContextManager

import keyring
import msgspec
from keyring.backends.fail import Keyring as NoKeyring
from keyring.errors import KeyringError

from millstream.client._oauth import FileTokenStore, StoredCredentials

_SERVICE = "millstream"
_PIECE = 1000
_MAX_PIECES = 200


class KeyringTokenStore(msgspec.Struct):
    """A token store in the key ring that falls back to a file."""

    _file: FileTokenStore
    """Used if there's no key ring and read if the key ring is empty."""

    def lock(self) -> AbstractAsyncContextManager[None]:
        """Return the lock of the file, which also guards the key ring."""
        return self._file.lock()

    def load(self) -> StoredCredentials:
        """Return the stored credentials."""
        try:
            text = _read()
        except (KeyringError, OSError, RuntimeError):
            text = ""
        if not text:
            return self._file.load()
        try:
            return msgspec.json.decode(text, type=StoredCredentials)
        except msgspec.MsgspecError:
            return StoredCredentials()

    def save(self, credentials: StoredCredentials) -> None:
        """Save tokens and registrations."""
        try:
            _write(msgspec.json.encode(credentials).decode())
        except (KeyringError, OSError, RuntimeError):
            self._file.save(credentials)
        else:
            self._file.path.unlink(missing_ok=True)  # don't leave a second copy of the secrets


def works() -> bool:
    """Return whether the system has a working key ring."""
    try:
        return not isinstance(keyring.get_keyring(), NoKeyring)
    except (KeyringError, OSError, RuntimeError):
        return False


def _read() -> str:
    pieces: list[str] = []
    while len(pieces) < _MAX_PIECES and (piece := keyring.get_password(_SERVICE, f"tokens {len(pieces)}")):
        pieces.append(piece)
    return "".join(pieces)


def _write(text: str) -> None:
    pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
    if len(pieces) > _MAX_PIECES:
        raise OSError("too large for a key ring")
    for number, piece in enumerate(pieces):
        keyring.set_password(_SERVICE, f"tokens {number}", piece)
    number = len(pieces)
    while number < _MAX_PIECES and keyring.get_password(_SERVICE, f"tokens {number}"):
        keyring.delete_password(_SERVICE, f"tokens {number}")
        number += 1
