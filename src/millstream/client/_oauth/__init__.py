"""OAuth for clients: tokens and registrations, and their stores, in memory or in a file that only you can read."""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec
from msgspec import Struct

from millstream._confidential import Confidential
from millstream.client._errors import client_logger
from millstream.files import open_lock, write_private

PRIVATE_KEY_JWT = "private_key_jwt"
"""Client authentication method for signatures (`signing`)."""
ES256 = "ES256"
"""Algorithm of DPoP keys (`signing.new_proof_key`)."""

_LOCK_SECONDS = 0.05
"""Seconds between attempts to lock the file."""

_logger = client_logger(__name__)


class Registration(Confidential, Struct, omit_defaults=True):
    """The client's identity at one issuer: ``credentials.registrations["https://login.example.com"].client_id``."""

    client_id: str = ""
    client_secret: str = ""
    token_endpoint_auth_method: str = ""
    private_key: str = ""
    """Private key in PEM that authenticates the client. It's never stored."""
    key_id: str = ""
    scope: str = ""
    """Scopes that the client registered for, or empty if it named none."""


class Tokens(Confidential, Struct, omit_defaults=True):
    """Tokens from one issuer for one server: ``credentials.tokens["https://example.com/mcp"].expires_at``."""

    access_token: str
    issuer: str = ""
    refresh_token: str = ""
    scope: str = ""
    expires_at: float = 0
    """Expiry in Unix time, or 0 if the issuer doesn't specify it."""
    proof_key: str = ""
    """Private key in PEM that the token is bound to (DPoP), or empty for a bearer token."""
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
            credentials: The contents to store, which replace the previous ones.
        """


@runtime_checkable
class LockableTokenStore(TokenStore, Protocol):
    """A token store that several objects or processes can share, so that only one of them renews a token."""

    def lock(self) -> AbstractAsyncContextManager[None]:
        """Return a lock to hold while a token is renewed: load it, request the new one, save it."""
        ...


class MemoryTokenStore:
    """A store in memory. ``OAuth(store=MemoryTokenStore())``"""

    def __init__(self) -> None:
        self._credentials = StoredCredentials()
        self._lock = asyncio.Lock()

    def lock(self) -> AbstractAsyncContextManager[None]:
        """Return the lock of this store."""
        return self._lock

    def load(self) -> StoredCredentials:
        """Return the stored credentials."""
        return self._credentials

    def save(self, credentials: StoredCredentials) -> None:
        """Save tokens and registrations.

        Args:
            credentials: The contents to store, which replace the previous ones.
        """
        self._credentials = credentials


class FileTokenStore:
    """A JSON file with mode 0600, replaced atomically. ``OAuth(store=FileTokenStore(Path("tokens.json")))``

    Args:
        path: Path of the file, by default ``millstream/tokens.json`` in ``$XDG_STATE_HOME``, or in ``~/.local/state``.
    """

    def __init__(self, path: Path | None = None) -> None:
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        self.path: Path = path or state / "millstream" / "tokens.json"
        self._unsaved: StoredCredentials | None = None
        """Content that couldn't be written to the file."""

    @asynccontextmanager
    async def lock(self) -> AsyncGenerator[None]:
        """Lock the file, so that only one process renews a token."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            while (handle := open_lock(self.path, wait=False)) is None:  # noqa: ASYNC110  no event tells of it
                await asyncio.sleep(_LOCK_SECONDS)
        except OSError:  # the new token can't be saved either
            yield
            return
        try:
            yield
        finally:
            os.close(handle)

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
            credentials: The contents to store, which replace the previous ones. If the file can't be written, a warning
                is logged, and this process keeps them.
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
