"""The configuration of a server behind the gateway."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict, cast

import msgspec
from msgspec import Meta, structs

from millstream._config import Seconds, Size, Timeout
from millstream._gateway.names import PREFIX, PREFIX_RULE, Names
from millstream._gateway.options.credentials import Credentials, PerUserOAuth, TokenExchange
from millstream._gateway.options.policy import ApprovalPolicy, UpstreamPolicy, find_approvals_by_others
from millstream._gateway.options.process import ProcessOptions
from millstream._gateway.programs.libraries import library_of
from millstream._gateway.programs.program import upstream_of
from millstream._override import override
from millstream.client import TargetError
from millstream.client._endpoint import check_headers
from millstream.client._targets import find_server
from millstream.protocol import BY_DATE, SuggestionMeta

_TAKES = {
    "auth": "credentials from millstream.gateway, such as bearer(…)",
    "policy": "an UpstreamPolicy",
    **dict.fromkeys(("headers", "env"), "a dict of strings"),
    "forward_headers": "a list of strings",
    "trust": "'follow' or 'pin'",
    "isolation": "'shared', 'per_principal', or 'per_session'",
}
"""Options -> what they take, for errors."""


CHANGEABLE = (
    "timeout", "connect_timeout", "start_timeout", "refresh_seconds", "idle_seconds", "max_processes",
    "spare_processes", "memory_limit", "max_catalog_bytes", "max_connections",
)  # fmt: skip
"""Options that change in a running upstream."""


class UpstreamConfig(ProcessOptions, frozen=True, kw_only=True, metaclass=SuggestionMeta):
    """A server behind the gateway. ``UpstreamConfig(name="files", target=["uvx", "mcp-server-files", "."])``"""

    _ELSEWHERE: ClassVar = dict.fromkeys(("url", "command"), "Write upstream(name, URL_OR_COMMAND).")

    target: Any
    """A URL, a command as text or list, a file, an entry of `mcpServers`, or a server object of this process."""
    prefix: str | None = None
    """Prefix of names, by default `name`. Empty for the upstream's own names."""
    headers: Mapping[str, str] = {}
    """Headers for each HTTP request to the upstream."""
    env: Mapping[str, str] = {}
    """Environment variables for a command, in addition to the few that every program needs."""
    cwd: str | None = None
    """Working directory of a command. In a ``gateway.toml``, it's relative to the folder of the file, and by default
    that folder.
    """
    auth: Credentials | None = None
    """Source of credentials that aren't fixed headers: `bearer`, `per_user_oauth`, and others."""
    forward_headers: Sequence[str] = ()
    """Names of the caller's HTTP headers to pass on."""
    forward_client: bool = True
    """Whether upstreams see the client's name and version instead of the gateway's."""
    isolation: Literal["shared", "per_principal", "per_session"] | None = None
    """Which callers share a process of a command, and what it remembers: all of them, those of one principal, or of one
    session. By default, each principal has a process if the command uses the handshake and callers sign in, and
    otherwise, all callers share one. ``shared`` also lets callers without sign-in share a session at a URL. In the
    handshake era, a process that two principals have used can't ask questions.
    """
    keeps_state: bool = True
    """Whether it may remember something for a session. If not, callers share sessions, and aren't told of lost ones."""
    connect_timeout: Timeout = 10.0
    """Seconds to wait for a connection."""
    start_timeout: Seconds = 5.0
    """Seconds to wait for the first lists when the gateway starts, unless there's a stored copy."""
    refresh_seconds: Seconds = 300.0
    """Seconds between refreshes of the lists, unless the upstream specifies their lifetime."""
    max_connections: Size = 1000
    """Maximum open connections, and over HTTP, maximum concurrent calls, each of which needs a connection."""
    max_catalog_bytes: Size = 8 * 1024 * 1024
    """Maximum bytes of the upstream's lists together."""
    policy: UpstreamPolicy | None = None
    """Rules for callers: see `UpstreamPolicy`."""
    trust: Literal["follow", "pin"] = "follow"
    """``pin`` hides a tool whose definition has changed until the operator accepts it."""
    revision: str | None = None
    """The only protocol revision to ask for, as a date. In a handshake, the upstream may choose another one. By
    default, it's the newest that both sides support.
    """
    openapi: Any = None
    """Instead of a target: the URL or file of an OpenAPI document, the document itself, a FastAPI application, or an
    `OpenApi` that selects operations.
    """

    def __post_init__(self) -> None:
        """Check the types of the options, whose values may be secret.

        Raises:
            TypeError: A value has the wrong type or is out of range.
        """
        for each in structs.fields(type(self)):
            try:
                if each.name != "cwd":  # a path is fine as well
                    msgspec.convert(getattr(self, each.name), each.type)
            except msgspec.ValidationError as exc:
                takes = _TAKES.get(each.name) or getattr(each.type, "__metadata__", (Meta(),))[0].description
                what = f"takes {takes}" if takes else f"has the wrong type: {exc}"
                raise TypeError(f"upstream {self.name!r}: {each.name} {what}.") from None

    @override
    def __repr__(self) -> str:
        """Return text without potential secrets: headers, variables, and targets."""
        return f"UpstreamConfig(name={self.name!r})"

    @property
    def connects(self) -> bool:
        """Whether each user connects their own account, on the connections page."""
        return isinstance(self.auth, PerUserOAuth)

    @property
    def pages(self) -> frozenset[str]:
        """Paths of the pages that its users need."""
        return frozenset([*["/connections"] * self.connects, *["/approvals"] * bool(self.asks_others)])

    @property
    def asks_others(self) -> list[ApprovalPolicy]:
        """Rules by which another person than the caller approves calls."""
        return [] if self.policy is None else find_approvals_by_others(self.policy)

    @property
    def needs_sign_in(self) -> str:
        """What only works for callers who sign in, or empty."""
        if isinstance(self.auth, TokenExchange | PerUserOAuth):
            return str(self.auth.__struct_config__.tag)
        return "approve.by" if self.asks_others else ""

    @property
    def names(self) -> Names:
        """Mapping between the upstream's names and the names on this server."""
        return Names(self.name if self.prefix is None else self.prefix)

    @property
    def address(self) -> str:
        """Text that identifies the target or document in all workers: for an object in this process, its class at
        most."""
        target: object = self.target if self.openapi is None else getattr(self.openapi, "document", self.openapi)
        if isinstance(target, str | Path | Sequence | Mapping):
            return repr(cast("object", target))
        return "" if hasattr(target, "running") or callable(target) else type(target).__name__

    def check(self) -> None:
        """Check the configuration.

        Raises:
            ValueError: The configuration is invalid. The message gives the reason.
        """
        if not self.name.strip():
            raise ValueError("An upstream requires a name.")
        prefix = self.names.prefix
        if PREFIX.fullmatch(prefix) is None:
            raise ValueError(
                f"upstream {self.name!r}: the prefix {prefix!r} produces names that some clients can't call: "
                f"{PREFIX_RULE}, or set another prefix."
            )
        if self.revision is not None and self.revision not in BY_DATE:
            raise ValueError(
                f"upstream {self.name!r}: unknown revision {self.revision}. Use one of {', '.join(BY_DATE)}."
            )
        if problem := self.find_ignored_option()[1]:
            raise ValueError(f"upstream {self.name!r}: {problem}")
        try:
            check_headers(self.headers)
        except TargetError as exc:
            raise ValueError(f"upstream {self.name!r}: {exc}") from None
        if self.openapi is not None:
            from millstream._gateway.options.api import check_api  # noqa: PLC0415  few upstreams are APIs

            check_api(self)
        elif library_of(self.target):
            upstream_of(self.target)
        else:
            try:
                find_server(self.target, env=self.env, cwd=self.cwd)
            except TargetError as exc:
                raise ValueError(f"upstream {self.name!r}: {exc}") from exc

    def find_ignored_option(self) -> tuple[str, str]:
        """Return an option that this kind of target ignores, and what it requires, or two empty strings."""
        isolates = self.isolation not in (None, "shared")
        if not self.keeps_state and (self.connects or isolates):
            what = "per_user_oauth" if self.connects else f'isolation = "{self.isolation}"'
            why = "which keeps callers apart, although they'd share sessions. Remove one of the two."
            return "keeps_state", f"keeps_state = false can't be used with {what}, {why}"
        kind = "openapi" if self.openapi is not None else "url" if "://" in str(self.target).partition(" ")[0] else ""
        options = {
            "env": self.env,
            "cwd": self.cwd,
            "isolation": self.openapi and isolates,
        }
        option = next((name for name, value in options.items() if value and kind), "")
        requires = "a connection" if option == "isolation" else "a command"
        return option, option and f"{option} requires {requires}, but this upstream has {kind}."


class UpstreamOptions(TypedDict, total=False):
    """Options of ``Server.upstream``. See `UpstreamConfig`."""

    prefix: str | None
    headers: Mapping[str, str]
    env: Mapping[str, str]
    cwd: str | None
    auth: Credentials | None
    forward_headers: Sequence[str]
    forward_client: bool
    isolation: Literal["shared", "per_principal", "per_session"] | None
    keeps_state: bool
    timeout: float
    connect_timeout: float
    start_timeout: float
    refresh_seconds: float
    max_processes: int
    spare_processes: int
    max_connections: int
    idle_seconds: float
    memory_limit: int | None
    max_catalog_bytes: int
    max_bytes: int
    policy: UpstreamPolicy | None
    trust: Literal["follow", "pin"]
    revision: str | None
    openapi: Any
