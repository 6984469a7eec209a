"""Operational settings in one frozen value. Each field is also an environment variable."""

import os
import re
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, cast

import msgspec
from msgspec import Meta, Struct

from millstream._confidential import Confidential
from millstream._suggestions import SuggestionMeta, closest_names, unknown_name_message

PREFIX = "MILLSTREAM_"
_OTHER_NAMES = {"MAX_CONNECTIONS": "hub_connections", "MCP_SERVER_AUTH_KEY": "auth_key"}
"""Accepted variables without the prefix. The prefixed variable takes precedence."""
_NEVER_EMPTY = {"auth_key", "auth_keys"}
"""Protective settings. An empty variable for one of these is treated as a mistake."""
_ADDRESS = (PREFIX + "HOST", PREFIX + "PORT")
"""The listen address, which belongs to the start command and isn't a server setting. See `address`."""
_OF_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?$")
"""Variables that Kubernetes sets for a service named like our prefix. It also sets ``…_PORT`` to an address."""

# The descriptions complete the sentence "must be …" in error messages.
Switch = Annotated[bool, Meta(description="true or false")]
Size = Annotated[int, Meta(ge=1, description="a whole number, 1 or more")]
Cap = Annotated[int, Meta(ge=0, description="a whole number, 0 or more")]
"""A size, where 0 means no limit or nothing to keep."""
Seconds = Annotated[float, Meta(ge=0, le=1e9, description="a number of seconds, 0 or more")]
"""A duration in seconds, 0 or more."""
Timeout = Annotated[float, Meta(gt=0, le=1e9, description="a number of seconds above 0")]
"""A time limit that must leave some time: with 0, it would immediately end requests, sessions, or questions."""
UrlPath = Annotated[str, Meta(pattern=r"^/[^\s?#]*$", description="a path that starts with /, without spaces, ?, or #")]
RootPath = Annotated[
    str,
    Meta(
        pattern=r"^(/[^\s?#]*[^\s?#/])?$",
        description="a path that starts with / and doesn't end with one, without spaces, ?, or #",
    ),
]
RateText = Annotated[
    str,
    Meta(
        pattern=r"^([1-9][0-9]{0,8} ?/ ?(second|minute|hour|day))?$",
        description="a number and a unit: 600/minute, 5/second",
    ),
]
RequiredRateText = Annotated[
    str,
    Meta(
        pattern=r"^[1-9][0-9]{0,8} ?/ ?(second|minute|hour|day)$",
        description="a number and a unit: 30/minute, 100/hour",
    ),
]
"""A rate that can't be turned off."""
DURATION = "([1-9][0-9]{0,2})([smhd])"
DurationText = Annotated[str, Meta(pattern=f"^{DURATION}$", description="a number and a unit: 30s, 10m, 2h, 1d")]
QuotaText = Annotated[
    str,
    Meta(pattern=r"^([1-9][0-9]{0,8} ?/ ?(day|month))?$", description="a number and day or month: 10000/day"),
]
PeerText = Annotated[
    str,
    Meta(
        pattern=r"^(?!0\.0\.0\.0|\[?::\]?(:|$))([0-9.]+(:[0-9]{1,5})?|[0-9a-fA-F:]+|\[[0-9a-fA-F:]+\]:[0-9]{1,5})?$",
        description="one IP address, with or without a port: 10.0.0.5, 10.0.0.5:7000, [fd00::5]:7000",
    ),
]
Automatic = Annotated[Literal["auto", "on", "off"], Meta(description="auto, on, or off")]
LogFormat = Annotated[Literal["auto", "text", "json"], Meta(description="auto, text, or json")]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error", "critical"],
    Meta(description="debug, info, warning, error, or critical"),
]


def read_duration(text: str) -> float:
    """Return the seconds of a `DurationText`."""
    text = text.rstrip()  # `$` also matches before a line break at the end
    return int(text[:-1]) * {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}[text[-1]]


class VariableError(ValueError):
    """An environment variable is invalid. The operator has to fix it, not the program."""


