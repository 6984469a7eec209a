"""Limits of connections and requests."""

from typing import TYPE_CHECKING

from msgspec import Struct, convert

if TYPE_CHECKING:
    from millstream._config import Settings

PIECE = 8192
"""Maximum bytes to parse before the event loop gets its turn, where a few bytes can mean much work."""
MAX_FRAMING = 64 * 1024
"""Maximum bytes of a body's chunk framing, plus an eighth of the body. Tiny chunks cost as much as large ones."""
MAX_FRAGMENTS = 256
"""Maximum number of fragments of a WebSocket message, unless it's large."""
USUAL_FRAGMENT = 4096
"""Typical size of fragments. The largest message can come in fragments of this size."""
MAX_UNREAD = 1024 * 1024
"""Maximum bytes of pongs that a peer of a WebSocket doesn't read."""


class HttpLimits(Struct, frozen=True):
    """Counts, sizes in bytes, and times in seconds, most from the setting of the same name."""

    max_body: int
    max_unfinished: int
    max_unsent: int
    header_timeout: float
    body_timeout: float
    write_timeout: float
    keep_alive: float
    max_connections: int
    max_connections_per_address: int
    stream_buffer: int
    max_header_count: int = 100
    max_header_bytes: int = 64 * 1024
    max_url: int = 8 * 1024

    @classmethod
    def of(cls, settings: "Settings") -> "HttpLimits":
        """Return the limits for these settings."""
        return convert(settings, cls, from_attributes=True)
