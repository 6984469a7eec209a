"""What you can say to a client beyond its target and its handlers. The defaults suit a person's own machine."""

import ssl
from collections.abc import Callable, Mapping

from msgspec import Struct

from millstream._protocol.suggesting import Suggesting
from millstream.client._endpoint import Auth


class Options(Struct, frozen=True, kw_only=True, metaclass=Suggesting):
    """Limits, names and details of connections. ``Client(url, options=Options(connect_timeout=3))``"""

    name: str = "millstream"
    """How the client introduces itself."""
    version: str = ""
    """Its version; empty means Millstream's own."""
    connect_timeout: float = 10.0
    """Seconds until a connection must stand, or a process must run."""
    probe_timeout: float = 10.0
    """Seconds that a server has for `server/discover`, before the client tries the older handshake as well."""
    longest: float = 3600.0
    """Seconds after which a call ends, however much progress it reports."""
    max_bytes: int = 64 * 1024 * 1024
    """The most that one message of the server may take, or all pages of a list together."""
    max_waiting: int = 10_000
    """Messages that may wait for your handlers; a server that sends more is cut off."""
    max_connections: int = 100
    """HTTP connections open at once; further calls wait for a free one."""
    max_rounds: int = 32
    """How often a server may ask before it answers one call."""
    max_pages: int = 1000
    """Pages of one list."""
    log_level: str = ""
    """The least severe log messages to ask for; empty leaves it to the server."""
    cache: bool = True
    """Keep lists and resources for as long as the server says they're fresh."""
    env: Mapping[str, str] = {}
    """Variables for a server that the client starts, beside the few that every program needs."""
    cwd: str | None = None
    """Where a server that the client starts runs."""
    stderr: Callable[[str], object] | bool | None = None
    """What becomes of the standard error of a server that the client starts: ``True`` prints it to ours, ``False``
    drops it, a function gets each line. ``None`` prints it at a terminal and in tests of pytest."""
    tls: ssl.SSLContext | None = None
    """Certificates to trust or to show; without it, those of the system."""
    declare: Mapping[str, object] = {}
    """Capabilities to declare beside those that follow from the handlers."""
    auth: Auth | None = None
    """Where credentials come from, if they change; fixed ones are headers."""
