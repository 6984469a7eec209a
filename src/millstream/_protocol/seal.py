"""Sealed text: AES-256-GCM tokens that only the holder of a key can create, read, or change.

Session ids and the state of multi-round requests are sealed. A token is unpadded base64url of key number (4 bytes),
nonce (12), ciphertext, and tag (16). The nonce is an argument: this module generates no random bytes. Only the
canonical base64 text opens, so each token has one spelling. NIST SP 800-38D allows 2**32 random nonces per key.
"""

from binascii import a2b_base64, b2a_base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

from millstream._protocol.errors import LocalError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAX_TOKEN = 1024 * 1024
"""Maximum number of characters. A longer text isn't decoded."""
NONCE_BYTES = 12

_NUMBER_BYTES = 4
_KEY_BYTES = 32
_HEAD_BYTES = _NUMBER_BYTES + NONCE_BYTES
_TAG_BYTES = 16
_LABEL = b"millstream seal v1"
"""Context of the key derivation and version of the format. Another label gives other keys and key numbers."""

_TO_URL = bytes.maketrans(b"+/", b"-_")
# The standard alphabet's "+", "/", and "=" become "!", which the strict decoder refuses.
_FROM_URL = bytes.maketrans(b"-_+/=", b"+/!!!")
# RFC 4648 §3.5: unused bits of the last character must be zero. Indexed by length modulo 4; 1 isn't a valid length.
_LAST = (
    frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"),
    frozenset[str](),
    frozenset("AQgw"),
    frozenset("AEIMQUYcgkosw048"),
)
_PADDING = (b"", b"", b"==", b"=")


class KeyRing:
    """Sealing keys, derived from secrets. The first seals, and all of them open.

    A token identifies its key by a number derived from the secret, so secrets can be added, removed, and reordered.

    Raises:
        ValueError: There are no secrets.
    """

    def __init__(self, secrets: Sequence[bytes]) -> None:
        if not secrets:
            raise ValueError("A key ring needs at least one secret.")
        self._secrets = tuple(secrets)
        self._ciphers: dict[bytes, AESGCM] = {}
        self._first = b""
        self._invalid_tag: type[Exception] = ValueError

    def seal(self, kind: bytes, plain: bytes, nonce: bytes, bound: bytes = b"") -> str:
        """Encrypt `plain` for `open` with the same `kind` and `bound`.

        Args:
            kind: The purpose of the token. A token of one kind doesn't open as another.
            plain: The content.
            nonce: 12 bytes that were never used with this ring.
            bound: Data that the token is bound to, such as an owner or a name. It isn't part of the token.

        Raises:
            LocalError: The token would be too long to open again.
            ValueError: The nonce doesn't have 12 bytes.
        """
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"The nonce must have {NONCE_BYTES} bytes.")
        if (_HEAD_BYTES + len(plain) + _TAG_BYTES) * 4 > MAX_TOKEN * 3:
            raise LocalError(f"The content of {len(plain)} bytes is too long to seal.")
        ciphers = self._ciphers or self._load()
        number = self._first
        sealed = number + nonce + ciphers[number].encrypt(nonce, plain, _associated_data(kind, bound))
        return b2a_base64(sealed, newline=False).translate(_TO_URL).rstrip(b"=").decode("ascii")

    def open(self, kind: bytes, token: str, bound: bytes = b"") -> bytes | None:
        """Return the content that this ring sealed for `kind` and `bound`, or None for any other text."""
        length = len(token)
        if not 0 < length <= MAX_TOKEN or token[-1] not in _LAST[length & 3]:
            return None
        try:
            data = a2b_base64(token.encode("ascii").translate(_FROM_URL) + _PADDING[length & 3], strict_mode=True)
        except ValueError:
            return None
        cipher = (self._ciphers or self._load()).get(data[:_NUMBER_BYTES])
        # The cipher raises different errors for a short nonce, a missing tag, and a wrong tag.
        if cipher is None or len(data) < _HEAD_BYTES + _TAG_BYTES:
            return None
        try:
            return cipher.decrypt(data[_NUMBER_BYTES:_HEAD_BYTES], data[_HEAD_BYTES:], _associated_data(kind, bound))
        except self._invalid_tag:
            return None

    def _load(self) -> "dict[bytes, AESGCM]":
        # Imported here because cryptography takes 30 ms and 9 MiB, and most stdio servers never seal anything.
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415
        from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415

        ciphers: dict[bytes, AESGCM] = {}
        for secret in self._secrets:
            derived = HKDF(SHA256(), _NUMBER_BYTES + _KEY_BYTES, salt=None, info=_LABEL).derive(secret)
            ciphers.setdefault(derived[:_NUMBER_BYTES], AESGCM(derived[_NUMBER_BYTES:]))
        self._invalid_tag = InvalidTag
        self._first = next(iter(ciphers))
        self._ciphers = ciphers
        return ciphers


def _associated_data(kind: bytes, bound: bytes) -> bytes:
    # The length prefix separates kind from bound.
    return b"%d:%b%b" % (len(kind), kind, bound)