class Settings(Confidential, Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, metaclass=SuggestionMeta):
    """Operational settings: ``Server("shop", settings=Settings(tool_timeout=10))``.

    Times are seconds, sizes are bytes.
    """

    _ELSEWHERE: ClassVar[Mapping[str, str]] = {
        name: f"The listen address isn't a setting: use --{name}, MILLSTREAM_{name.upper()} or mcp.run({name}=…)."
        for name in ("host", "port")
    } | {
        "auth": "Set auth_key, or write Server(auth=…).",
        "rate_limit": "Set limit_calls or limit_requests.",
        "serve": "The parts to serve aren't a setting: use --serve or Server(serve=…).",
        "token": "Set auth_key, or write Server(auth=…).",
        "workers": "The number of worker processes isn't a setting: use --workers or mcp.run(workers=…).",
    }
    store: str = ""
    """The store for streams and records, unless the program sets one. Empty means memory://."""
    sessions: Switch = True
    """Whether handshake clients over Streamable HTTP get a session id. If False, requests are independent."""
    json_only: Switch = False
    """Over Streamable HTTP, don't answer calls with an event stream, except subscriptions/listen and streams of
    extensions.
    """
    path: UrlPath = "/mcp"
    sse_path: UrlPath = "/sse"
    """The path where HTTP+SSE clients open their stream."""
    messages_path: UrlPath = "/messages/"
    """The path that HTTP+SSE clients post messages to."""
    root_path: RootPath = ""
    """The path prefix that a reverse proxy adds and removes: ``/ai``."""
    allowed_hosts: tuple[str, ...] = ()
    """Allowed host names, in addition to loopback names and IP literals. ``*`` allows any."""
    allowed_origins: tuple[str, ...] = ()
    """Allowed origins, in addition to loopback origins on a loopback bind. ``*`` allows any."""
    cors: Switch = True
    """Add CORS headers, so that pages of allowed origins can read replies. Turn it off if other middleware adds
    them.
    """
    secret_key: str = ""
    """Secrets for session ids and sealed state, separated by commas. The first one encrypts. Any of them decrypts."""
    auth_key: str = ""
    """A key that callers must send as ``Authorization: Bearer KEY``. ``MCP_SERVER_AUTH_KEY`` also sets it."""
    auth_keys: str = ""
    """The key file managed by ``millstream keys``."""
    auth_key_header: str = ""
    """A header in which callers may send their key or token as well, such as ``X-API-Key``."""
    display_name_claims: tuple[str, ...] = ("name", "preferred_username")
    """Claims that can contain a caller's display name, in order of preference. If there's none, the API key's name is
    used. If it's empty, the hub doesn't show publishers' names.
    """
    limit_requests: RateText = ""
    """Rate limit of requests per caller: ``600/minute``. A caller is a principal, or an address without one."""
    limit_calls: RateText = ""
    """Rate limit of tool calls per caller."""
    limit_address: RateText = ""
    """Rate limit of requests per address, for all principals together."""
    limit_quota: QuotaText = ""
    """Quota of tool calls per caller and calendar day or month (UTC): ``10000/day``."""
    limit_concurrency: Cap = 0
    """Maximum concurrent tool calls per caller. 0 means no limit."""
    limit_failed_sign_ins: RequiredRateText = "30/minute"
    """Rate limit of wrong keys, opaque tokens, and client secrets per address."""
    limit_registrations: RequiredRateText = "100/hour"
    """Rate limit of registrations at the built-in authorization server per address."""
    tls_cert: str = ""
    """A certificate chain in PEM format, which enables https. A renewed file is used without a restart."""
    tls_key: str = ""
    """The certificate's key, if it isn't in the same file."""
    inspect_urls: tuple[str, ...] = ()
    """URLs of MCP servers that `/inspect` can reach, for programs on this machine."""
    audit_log: str = ""
    """The file of the audit log."""
    audit_required: Switch = False
    """Refuse calls while the audit log can't be written."""
    card_url: str = ""
    """The public URL of the MCP endpoint. If set, the server publishes a server card and a catalog (SEP-2127)."""
    card_name: str = ""
    """The server's name in the card. Defaults to the reversed host of `card_url`, a slash, and the server's name."""
    allow_anonymous: Switch = False
    """Allow other machines to connect even if no sign-in is required."""
    page_size: Size = 1000
    max_body: Size = 4 * 1024 * 1024
    max_incoming_bytes: Size = 256 * 1024 * 1024
    """Maximum bytes of all request bodies being received, half of it per address. Requests above it get 503."""
    max_outgoing_bytes: Size = 256 * 1024 * 1024
    """Maximum bytes of unread replies for all clients, half of it per principal, or per address without sign-in."""
    max_message: Size = 1024 * 1024
    """Maximum size of a WebSocket message."""
    header_timeout: Timeout = 10.0
    body_timeout: Timeout = 30.0
    write_timeout: Timeout = 30.0
    keep_alive: Seconds = 75.0
    max_connections: Size = 20_000
    max_connections_per_address: Cap = 0
    """0 means half of `max_connections`, but no cap for this machine and trusted proxies."""
    tool_timeout: Seconds = 0.0
    """0 means no timeout unless the tool has its own."""
    max_call_seconds: Timeout = 3600.0
    """The time limit of a call, even if heartbeats keep it alive or its tool has a longer timeout."""
    heartbeat: Seconds = 15.0
    input_timeout: Timeout = 600.0
    """The time limit for the user's answer to a question, and for the next round of a multi-round request."""
    max_calls: Size = 10_000
    """Maximum concurrent calls, half of them per principal, or per address without sign-in."""
    max_call_bytes: Size = 128 * 1024 * 1024
    """Maximum bytes of running calls' requests, half of it per caller. Small requests aren't counted."""
    max_threads: Size = 40
    max_streams: Size = 20_000
    max_subscriptions: Size = 1_000
    """Maximum resource URIs that a session or listen stream can watch."""
    max_pending_inputs: Size = 1_000
    """Maximum open questions to clients, half of them per principal, or per address without sign-in."""
    max_processes: Size = 512
    """Maximum upstream processes per worker."""
    max_tasks: Size = 5_000
    """Maximum number of running tasks, over all callers and workers."""
    max_tasks_per_caller: Size = 1_000
    """Maximum running tasks per principal, or per address without sign-in."""
    task_ttl: Annotated[float, Meta(ge=1, le=365 * 86400, description="a number of seconds from 1 to 31,536,000")] = (
        3600.0
    )
    """Seconds from the call until a task and its result are deleted, unless the tool sets its own."""
    task_poll: Annotated[float, Meta(ge=0.001, le=3600, description="a number of seconds from 0.001 to 3600")] = 1.0
    """Seconds that clients should wait between polls of a task."""
    replay: bool = False
    """Whether tools may run again from their start, if the process that waits for an answer is gone."""
    max_rounds: Size = 64
    """Maximum question rounds of a 2026-07-28 call."""
    max_stream_seconds: Timeout = 24 * 3600.0
    """Maximum age of an open stream. Clients then reconnect."""
    stream_buffer: Size = 1024 * 1024
    """Maximum unread bytes of a stream before it's closed. For subscribers of the hub, half of it."""
    session_ttl: Timeout = 24 * 3600.0
    """How long a session id is valid, and how long an unused record of it is kept."""
    user_state_ttl: Timeout = 604_800.0
    """Seconds after the last change until the values of a user (`ctx.user_state`) are deleted."""
    list_ttl_ms: Cap = 60_000
    compression: Automatic = "auto"
    """Whether large replies are compressed with gzip for clients that accept it. ``auto`` doesn't compress for clients
    on this machine, unless a header shows that a proxy forwards the request.
    """
    gzip_streams: Switch = False
    """Compress the hub's event streams with gzip for clients that accept it. Proxies can delay them."""
    hub_replay_events: Size = 10_000
    """Number of events, over all channels, that a returning subscriber can get."""
    hub_connections: Cap = 0
    """Maximum hub subscribers. 0 means that only connections are limited. ``MAX_CONNECTIONS`` also sets it."""
    hub_subscribers_per_channel: Cap = 0
    """Maximum subscribers per channel. 0 means that only connections are limited."""
    hub_channels_per_subscriber: Size = 100
    """Maximum channels per event stream or WebSocket. A WebSocket's channels each count as a subscriber."""
    hub_history: Size = 1_000
    """Number of events per channel that a new or returning subscriber can get."""
    hub_history_age: Seconds = 3600.0
    drain_timeout: Seconds = 30.0
    drain_delay: Seconds = 0.0
    """How long a stopping server reports not ready but still serves, so load balancers can react."""
    coerce_arguments: Switch = False
    """Coerce the arguments of all tools, as ``@mcp.tool(coerce=True)`` does: ``"3"`` to 3, and JSON text to a list."""
    tool_search: Switch = False
    """List search_tools, call_tool, and tools with the tag ``listed``. Models find the others with the first two."""
    resource_tools: Automatic = "off"
    """Add the tools list_resources, read_resource, list_prompts, and get_prompt, for clients that only know tools. With
    auto, clients that declare capabilities don't list them.
    """
    peer: PeerText = ""
    """The address of this machine at which the other machines of a gateway can reach it: ``10.0.0.5``, or
    ``10.0.0.5:7000`` for ports from 7000 to 7099. They forward requests to the machine that holds a session's or
    caller's state.
    """
    watchdog: Seconds = 0.0
    """Kill and replace a worker whose event loop is blocked for this long. 0 means never."""
    log_level: LogLevel = "info"
    client_log_level: LogLevel = "info"
    """The initial minimum level of a tool's log messages for handshake-era clients."""
    log_file: str = ""
    """A file for logs as JSON lines, in addition to standard error. Workers can share it, and logrotate can move it."""
    log_format: LogFormat = "auto"
    """The log format on standard error: ``text``, ``json``, or ``auto``, which is text on a terminal and JSON
    elsewhere.
    """
    access_log: Switch = False
    """Log one line per message on standard error."""
    show_errors: Switch = False
    """Show callers your code's errors, with tracebacks. For development only, because it reveals code."""

    def __post_init__(self) -> None:
        """Validate the values and convert a list to a tuple or 1 to 1.0.

        Raises:
            ValueError: A value is of the wrong type or out of range.
        """
        for name, kind in _types().items():
            value = getattr(self, name)
            converted = _convert(name, value, kind, strict=True)
            if converted is not value:
                msgspec.structs.force_setattr(self, name, converted)

    @property
    def mcp_paths(self) -> tuple[str, ...]:
        """Paths where MCP is served over HTTP."""
        return self.path, self.sse_path, self.messages_path

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **given: object) -> "Settings":
        """Return the settings from ``MILLSTREAM_…`` variables, overridden by keywords: ``Settings.load(page_size=50)``.

        Args:
            environ: The variables, by default those of this process.
            given: Fields of `Settings`, which override the variables.

        Raises:
            VariableError: A variable has an unknown name, or a value of the wrong type or out of range.
            ValueError: The same for a keyword.
        """
        types = _types()
        source = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for variable, name in _OTHER_NAMES.items():
            if variable in source:
                values[name] = _read_variable(variable, source[variable], name)
        for variable, text in source.items():
            if variable.startswith(PREFIX) and not _is_foreign(variable, text):
                name = variable.removeprefix(PREFIX).lower()
                if variable in _ADDRESS:
                    continue
                if variable != PREFIX + name.upper() or name not in types:
                    raise VariableError(f"Unknown setting {variable}.{_nearest(name, cls._ELSEWHERE)}")
                values[name] = _read_variable(variable, text, name)
        for name, value in given.items():
            if name not in types:
                raise ValueError(unknown_name_message("Settings", name, types, cls._ELSEWHERE))
            values[name] = _convert(name, value, types[name])
        return cls(**values)


