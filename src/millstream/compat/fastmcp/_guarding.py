"""Ready-made middleware of fastmcp that steps in: errors get codes, failures are tried again, and callers wait."""

import asyncio
import inspect
import logging
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, TypeVar

from millstream.compat.fastmcp._exceptions import McpError, NotFoundError, of_protocol
from millstream.compat.fastmcp._middleware import CallNext, Middleware, MiddlewareContext

_MAX_CLIENTS = 10_000
"""Clients whose limits are kept; the one that was heard longest ago makes room."""

_INVALID, _INTERNAL, _REFUSED, _NOT_FOUND, _NO_RESOURCE = -32602, -32603, -32000, -32001, -32002
_CODES: tuple[tuple[tuple[type[BaseException], ...], int, str], ...] = (
    ((ValueError, TypeError), _INVALID, "Invalid params"),
    ((FileNotFoundError, KeyError, NotFoundError), _NOT_FOUND, "Not found"),
    ((PermissionError,), _REFUSED, "Permission denied"),
    ((TimeoutError,), _REFUSED, "Request timeout"),
)
"""Kinds of errors, by their exact class -> code and text for clients."""


class ErrorHandlingMiddleware(Middleware):
    """Logs and counts errors, and gives them codes of the protocol.

    Args:
        logger: where; by default ``fastmcp.errors``.
        include_traceback: with where each one comes from.
        error_callback: gets each error and its context.
        transform_errors: False leaves errors as they are.
    """

    def __init__(
        self,
        logger: logging.Logger | None = None,
        include_traceback: bool = False,
        error_callback: Callable[[Exception, MiddlewareContext[Any]], Any] | None = None,
        transform_errors: bool = True,
    ) -> None:
        self.logger: logging.Logger = logger or logging.getLogger("fastmcp.errors")
        self.include_traceback = include_traceback
        self.error_callback = error_callback
        self.transform_errors = transform_errors
        self.error_counts: dict[str, int] = {}

    async def on_message(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Around everything."""
        try:
            return await call_next(context)
        except Exception as error:
            self._note(error, context)
            told = error if of_protocol(error) or not self.transform_errors else _coded(error, context.method or "")
            if told is error:
                raise
            raise told from error

    def _note(self, error: Exception, context: MiddlewareContext[Any]) -> None:
        kind, method = type(error).__name__, context.method or "unknown"
        self.error_counts[f"{kind}:{method}"] = self.error_counts.get(f"{kind}:{method}", 0) + 1
        trace = f"\n{traceback.format_exc()}" if self.include_traceback else ""
        self.logger.error("Error in %s: %s: %s%s", method, kind, error, trace)
        if self.error_callback is not None:
            try:
                self.error_callback(error, context)
            except Exception as wrong:
                self.logger.error("Error in error callback: %s", wrong)

    def get_error_stats(self) -> dict[str, int]:
        """``kind:method`` -> how often."""
        return dict(self.error_counts)


def _coded(error: Exception, method: str) -> McpError:
    """An error as the protocol has it; what a tool raised counts, not what was made of it."""
    kind = type(error.__cause__ or error)
    code, text = next(((code, text) for kinds, code, text in _CODES if kind in kinds), (_INTERNAL, "Internal error"))
    if code == _NOT_FOUND and method.startswith("resources/"):
        code, text = _NO_RESOURCE, "Resource not found"
    return McpError(code, f"{text}: {error}")


class RetryMiddleware(Middleware):
    """Tries again what failed for a reason that may pass.

    Args:
        max_retries: how often.
        base_delay: seconds before the first time.
        max_delay: seconds, at most.
        backoff_multiplier: how much longer each wait is than the one before.
        retry_exceptions: the reasons.
        logger: where; by default ``fastmcp.retry``.
    """

    def __init__(
        self,
        max_retries: int = 3,
        base_delay: float = 1.0,
        max_delay: float = 60.0,
        backoff_multiplier: float = 2.0,
        retry_exceptions: tuple[type[Exception], ...] = (ConnectionError, TimeoutError),
        logger: logging.Logger | None = None,
    ) -> None:
        self.max_retries = max_retries
        self.base_delay = base_delay
        self.max_delay = max_delay
        self.backoff_multiplier = backoff_multiplier
        self.retry_exceptions = retry_exceptions
        self.logger: logging.Logger = logger or logging.getLogger("fastmcp.retry")

    async def on_request(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Around every request."""
        for attempt in range(self.max_retries):
            try:
                return await call_next(context)
            except Exception as error:
                if not isinstance(error, self.retry_exceptions) and not isinstance(
                    error.__cause__, self.retry_exceptions
                ):
                    raise
                delay = min(self.base_delay * self.backoff_multiplier**attempt, self.max_delay)
                said = (context.method, attempt + 1, self.max_retries + 1, type(error).__name__, error, delay)
                self.logger.warning("Request %s failed (attempt %d/%d): %s: %s. Retrying in %.1fs...", *said)
            await asyncio.sleep(delay)
        return await call_next(context)


class RateLimitError(McpError):
    """A caller has to wait."""

    def __init__(self, message: str = "Rate limit exceeded") -> None:
        super().__init__(_REFUSED, message)


class TokenBucketRateLimiter:
    """So much at once, and then so much a second."""

    def __init__(self, capacity: int, refill_rate: float) -> None:
        self.capacity = capacity
        self.refill_rate = refill_rate
        self.tokens: float = capacity
        self.last_refill: float = time.monotonic()

    async def consume(self, tokens: int = 1) -> bool:
        """Take some, if there are enough."""
        now = time.monotonic()
        self.tokens = min(self.capacity, self.tokens + (now - self.last_refill) * self.refill_rate)
        self.last_refill = now
        if self.tokens < tokens:
            return False
        self.tokens -= tokens
        return True


class SlidingWindowRateLimiter:
    """So many in any stretch of time of this length."""

    def __init__(self, max_requests: int, window_seconds: int) -> None:
        self.max_requests = max_requests
        self.window_seconds = window_seconds
        self.requests: deque[float] = deque()

    async def is_allowed(self) -> bool:
        """Count one more, if it may be."""
        now = time.monotonic()
        while self.requests and self.requests[0] < now - self.window_seconds:
            self.requests.popleft()
        if len(self.requests) >= self.max_requests:
            return False
        self.requests.append(now)
        return True


LimiterT = TypeVar("LimiterT")


class _Limited(Middleware):
    """The limits of each client, which a program's function names; without one, all are one client."""

    get_client_id: Callable[[MiddlewareContext[Any]], Any] | None

    async def _client(self, context: MiddlewareContext[Any]) -> str:
        if self.get_client_id is None:
            return "global"
        found = self.get_client_id(context)
        return str(await found if inspect.isawaitable(found) else found)

    @staticmethod
    def _limiter(kept: OrderedDict[str, LimiterT], client: str, make: Callable[[], LimiterT]) -> LimiterT:
        found = kept.get(client)
        if found is None:
            found = kept[client] = make()
            if len(kept) > _MAX_CLIENTS:
                kept.popitem(last=False)
        kept.move_to_end(client)
        return found


class RateLimitingMiddleware(_Limited):
    """So many requests a second, in this process.

    Args:
        max_requests_per_second: in the long run.
        burst_capacity: at once; by default twice as many.
        get_client_id: says whose request it is; without it, all callers share one limit.
        global_limit: all callers share one limit in any case.

    Raises:
        ValueError: less than one at once, which would refuse everything.
    """

    def __init__(
        self,
        max_requests_per_second: float = 10.0,
        burst_capacity: int | None = None,
        get_client_id: Callable[[MiddlewareContext[Any]], Any] | None = None,
        global_limit: bool = False,
    ) -> None:
        if burst_capacity is not None and burst_capacity < 0:
            raise ValueError("burst_capacity must be at least 1: less would refuse every request")
        self.max_requests_per_second = max_requests_per_second
        least = 1 if max_requests_per_second > 0 else 0
        self.burst_capacity: int = burst_capacity or max(least, int(max_requests_per_second * 2))
        self.get_client_id = get_client_id
        self.global_limit = global_limit
        self.limiters: OrderedDict[str, TokenBucketRateLimiter] = OrderedDict()
        self.global_limiter: TokenBucketRateLimiter = self._make()

    def _make(self) -> TokenBucketRateLimiter:
        return TokenBucketRateLimiter(self.burst_capacity, self.max_requests_per_second)

    async def on_request(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Around every request."""
        if self.global_limit:
            if not await self.global_limiter.consume():
                raise RateLimitError("Global rate limit exceeded")
            return await call_next(context)
        client = await self._client(context)
        if not await self._limiter(self.limiters, client, self._make).consume():
            raise RateLimitError(f"Rate limit exceeded for client: {client}")
        return await call_next(context)


class SlidingWindowRateLimitingMiddleware(_Limited):
    """So many requests in any minutes that follow each other, in this process.

    Args:
        max_requests: how many.
        window_minutes: in how many minutes.
        get_client_id: says whose request it is; without it, all callers share one limit.
    """

    def __init__(
        self,
        max_requests: int,
        window_minutes: int = 1,
        get_client_id: Callable[[MiddlewareContext[Any]], Any] | None = None,
    ) -> None:
        self.max_requests = max_requests
        self.window_seconds: int = window_minutes * 60
        self.get_client_id = get_client_id
        self.limiters: OrderedDict[str, SlidingWindowRateLimiter] = OrderedDict()

    def _make(self) -> SlidingWindowRateLimiter:
        return SlidingWindowRateLimiter(self.max_requests, self.window_seconds)

    async def on_request(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Around every request."""
        client = await self._client(context)
        if not await self._limiter(self.limiters, client, self._make).is_allowed():
            minutes = self.window_seconds // 60
            raise RateLimitError(
                f"Rate limit exceeded: {self.max_requests} requests per {minutes} minutes for client: {client}"
            )
        return await call_next(context)
