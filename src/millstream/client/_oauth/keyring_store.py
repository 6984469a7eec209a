"""Tokens in the key ring of the system: macOS Keychain, Windows Credential Locker, Secret Service, KWallet.

`keyring` is optional and known here alone. A text is kept in pieces, because Windows takes no more than 1,280 letters
for one (CRED_MAX_CREDENTIAL_BLOB_SIZE).
"""

import keyring
import msgspec
from keyring.backends.fail import Keyring as NoKeyring
from keyring.errors import KeyringError

from millstream.client._oauth.store import FileStore, Kept

_SERVICE = "millstream"
_PIECE = 1000
_MAX_PIECES = 200


class KeyringStore:
    """The key ring; where it doesn't work, the file."""

    def __init__(self, file: FileStore) -> None:
        """Prepare it.

        Args:
            file: what is used where there's no key ring, and read where the key ring has nothing yet.
        """
        self._file = file

    def load(self) -> Kept:
        """What was saved last."""
        try:
            text = _read()
        except (KeyringError, OSError, RuntimeError):
            return self._file.load()
        if not text:
            return self._file.load()
        try:
            return msgspec.json.decode(text, type=Kept)
        except msgspec.MsgspecError:
            return Kept({}, {})

    def save(self, kept: Kept) -> None:
        """Keep this."""
        try:
            _write(msgspec.json.encode(kept).decode())
        except (KeyringError, OSError, RuntimeError):
            self._file.save(kept)
        else:
            self._file.path.unlink(missing_ok=True)  # one place for secrets is enough


def works() -> bool:
    """Whether the system has a key ring."""
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
        raise OSError("too much for a key ring")
    for number, piece in enumerate(pieces):
        keyring.set_password(_SERVICE, f"tokens {number}", piece)
    number = len(pieces)
    while number < _MAX_PIECES and keyring.get_password(_SERVICE, f"tokens {number}"):
        keyring.delete_password(_SERVICE, f"tokens {number}")
        number += 1