def address(host: str | None, port: int | None, environ: Mapping[str, str] | None = None) -> tuple[str, int]:
    """Return the listen address: the arguments, or else ``MILLSTREAM_HOST`` and ``MILLSTREAM_PORT``, or else
    127.0.0.1:8000.

    Raises:
        VariableError: A variable is invalid.
    """
    source = os.environ if environ is None else environ
    if host is None:
        host = source.get("MILLSTREAM_HOST", "127.0.0.1").strip()
        if not host:
            raise VariableError("MILLSTREAM_HOST is empty. Set it to an address such as 0.0.0.0, or unset it.")
    host = host[1:-1] if host[:1] == "[" and host[-1:] == "]" else host  # an IPv6 address, as in a URL
    if port is None:
        text = source.get("MILLSTREAM_PORT", "")
        if not text or _is_foreign("MILLSTREAM_PORT", text):
            return host, 8000
        if not (text.strip().isascii() and text.strip().isdigit() and int(text) <= 65535):
            raise VariableError(f"MILLSTREAM_PORT can't be {text!r}. It must be a number from 0 to 65535.")
        port = int(text)
    return host, port


DEV_SETTINGS: Mapping[str, object] = MappingProxyType({"show_errors": True, "access_log": True})
"""Settings of ``--dev``, for development."""


