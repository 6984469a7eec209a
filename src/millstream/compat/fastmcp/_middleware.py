"""fastmcp's middleware: classes whose methods stand around calls."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Generic, TypeVar, cast

from msgspec import Struct, field
from msgspec.structs import replace

T = TypeVar("T")
R = TypeVar("R")


class MiddlewareContext(Struct, Generic[T], frozen=True):
    """What a middleware sees of a call."""

    message: T
    fastmcp_context: Any = None
    source: str = "client"
    type: str = "request"
    method: str | None = None
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))

    def copy(self, **changes: Any) -> "MiddlewareContext[T]":
        """The same, with changes."""
        return replace(self, **changes)


CallNext = Callable[[MiddlewareContext[T]], Awaitable[R]]

_HOOKS = {
    "tools/call": "on_call_tool",
    "resources/read": "on_read_resource",
    "prompts/get": "on_get_prompt",
    "tools/list": "on_list_tools",
    "resources/list": "on_list_resources",
    "resources/templates/list": "on_list_resource_templates",
    "prompts/list": "on_list_prompts",
    "completion/complete": "on_complete",
}
_LISTS = ("on_message", "on_request", *(name for name in _HOOKS.values() if "_list_" in name))


class Middleware:
    """The base. Each method awaits ``call_next(context)`` and gives its result, or something else."""

    async def __call__(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Stand around a call with every method that fits it."""
        inner = call_next
        names = ["on_message", f"on_{context.type}"]
        if context.method in _HOOKS:
            names.append(_HOOKS[context.method])
        for name in reversed(names):
            inner = partial(getattr(self, name), call_next=inner)
        return await inner(context)

    async def on_message(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Around everything."""
        return await call_next(context)

    async def on_request(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Around every request."""
        return await call_next(context)

    async def on_call_tool(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Around calls of tools."""
        return await call_next(context)

    async def on_read_resource(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Around reads of resources."""
        return await call_next(context)

    async def on_list_tools(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Around the list of tools, which the result is."""
        return await call_next(context)

    async def on_list_resources(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Around the list of resources."""
        return await call_next(context)

    async def on_list_resource_templates(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Around the list of resource templates."""
        return await call_next(context)

    async def on_list_prompts(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Around the list of prompts."""
        return await call_next(context)

    async def on_complete(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Around completion."""
        return await call_next(context)

    async def on_get_prompt(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Around prompts."""
        return await call_next(context)


def looks_at_lists(middleware: Any) -> bool:
    """Whether a middleware does something around lists; without one, lists are prepared."""
    kind: Any = cast("object", type(middleware))
    if not issubclass(kind, Middleware):
        return True
    return kind.__call__ is not Middleware.__call__ or any(
        getattr(kind, name) is not getattr(Middleware, name) for name in _LISTS
    )


class Asked(Struct):
    """Name and arguments of a call, which a middleware may replace."""

    name: str = ""
    arguments: dict[str, Any] | None = None
    uri: Any = None


async def run_through(
    chain: Sequence[Any], method: str, asked: Asked, context: Any, work: Callable[[Asked], Awaitable[Any]]
) -> Any:
    """Run the work of a call inside all middleware, the first one outermost."""
    if not chain:
        return await work(asked)

    async def innermost(around: MiddlewareContext[Any]) -> Any:
        return await work(around.message)

    inner: CallNext[Any, Any] = innermost
    for each in reversed(chain):
        inner = partial(each, call_next=inner)
    return await inner(MiddlewareContext(asked, context, method=method))
