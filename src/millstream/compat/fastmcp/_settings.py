"""Settings and exceptions with the official SDK's names.

Settings are converted to ours. Programs raise and catch the exceptions.
"""

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from millstream._http.hosts import is_loopback
from millstream._protocol.errors import (
    INTERNAL_ERROR,
    URL_ELICITATION_REQUIRED,
    Cancelled,
    Declined,
    ProtocolError,
    refuse_unknown,
)
from millstream._protocol.errors import ToolError as EngineToolError
from millstream.compat import types
from millstream.gateway._programs import hosts_and_origins


class FastMCPError(Exception):
    """Base class of these errors."""


class ValidationError(FastMCPError):
    """Arguments or results are invalid."""


class ResourceError(FastMCPError):
    """A resource can't be read. Clients see the message."""


class ToolError(FastMCPError):
    """A tool failed. The model sees the message."""


class InvalidSignature(Exception):
    """A function has an unsupported signature."""


class McpError(Exception):
    """A protocol error: ``McpError(ErrorData(code=-32602, message="…"))``."""

    def __init__(self, error: Any) -> None:
        super().__init__(error.message)
        self.error: Any = error


class UrlElicitationRequiredError(McpError):
    """The user has to open URLs before the call can succeed."""

    def __init__(self, elicitations: Sequence[Any], message: str | None = None) -> None:
        urls = [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in elicitations]
        text = message or f"URL elicitation{'s' if len(urls) > 1 else ''} required"
        super().__init__(types.ErrorData(code=URL_ELICITATION_REQUIRED, message=text, data={"elicitations": urls}))


def is_error(error: BaseException, kind: type[McpError]) -> bool:
    """Return whether an error is of a kind, ours or an installed SDK's."""
    return hasattr(error, "error") and any(each.__name__ == kind.__name__ for each in type(error).__mro__)


def as_protocol_error(error: Any, code: int = INTERNAL_ERROR) -> ProtocolError:
    """Convert an error to a protocol error. An `McpError` keeps its code and data."""
    if is_error(error, McpError):
        return ProtocolError(error.error.code, str(error), error.error.data)
    return ProtocolError(code, str(error))


@contextmanager
def tool_errors() -> Generator[None]:
    """Convert errors of a tool to text for the model, or to a protocol error."""
    try:
        yield
    except FastMCPError as error:
        raise EngineToolError(str(error)) from error
    except Exception as error:
        if is_error(error, UrlElicitationRequiredError):
            raise as_protocol_error(error) from error
        raise


@contextmanager
def errors_as(convert: Callable[[Exception], Exception]) -> Generator[None]:
    """Convert errors inside the block, except those that the server handles itself."""
    try:
        yield
    except (ProtocolError, Declined, Cancelled):
        raise
    except Exception as error:
        raise convert(error) from error


MAX_BODY = 4 * 1024 * 1024


@dataclass
class TransportSecuritySettings:
    """Allowed Host and Origin headers, such as ``example.com`` or ``127.0.0.1:*``."""

    enable_dns_rebinding_protection: bool = True
    allowed_hosts: list[str] = field(default_factory=list[str])
    allowed_origins: list[str] = field(default_factory=list[str])


@dataclass
class Settings:
    """Settings of one server. A program may change them until the server starts."""

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
    session_idle_timeout: float | None = None
    max_sessions: int | None = None
    warn_on_duplicate_tools: bool = True
    warn_on_duplicate_resources: bool = True
    warn_on_duplicate_prompts: bool = True
    dependencies: list[str] = field(default_factory=list[str])
    lifespan: Any = None
    auth: Any = None
    transport_security: Any = None

    def ours(self) -> dict[str, Any]:
        """Return the corresponding fields of `millstream.Settings`."""
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
            made["allow_anonymous"] = True
        return made | self._accepted_headers()

    def _accepted_headers(self) -> dict[str, Any]:
        security = self.transport_security
        if security is None and is_loopback(self.host):
            return {}
        if security is None or not security.enable_dns_rebinding_protection:
            # Like the SDK: accept every header, but let no page read the response.
            return {"allowed_hosts": ("*",), "allowed_origins": ("*",), "cors": False}
        hosts, origins = hosts_and_origins(security)
        return {"allowed_hosts": hosts, "allowed_origins": origins}


_FROM_ENVIRONMENT: dict[str, Callable[[str], Any]] = {
    "host": str,
    "port": int,
    "log_level": str,
    "debug": lambda text: text.lower() in ("1", "true"),
}


def settings_of(options: dict[str, Any]) -> Settings:
    """Return the settings for these options, with defaults from `FASTMCP_HOST`, `_PORT`, `_LOG_LEVEL`, and `_DEBUG`.

    Raises:
        TypeError: An option is unknown.
    """
    refuse_unknown("FastMCP", options, Settings.__dataclass_fields__, {})
    given = dict(options)
    for name, read in _FROM_ENVIRONMENT.items():
        text = os.environ.get(f"FASTMCP_{name.upper()}")
        if text and name not in given:
            given[name] = read(text)
    given["dependencies"] = list(given.get("dependencies") or ())
    made = Settings(**given)
    if made.transport_security is None and made.host in ("127.0.0.1", "localhost", "::1"):
        made.transport_security = TransportSecuritySettings(
            allowed_hosts=["127.0.0.1:*", "localhost:*", "[::1]:*"],
            allowed_origins=["http://127.0.0.1:*", "http://localhost:*", "http://[::1]:*"],
        )
    return made
