"""Errors that programs for the other libraries raise and catch."""

from collections.abc import Sequence
from typing import Any

from millstream._protocol.errors import URL_ELICITATION_REQUIRED
from millstream.compat import _types as types


class FastMCPError(Exception):
    """The base of the errors."""


class ValidationError(FastMCPError):
    """Arguments or results are wrong."""


class ResourceError(FastMCPError):
    """A resource could not be read; clients see the text."""


class ToolError(FastMCPError):
    """A tool failed; the model sees the text."""


class PromptError(FastMCPError):
    """A prompt could not be made; clients see the text."""


class NotFoundError(ToolError, ResourceError, PromptError):
    """There is nothing of that name."""


class InvalidSignature(Exception):
    """A function cannot be served as it is written."""


class McpError(Exception):
    """An error of the protocol: ``McpError(ErrorData(code=-32602, message="…"))``."""

    def __init__(self, error: Any = None, message: str = "", data: Any = None, *, code: int | None = None) -> None:
        if isinstance(error, int):
            code = error
        made: Any = error if code is None else types.ErrorData(code=code, message=message, data=data)
        super().__init__(made.message)
        self.error: Any = made

    @property
    def code(self) -> int:
        """The number."""
        return int(self.error.code)

    @property
    def data(self) -> Any:
        """What else the error says."""
        return self.error.data


class UrlElicitationRequiredError(McpError):
    """The person has to open URLs before the call can succeed."""

    def __init__(self, elicitations: Sequence[Any], message: str | None = None) -> None:
        urls = [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in elicitations]
        text = message or f"URL elicitation{'s' if len(urls) > 1 else ''} required"
        super().__init__(types.ErrorData(code=URL_ELICITATION_REQUIRED, message=text, data={"elicitations": urls}))


def of_protocol(error: BaseException) -> bool:
    """Whether an error is one of the protocol, of this module or of an installed SDK."""
    return hasattr(error, "error") and any(each.__name__ in _OF_PROTOCOL for each in type(error).__mro__)


def asks_for_url(error: BaseException) -> bool:
    """Whether an error asks the person to open URLs."""
    return any(each.__name__ == "UrlElicitationRequiredError" for each in type(error).__mro__)


_OF_PROTOCOL = frozenset(("McpError", "MCPError"))
