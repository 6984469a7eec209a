"""Everything operational, in one frozen value; each field is also an environment variable.

``Settings.load()`` reads ``MILLSTREAM_<FIELD>`` (upper case). Values given in code win over the environment.
"""

import os
from collections.abc import Mapping

import msgspec
from msgspec import Struct


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Operational settings. Times are seconds, sizes are bytes."""

    sessions: bool = True
    """Handshake clients get a session id; False serves every request by itself."""
    json_only: bool = False
    """Never answer a call with an event stream (subscriptions/listen excepted)."""
    path: str = "/mcp"
    allowed_hosts: tuple[str, ...] = ()
    """Host names besides loopback names and IP literals; ``*`` allows any."""
    allowed_origins: tuple[str, ...] = ()
    """Origins besides loopback ones on a loopback bind; ``*`` allows any."""
    key: str = ""
    """Secret for session ids and sealed state; several, separated by commas: the first seals, all open."""
    page_size: int = 1000
    max_body: int = 4 * 1024 * 1024
    max_message: int = 1024 * 1024
    """The largest WebSocket message."""
    max_depth: int = 64
    max_batch: int = 50
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    write_timeout: float = 30.0
    keep_alive: float = 75.0
    max_header_count: int = 100
    max_header_bytes: int = 64 * 1024
    max_url: int = 8 * 1024
    max_connections: int = 20_000
    max_connections_per_address: int = 0
    """0 means no cap besides `max_connections`: behind a proxy all clients share one address."""
    tool_timeout: float = 0.0
    """0 means no timeout unless the tool has its own."""
    call_cap: float = 3600.0
    """A call that heartbeats keep alive still ends here."""
    silence: float = 5.0
    """A call that is silent for so long is answered as an event stream, if the caller accepts one."""
    heartbeat: float = 15.0
    ask_timeout: float = 600.0
    """How long a question waits for the person's answer."""
    max_calls: int = 10_000
    max_threads: int = 40
    max_streams: int = 20_000
    max_streams_per_principal: int = 20_000
    max_subscriptions: int = 1_000
    """Resource URIs one session or one listen stream may watch."""
    max_questions: int = 1_000
    """Questions to clients that may wait for an answer at a time."""
    max_questions_per_principal: int = 1_000
    max_deletes: int = 10_000
    """Session tombstones one principal may hold at a time."""
    stream_age: float = 24 * 3600.0
    """An open stream ends after so long, however lively; the client opens another."""
    stream_buffer: int = 1024 * 1024
    """Bytes a slow reader may fall behind before its stream is cut."""
    session_ttl: float = 24 * 3600.0
    record_ttl: float = 24 * 3600.0
    log_ttl: float = 300.0
    """How long messages of a broken call stream can be resumed."""
    log_messages: int = 1_000
    state_ttl: float = 600.0
    """How long a multi-round request may be continued."""
    list_ttl_ms: int = 60_000
    discover_ttl_ms: int = 3_600_000
    gzip_streams: bool = False
    """Event streams of the hub as gzip, one member an event, where the client takes it; proxies may hold them back."""
    hub_journal: int = 10_000
    """Events of all channels together that a returning subscriber can be given again."""
    hub_subscribers_per_channel: int = 0
    """0 means no cap besides `max_connections`."""
    hub_history: int = 1_000
    """Events of each channel that a new or returning subscriber can be given."""
    hub_history_age: float = 3600.0
    hub_mailbox: int = 1_000
    """Messages kept for a client that is away."""
    hub_mailbox_age: float = 24 * 3600.0
    drain_timeout: float = 30.0
    lane: bool = True
    """`millstream run` serves by its own HTTP protocol class; False leaves plain ASGI, without the guard."""
    log_level: str = "info"
    access_log: bool = False
    """One line on standard error for each message."""

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **given: object) -> "Settings":
        """Settings from ``MILLSTREAM_…`` variables, then from keywords.

        Raises:
            ValueError: a variable or keyword has an unknown name or a value of the wrong type.
        """
        values: dict[str, object] = {}
        source = os.environ if environ is None else environ
        for name in cls.__struct_fields__:
            text = source.get(f"MILLSTREAM_{name.upper()}")
            if text is not None:
                values[name] = tuple(part.strip() for part in text.split(",")) if name.startswith("allowed_") else text
        values.update(given)
        try:
            return msgspec.convert(values, cls, strict=False)
        except msgspec.ValidationError as exc:
            raise ValueError(
                f"Invalid setting: {exc}. See `millstream run --help` and docs/reference/settings.md."
            ) from exc
