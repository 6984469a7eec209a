"""OAuth for clients: tokens and registrations, and their stores, in memory or in a file that only you can read."""

import logging
import os
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

from millstream._protocol.errors import Confidential
from millstream.files import write_private

PRIVATE_KEY_JWT = "private_key_jwt"
"""Client authentication method for signatures (`signing`)."""
ES256 = "ES256"
"""Algorithm of DPoP keys (`signing.ProofKey`)."""

_logger = logging.getLogger(__name__)


class Registration(Confidential, Struct, omit_defaults=True):
    """The client's identity at one issuer: ``credentials.registrations["https://login.example.com"].client_id``."""

    client_id: str = ""
    client_secret: str = ""
    token_endpoint_auth_method: str = ""
    private_key: str = ""
    """Private key in PEM that authenticates the client. It's never stored."""
    key_id: str = ""


class Tokens(Confidential, Struct, omit_defaults=True):
    """Tokens from one issuer for one server: ``credentials.tokens["https://example.com/mcp"].expires_at``."""

    access_token: str
    issuer: str = ""
    refresh_token: str = ""
    scope: str = ""
    expires_at: float = 0
    """Expiry in Unix time; 0 if the issuer doesn't say."""
    proof_key: str = ""
    """Private key in PEM that the token is bound to (DPoP); empty for a bearer token."""
    resource: str = ""
    """Identifier of the server at the issuer (RFC 8707), if it isn't the URL."""


class StoredCredentials(Struct, omit_defaults=True):
    """The contents of a store: ``msgspec.json.encode(credentials)``."""

    registrations: dict[str, Registration] = {}
    """Registrations by issuer."""
    tokens: dict[str, Tokens] = {}
    """Tokens by URL of the server."""


class TokenStore(Protocol):
    """A token store, always loaded and saved as a whole."""

    def load(self) -> StoredCredentials:
        """Return the stored credentials."""
        ...

    def save(self, credentials: StoredCredentials) -> None:
        """Save tokens and registrations.

        Args:
            credentials: Everything to store, in place of what was stored before.
        """


class MemoryTokenStore:
    """A store in memory. ``OAuth(store=MemoryTokenStore())``"""

    def __init__(self) -> None:
        self._credentials = StoredCredentials()

    def load(self) -> StoredCredentials:
        """Return the stored credentials."""
        return self._credentials

    def save(self, credentials: StoredCredentials) -> None:
        """Save tokens and registrations.

        Args:
            credentials: Everything to store, in place of what was stored before.
        """
        self._credentials = credentials


class FileTokenStore:
    """A JSON file with mode 0600, replaced atomically. ``OAuth(store=FileTokenStore(Path("tokens.json")))``

    Args:
        path: Path of the file; by default ``millstream/tokens.json`` in ``$XDG_STATE_HOME``, or in ``~/.local/state``.
    """

    def __init__(self, path: Path | None = None) -> None:
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        self.path: Path = path or state / "millstream" / "tokens.json"
        self._unsaved: StoredCredentials | None = None
        """Content that couldn't be written to the file."""

    def load(self) -> StoredCredentials:
        """Return the stored credentials, or empty ones if the file can't be read."""
        if self._unsaved is not None:
            return self._unsaved
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=StoredCredentials)
        except (OSError, ValueError, RecursionError):
            return StoredCredentials()

    def save(self, credentials: StoredCredentials) -> None:
        """Save tokens and registrations.

        Args:
            credentials: Everything to store, in place of what was stored before. If the file can't be written, a
                warning is logged, and this process keeps them.
        """
        try:
            write_private(self.path, msgspec.json.encode(credentials))
        except OSError as exc:
            _logger.warning(
                "The tokens can't be stored in %s (%s). They are lost when this program ends.",
                self.path,
                exc.strerror,
            )
            self._unsaved = credentials
        else:
            self._unsaved = None