@cache
def _types() -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(Settings)}


def _read_variable(variable: str, text: str, name: str) -> Any:
    kind, value = _types()[name], cast("object", text)
    if name in _NEVER_EMPTY and not text.strip():
        raise VariableError(f"{variable} is empty, so it wouldn't protect anything. Set a value, or unset it.")
    if kind == tuple[str, ...]:
        value = tuple(part.strip() for part in text.split(","))
    try:
        return _convert(variable, value, kind)
    except ValueError as exc:
        raise VariableError(str(exc)) from None


def _convert(name: str, value: object, kind: Any, *, strict: bool = False) -> Any:
    normalized = value.lower() if kind == LogLevel and isinstance(value, str) else value
    try:
        return msgspec.convert(normalized, kind, strict=strict)
    except msgspec.ValidationError as exc:
        expected = next((f"It must be {meta.description}." for meta in getattr(kind, "__metadata__", ())), f"{exc}.")
        if kind == tuple[str, ...]:
            expected = f"It must be a list of strings{f': [{value!r}]' if isinstance(value, str) else ''}."
        if name.lower().endswith(("_key", "store")):
            raise ValueError(f"The value of {name} can't be used, and isn't shown. {expected}") from None
        raise ValueError(f"{name} can't be {value!r}. {expected}") from exc


