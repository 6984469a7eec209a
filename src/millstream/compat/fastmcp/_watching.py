"""Ready-made middleware of fastmcp that only looks: how long calls take, and what is asked, as lines of a log."""

import json
import logging
import time
from collections.abc import Callable
from typing import Any

from millstream.compat._pydantic_parts import to_json
from millstream.compat.fastmcp._middleware import Asked, CallNext, Middleware, MiddlewareContext

_CHARACTERS_A_TOKEN = 4


class _Timed(Middleware):
    """How long things take, in the log."""

    def __init__(self, logger: logging.Logger | None = None, log_level: int = logging.INFO) -> None:
        self.logger: logging.Logger = logger or logging.getLogger(self._default)
        self.log_level = log_level

    _default = ""

    async def _time(self, what: str, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        started = time.perf_counter()
        try:
            result = await call_next(context)
        except Exception as error:
            self.logger.log(self.log_level, "%s failed after %.2fms: %s", what, _ms(started), error)
            raise
        self.logger.log(self.log_level, "%s completed in %.2fms", what, _ms(started))
        return result


class TimingMiddleware(_Timed):
    """Logs how long each request takes.

    Args:
        logger: where; by default ``fastmcp.timing``.
        log_level: how loudly.
    """

    _default = "fastmcp.timing"

    async def on_request(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Around every request."""
        return await self._time(f"Request {context.method or 'unknown'}", context, call_next)


class DetailedTimingMiddleware(_Timed):
    """Logs how long each request takes, with the name of the tool, prompt or resource.

    Args:
        logger: where; by default ``fastmcp.timing.detailed``.
        log_level: how loudly.
    """

    _default = "fastmcp.timing.detailed"

    async def on_call_tool(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Around calls of tools."""
        return await self._time(f"Tool '{context.message.name}'", context, call_next)

    async def on_read_resource(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Around reads of resources."""
        return await self._time(f"Resource '{context.message.uri}'", context, call_next)

    async def on_get_prompt(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Around prompts."""
        return await self._time(f"Prompt '{context.message.name}'", context, call_next)

    async def on_list_tools(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Around the list of tools."""
        return await self._time("List tools", context, call_next)

    async def on_list_resources(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Around the list of resources."""
        return await self._time("List resources", context, call_next)

    async def on_list_resource_templates(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Around the list of resource templates."""
        return await self._time("List resource templates", context, call_next)

    async def on_list_prompts(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Around the list of prompts."""
        return await self._time("List prompts", context, call_next)


_PARAMS = {
    "tools/call": "CallToolRequestParams",
    "resources/read": "ReadResourceRequestParams",
    "prompts/get": "GetPromptRequestParams",
    "completion/complete": "CompleteRequestParams",
}
"""Method -> what the protocol calls its parameters."""


def _payload(message: Any) -> str:
    """What was asked, as JSON."""
    if isinstance(message, Asked):
        given = {"name": message.name or None, "uri": message.uri, "arguments": message.arguments}
        message = {name: value for name, value in given.items() if value is not None}
    return to_json(message, fallback=str).decode()


class LoggingMiddleware(Middleware):
    """Logs the beginning and the end of each message, as ``key=value``.

    Args:
        logger: where; by default ``fastmcp.middleware.logging``.
        log_level: how loudly; errors are always errors.
        include_payloads: with what was asked.
        include_payload_length: with how many characters that has.
        estimate_payload_tokens: with about how many tokens.
        max_payload_length: characters of it that are logged.
        methods: only these; without, all.
        payload_serializer: makes text of what was asked.
    """

    _default = "fastmcp.middleware.logging"
    structured_logging = False

    def __init__(
        self,
        *,
        logger: logging.Logger | None = None,
        log_level: int = logging.INFO,
        include_payloads: bool = False,
        include_payload_length: bool = False,
        estimate_payload_tokens: bool = False,
        max_payload_length: int | None = 1000,
        methods: list[str] | None = None,
        payload_serializer: Callable[[Any], str] | None = None,
    ) -> None:
        self.logger: logging.Logger = logger or logging.getLogger(self._default)
        self.log_level = log_level
        self.include_payloads = include_payloads
        self.include_payload_length = include_payload_length
        self.estimate_payload_tokens = estimate_payload_tokens
        self.max_payload_length = max_payload_length
        self.methods = methods
        self.payload_serializer = payload_serializer

    async def on_message(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Around everything."""
        if self.methods and context.method not in self.methods:
            return await call_next(context)
        self._log(context, "start", self._about(context))
        started = time.perf_counter()
        try:
            result = await call_next(context)
        except Exception as error:
            words = {"duration_ms": round(_ms(started), 2), "error": str(error)}
            self._log(context, "error", words, logging.ERROR)
            raise
        self._log(context, "success", {"duration_ms": round(_ms(started), 2)})
        return result

    def _log(self, context: MiddlewareContext[Any], event: str, more: dict[str, Any], level: int = 0) -> None:
        who = {"method": context.method or "unknown", "source": context.source}
        line = {"event": f"{context.type}_{event}", **who, **more}
        text = json.dumps(line) if self.structured_logging else " ".join(f"{k}={v}" for k, v in line.items())
        self.logger.log(level or self.log_level, "%s", text)

    def _about(self, context: MiddlewareContext[Any]) -> dict[str, Any]:
        """What was asked, as far as it is wanted."""
        if not (self.include_payloads or self.include_payload_length or self.estimate_payload_tokens):
            return {}
        payload, made = self._written(context), dict[str, Any]()
        if self.estimate_payload_tokens:
            made["payload_tokens"] = len(payload) // _CHARACTERS_A_TOKEN
        if self.include_payload_length:
            made["payload_length"] = len(payload)
        if self.include_payloads:
            longest = self.max_payload_length
            made["payload"] = f"{payload[:longest]}..." if longest and len(payload) > longest else payload
            made["payload_type"] = _PARAMS.get(context.method or "", type(context.message).__name__)
        return made

    def _written(self, context: MiddlewareContext[Any]) -> str:
        if self.payload_serializer is not None:
            try:
                return self.payload_serializer(context.message)
            except Exception as error:
                about = (error, context.type, context.method, context.source)
                self.logger.warning("Failed to serialize payload due to %s: %s %s %s.", *about)
        return _payload(context.message)


class StructuredLoggingMiddleware(LoggingMiddleware):
    """The same, with each line as a JSON object; what was asked is logged whole."""

    _default = "fastmcp.middleware.structured_logging"
    structured_logging = True

    def __init__(self, **options: Any) -> None:
        if "max_payload_length" in options:
            raise TypeError("StructuredLoggingMiddleware has no option max_payload_length")
        super().__init__(max_payload_length=None, **options)


def _ms(started: float) -> float:
    return (time.perf_counter() - started) * 1000
