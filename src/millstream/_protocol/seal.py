"""Sealed text: AES-256-GCM tokens that only the holder of a key can make, read or change.

Session ids and the state of multi-round requests are such tokens. A token is base64url without padding of key number
(4 bytes), nonce (12), ciphertext and tag (16). The nonce is an argument: this module makes no random bytes. Only the
canonical base64 text opens, so one token has one spelling. NIST SP 800-38D allows 2**32 random nonces for one key.
"""

from binascii import a2b_base64, b2a_base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from millstream._protocol.errors import LocalError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAX_TOKEN: Final = 1024 * 1024
"""Characters; a longer text is not even decoded."""
NONCE_BYTES: Final = 12

_NUMBER_BYTES: Final = 4
_KEY_BYTES: Final = 32
_HEAD_BYTES: Final = _NUMBER_BYTES + NONCE_BYTES
_TAG_BYTES: Final = 16
_LABEL: Final = b"millstream seal v1"
"""Context of the key derivation. Another label means other keys and numbers: this is the version of the format."""

_TO_URL: Final = bytes.maketrans(b"+/", b"-_")
# "+", "/" and "=" of the other alphabet become "!", which the strict decoder refuses.
_FROM_URL: Final = bytes.maketrans(b"-_+/=", b"+/!!!")
# RFC 4648 §3.5: the unused bits of the last character must be zero. By length modulo 4; 1 isn't a length of base64.
_LAST: Final = (
    frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"),
    frozenset[str](),
    frozenset("AQgw"),
    frozenset("AEIMQUYcgkosw048"),
)
_PADDING: Final = (b"", b"", b"==", b"=")


class KeyRing:
    """Keys for sealing, made from secrets: the first seals, all of them open.

    A token names its key by a number that is derived from the secret, so secrets may be added, removed and put in
    another order. Raises ValueError when there is no secret.
    """

    __slots__ = ("_ciphers", "_first", "_invalid_tag", "_secrets")

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
            kind: what the token is for; a token of one kind does not open as another.
            plain: the content.
            nonce: 12 bytes that were never used with this ring before.
            bound: what the token is tied to (an owner, a name); not part of the token.

        Raises:
            LocalError: the token would be too long to be opened again.
            ValueError: the nonce does not have 12 bytes.
        """
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"A nonce has {NONCE_BYTES} bytes.")
        if (_HEAD_BYTES + len(plain) + _TAG_BYTES) * 4 > MAX_TOKEN * 3:
            raise LocalError(f"{len(plain)} bytes are too many to be sealed.")
        ciphers = self._ciphers or self._load()
        number = self._first
        sealed = number + nonce + ciphers[number].encrypt(nonce, plain, _associated(kind, bound))
        return b2a_base64(sealed, newline=False).translate(_TO_URL).rstrip(b"=").decode("ascii")

    def open(self, kind: bytes, token: str, bound: bytes = b"") -> bytes | None:
        """The content of a token that this ring sealed for `kind` and `bound`; None for any other text."""
        length = len(token)
        if not 0 < length <= MAX_TOKEN or token[-1] not in _LAST[length & 3]:
            return None
        try:
            data = a2b_base64(token.encode("ascii").translate(_FROM_URL) + _PADDING[length & 3], strict_mode=True)
        except ValueError:
            return None
        cipher = (self._ciphers or self._load()).get(data[:_NUMBER_BYTES])
        # The cipher raises other errors for a short nonce and for a missing tag than for a wrong one.
        if cipher is None or len(data) < _HEAD_BYTES + _TAG_BYTES:
            return None
        try:
            return cipher.decrypt(data[_NUMBER_BYTES:_HEAD_BYTES], data[_HEAD_BYTES:], _associated(kind, bound))
        except self._invalid_tag:
            return None

    def _load(self) -> "dict[bytes, AESGCM]":
        # The one import inside a function: cryptography costs 30 ms and 9 MiB, and most servers on stdio never seal.
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


def _associated(kind: bytes, bound: bytes) -> bytes:
    # The length in front keeps apart what kind and bound would spell alike.
    return b"%d:%b%b" % (len(kind), kind, bound)
