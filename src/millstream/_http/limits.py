"""Limits of connections and requests."""

from msgspec import Struct, convert

from millstream._config import Settings


class HttpLimits(Struct, frozen=True):
    """Counts, sizes in bytes, and times in seconds, each from the setting of the same name."""

    max_body: int
    max_unfinished: int
    max_unsent: int
    header_timeout: float
    body_timeout: float
    write_timeout: float
    keep_alive: float
    max_header_count: int
    max_header_bytes: int
    max_url: int
    max_connections: int
    max_connections_per_address: int
    stream_buffer: int

    @classmethod
    def of(cls, settings: Settings) -> "HttpLimits":
        """Return the limits for these settings."""
        return convert(settings, cls, from_attributes=True)
