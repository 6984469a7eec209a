"""Less common settings of a client. The defaults suit a person's own machine."""

import ssl
from collections.abc import Callable, Mapping

from msgspec import Struct

from millstream._protocol.errors import SuggestionMeta
from millstream.client._endpoint import Auth


class Options(Struct, frozen=True, kw_only=True, metaclass=SuggestionMeta):
    """Limits, names, and connection details. ``Client(url, options=Options(connect_timeout=3))``"""

    name: str = "millstream"
    """Name that the client sends to servers."""
    version: str = ""
    """Version of the client; empty means Millstream's version."""
    connect_timeout: float = 10.0
    """Seconds to wait for a connection, or for a process to start."""
    probe_timeout: float = 10.0
    """Seconds to wait for `server/discover` before also trying the handshake."""
    longest: float = 3600.0
    """Maximum seconds for a call, even with progress."""
    max_bytes: int = 64 * 1024 * 1024
    """Maximum bytes of one message from the server, or of all pages of a list together."""
    max_waiting: int = 10_000
    """Maximum messages waiting for your handlers. A server that sends more is disconnected."""
    max_connections: int = 100
    """Maximum open HTTP connections; further calls wait for a free one."""
    max_rounds: int = 32
    """Maximum rounds of questions before the result of one call."""
    max_pages: int = 1000
    """Maximum pages of one list."""
    log_level: str = ""
    """Minimum severity of log messages to request; empty leaves it to the server."""
    cache: bool = True
    """Whether to cache lists and resources for the time that the server allows."""
    env: Mapping[str, str] = {}
    """Environment variables for a server that the client starts, in addition to `HOME`, `PATH`, and the like."""
    cwd: str | None = None
    """Working directory of a server that the client starts."""
    stderr: Callable[[str], object] | bool | None = None
    """Where the standard error of a server process goes: ``True`` prints it to ours, ``False`` drops it, and a function
    receives each line. ``None`` prints it on a terminal and in pytest.
    """
    tls: ssl.SSLContext | None = None
    """Certificates to trust or present; by default, those of the system."""
    declare: Mapping[str, object] = {}
    """Capabilities to declare in addition to those of the handlers."""
    auth: Auth | None = None
    """Source of credentials that change; use headers for fixed ones."""
