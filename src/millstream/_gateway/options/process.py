"""Options of the processes of a command."""

from msgspec import Struct

from millstream._config import Cap, Seconds, Size, Timeout


class ProcessOptions(Struct, frozen=True, kw_only=True):
    """The part of an upstream's configuration that its processes use. See `UpstreamConfig`."""

    name: str
    """Name for the operator, in logs, metrics, and pages."""
    timeout: Timeout = 60.0
    """Maximum seconds to wait for a response. Progress restarts the clock."""
    max_processes: Size = 64
    """Maximum processes of a command per worker. Beyond that, one that has been idle for `idle_seconds` is stopped, or
    an idle one of a caller with several.
    """
    spare_processes: Cap = 0
    """Number of processes of a command to keep started for the next principals or sessions."""
    idle_seconds: Seconds = 1800.0
    """Seconds after which an idle connection or process is closed, and with it what the process remembers. 0 for never.
    """
    memory_limit: Size | None = None
    """Maximum bytes of memory per process of a command, on Linux only."""
    max_bytes: Size = 16 * 1024 * 1024
    """Maximum size of a message from the upstream, in bytes. While a large one is decoded, other calls wait."""
