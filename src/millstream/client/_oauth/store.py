"""Where tokens and registrations are kept: in memory, or in a file that only you can read."""

import logging
import os
import tempfile
from pathlib import Path
from typing import Final, Protocol

import msgspec
from msgspec import Struct

SIGNED: Final = "private_key_jwt"
"""The method of a client that shows who it is by signatures (`signing`)."""
ES256: Final = "ES256"
"""The algorithm of keys that tokens are bound to (`signing.ProofKey`)."""

_logger = logging.getLogger(__name__)


class Registration(Struct, omit_defaults=True):
    """Who we are at one issuer."""

    client_id: str = ""
    client_secret: str = ""
    token_endpoint_auth_method: str = ""
    private_key: str = ""
    """By which we show who we are, as PEM. It's part of the configuration, and never kept."""
    key_id: str = ""


class Tokens(Struct, omit_defaults=True):
    """What one issuer gave us for one server."""

    access_token: str
    issuer: str = ""
    refresh_token: str = ""
    scope: str = ""
    expires_at: float = 0
    """Unix time; 0 where the issuer doesn't say."""
    proof_key: str = ""
    """The private key that the token is bound to (DPoP), as PEM; empty for a token that anybody could use."""
    resource: str = ""
    """The name under which the issuer knows the server (RFC 8707); empty where it's the URL."""


class Kept(Struct, omit_defaults=True):
    """Everything that is kept. ``msgspec.json.encode(kept)``"""

    registrations: dict[str, Registration] = {}
    """By issuer."""
    tokens: dict[str, Tokens] = {}
    """By the URL of the server."""


class Store(Protocol):
    """Reads and writes it whole."""

    def load(self) -> Kept:
        """What was saved last."""
        ...

    def save(self, kept: Kept) -> None:
        """Keep this."""


class MemoryStore:
    """For as long as the program runs. ``OAuth(store=MemoryStore())``"""

    def __init__(self) -> None:
        self._kept = Kept({}, {})

    def load(self) -> Kept:
        """What was saved last."""
        return self._kept

    def save(self, kept: Kept) -> None:
        """Keep this."""
        self._kept = kept


class FileStore:
    """A JSON file with mode 0600, replaced as a whole. ``OAuth(store=FileStore(Path("tokens.json")))``"""

    def __init__(self, path: Path | None = None) -> None:
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        self.path: Path = path or state / "millstream" / "tokens.json"
        self._unsaved: Kept | None = None
        """What the file couldn't take."""

    def load(self) -> Kept:
        """What was saved last; a file that can't be read counts as none."""
        if self._unsaved is not None:
            return self._unsaved
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=Kept)
        except (OSError, ValueError, RecursionError):
            return Kept({}, {})

    def save(self, kept: Kept) -> None:
        """Keep this."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, draft = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)  # 0600
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(msgspec.json.encode(kept))
                Path(draft).replace(self.path)
            except BaseException:
                Path(draft).unlink(missing_ok=True)
                raise
        except OSError as exc:
            _logger.warning(
                "The tokens can't be kept in %s (%s), so they end with this program.", self.path, exc.strerror
            )
            self._unsaved = kept
        else:
            self._unsaved = None
