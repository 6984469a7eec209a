"""What a server of the door is set to: the options of the other libraries, and what they are in our settings."""

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from millstream._http.hosts import is_loopback

MAX_BODY = 4 * 1024 * 1024
MAX_SESSIONS = 10_000
IDLE_SECONDS = 30 * 60.0


class Options(TypedDict, total=False):
    """Options of `FastMCP` beyond the first few."""

    title: str | None
    description: str | None
    version: Any
    tools: Sequence[Any] | None
    resources: Sequence[Any] | None
    middleware: Sequence[Any] | None
    lifespan: Any
    auth: Any
    dependencies: Collection[str]
    transport_security: Any
    debug: bool
    log_level: str
    host: str
    port: int
    mount_path: str
    sse_path: str
    message_path: str
    streamable_http_path: str
    json_response: bool
    stateless_http: bool
    max_request_body_size: int
    session_idle_timeout: float | None
    max_sessions: int | None
    warn_on_duplicate_tools: bool
    warn_on_duplicate_resources: bool
    warn_on_duplicate_prompts: bool
    on_duplicate: str | None
    on_duplicate_tools: str | None
    on_duplicate_resources: str | None
    on_duplicate_prompts: str | None
    mask_error_details: bool | None
    include_tags: Collection[str] | None
    exclude_tags: Collection[str] | None
    tool_serializer: Any
    strict_input_validation: bool | None
    list_page_size: int | None
    client_log_level: str | None


@dataclass
class TransportSecuritySettings:
    """Which Host and Origin headers are let through: ``example.com``, ``127.0.0.1:*``."""

    enable_dns_rebinding_protection: bool = True
    allowed_hosts: list[str] = field(default_factory=list[str])
    allowed_origins: list[str] = field(default_factory=list[str])


@dataclass
class Settings:
    """Settings of one server. They may be changed until it runs."""

    debug: bool = False
    log_level: str = "INFO"
    host: str = "127.0.0.1"
    port: int = 8000
    mount_path: str = "/"
    sse_path: str = "/sse"
    message_path: str = "/messages/"
    streamable_http_path: str = "/mcp"
    json_response: bool = False
    stateless_http: bool = False
    max_request_body_size: int = MAX_BODY
    session_idle_timeout: float | None = IDLE_SECONDS
    max_sessions: int | None = MAX_SESSIONS
    warn_on_duplicate_tools: bool = True
    warn_on_duplicate_resources: bool = True
    warn_on_duplicate_prompts: bool = True
    dependencies: list[str] = field(default_factory=list[str])
    lifespan: Any = None
    auth: Any = None
    transport_security: Any = None

    def ours(self) -> dict[str, Any]:
        """The same as settings of `millstream.Settings`, by name."""
        made: dict[str, Any] = {
            "path": self.streamable_http_path,
            "sse_path": self.sse_path,
            "messages_path": self.message_path,
            "json_only": self.json_response,
            "sessions": not self.stateless_http,
            "max_body": self.max_request_body_size,
            "client_log_level": "debug",
            "log_level": self.log_level.lower(),
        }
        if not is_loopback(self.host):
            made["public_without_auth"] = True
        return made | self._screened()

    def _screened(self) -> dict[str, Any]:
        security = self.transport_security
        if security is None:
            return {} if is_loopback(self.host) else {"allowed_hosts": ("*",), "allowed_origins": ("*",)}
        if not security.enable_dns_rebinding_protection:
            return {"allowed_hosts": ("*",), "allowed_origins": ("*",)}
        return {
            "allowed_hosts": tuple(dict.fromkeys(map(_without_port, security.allowed_hosts))),
            "allowed_origins": tuple(each for each in security.allowed_origins if not each.endswith(":*")),
        }


def _without_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    return name if name and (port == "*" or port.isdigit()) else host


_FROM_ENVIRONMENT: dict[str, Callable[[str], Any]] = {
    "host": str,
    "port": int,
    "log_level": str,
    "debug": lambda text: text.lower() in ("1", "true"),
}


def settings_of(options: Options) -> Settings:
    """Settings from options; some that are not given come from ``FASTMCP_…`` variables, as in the other libraries."""
    names = Settings.__dataclass_fields__
    given: dict[str, Any] = {name: value for name, value in options.items() if name in names}
    for name, read in _FROM_ENVIRONMENT.items():
        text = os.environ.get(f"FASTMCP_{name.upper()}")
        if text and name not in given:
            given[name] = read(text)
    given["dependencies"] = list(given.get("dependencies") or ())
    made = Settings(**given)
    if made.transport_security is None and made.host in ("127.0.0.1", "localhost", "::1"):
        made.transport_security = TransportSecuritySettings(
            enable_dns_rebinding_protection=True,
            allowed_hosts=["127.0.0.1:*", "localhost:*", "[::1]:*"],
            allowed_origins=["http://127.0.0.1:*", "http://localhost:*", "http://[::1]:*"],
        )
    return made