def _is_foreign(variable: str, text: str) -> bool:
    return bool(_OF_KUBERNETES.search(variable)) or (variable.endswith("_PORT") and "://" in text)


def _nearest(name: str, elsewhere: Mapping[str, str]) -> str:
    near = closest_names(name, {*_types(), *elsewhere})[:2]
    if near and near[0] in elsewhere and PREFIX + near[0].upper() not in _ADDRESS:
        return f" {elsewhere[near[0]]}"
    return f" Did you mean {' or '.join(PREFIX + each.upper() for each in near)}?" if near else ""


class ConfigVersion(Confidential, Struct, frozen=True):
    """One version of a configuration file, which may contain secrets."""

    number: int
    text: str
    digest: str
    """Digest of the file, and the files of keys, users, and accepted definitions that it names. It's short, so that it
    doesn't give away a weak secret in them.
    """
    targets: list[tuple[str, str]] = []
    """Name and target of each upstream in the first version, for the gateway's id, which doesn't change."""


_OPTION = re.compile(r"(?:millstream run )?(--[a-z][\w-]*(?: (?:\d\w*(?:\.\w+)*|[A-Z]{2,}\b))?)")


def as_typed(remedy: str) -> str:
    """Return a remedy in terms of the target that was typed, if a Makefile sets it: ``make run ARGS="--port 8001"``."""
    typed = os.environ.get("TYPED_COMMAND", "")
    if not typed:
        return remedy
    return _OPTION.sub(rf'{typed} ARGS="\1"', remedy).replace("VALUE millstream …", f"VALUE {typed}")
