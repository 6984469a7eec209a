"""Exceptions that programs raise and catch."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from millstream._protocol.errors import (
    INTERNAL_ERROR,
    URL_ELICITATION_REQUIRED,
    Cancelled,
    Declined,
    ProtocolError,
)
from millstream._protocol.errors import ToolError as EngineToolError
from millstream.compat import types


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


def requires_url(error: BaseException) -> bool:
    """Return whether an error is a `UrlElicitationRequiredError`, ours or an installed SDK's."""
    return hasattr(error, "error") and any(
        each.__name__ == "UrlElicitationRequiredError" for each in type(error).__mro__
    )


def as_protocol_error(error: Any, code: int) -> ProtocolError:
    """Convert an error to a protocol error. An `McpError`, ours or an installed SDK's, keeps its code and data."""
    if hasattr(error, "error") and any(each.__name__ == "McpError" for each in type(error).__mro__):
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
        if requires_url(error):
            raise as_protocol_error(error, INTERNAL_ERROR) from error
        raise


@contextmanager
def protocol_errors(code: int = INTERNAL_ERROR) -> Generator[None]:
    """Convert errors inside the block to protocol errors."""
    try:
        yield
    except (ProtocolError, Declined, Cancelled):
        raise
    except Exception as error:
        raise as_protocol_error(error, code) from error


@contextmanager
def prefixed_errors(what: str) -> Generator[None]:
    """Convert errors inside the block to a ValueError whose message starts with `what`."""
    try:
        yield
    except (ProtocolError, Declined, Cancelled):
        raise
    except Exception as error:
        raise ValueError(f"{what}: {error}") from error


__all__ = [
    "FastMCPError",
    "InvalidSignature",
    "McpError",
    "ResourceError",
    "ToolError",
    "UrlElicitationRequiredError",
    "ValidationError",
]
