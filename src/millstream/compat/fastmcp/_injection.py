"""What functions are given besides their arguments: the context, and dependencies.

A parameter annotated `Context` gets the context. A parameter whose default is ``Depends(function)``, or one of the
``Current…()`` markers, gets what that gives; a generator or context manager is left when the call ends.
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from msgspec import Struct, field

RunInThread = Callable[..., Awaitable[Any]]
"""``await run(function, *args)`` runs it in a worker thread."""


class ContextMark:
    """The base of `Context`: what marks a parameter that gets it."""


current: ContextVar[Any] = ContextVar("millstream_compat_context")
"""The context of the call that runs."""


class Making(Struct):
    """What one call has made so far of the values that it injects."""

    stack: AsyncExitStack
    """Leaves generators and context managers when the call ends."""
    arguments: Mapping[str, Any]
    """Those of the function, as it gets them."""
    thread: RunInThread | None = None
    made: dict[Any, Any] = field(default_factory=dict[Any, Any])


class Injected:
    """A default value that stands for something that is made for each call."""

    def __init__(
        self, make: Callable[..., Any], *, use_cache: bool = True, arguments: Mapping[str, Any] | None = None
    ) -> None:
        self.make = make
        self.use_cache: bool = use_cache and not arguments
        self.arguments: dict[str, Any] = dict(arguments or {})

    @property
    def dependency(self) -> Callable[..., Any]:
        """What makes the value."""
        return self.make

    def on(self, annotation: Any) -> "Injected":
        """The same for a parameter with this annotation."""
        return self

    async def value(self, making: Making) -> Any:
        """The value for one parameter."""
        if self.use_cache and self.make in making.made:
            return making.made[self.make]
        values = {**await _inner(self.make, making), **self.arguments}
        for name, each in values.items():
            if isinstance(each, Injected):
                values[name] = await each.value(making)
        value = await _open(self.make, values, making.stack)
        making.made[self.make] = value
        return value


def Depends(  # noqa: N802  read as a type
    dependency: Callable[..., Any], *, use_cache: bool = True, **arguments: Any
) -> Any:
    """A parameter's default: each call gets what the function gives; clients never see the parameter.

    Args:
        dependency: the function.
        use_cache: one value for all that ask in one call.
        arguments: for the function.
    """
    return Injected(dependency, use_cache=use_cache, arguments=arguments)


def is_union(annotation: Any) -> bool:
    """Whether an annotation has alternatives."""
    return get_origin(annotation) in (Union, UnionType)


def is_context(annotation: Any) -> bool:
    """Whether a parameter with this annotation gets the context."""
    if is_union(annotation) or get_origin(annotation) is Annotated:
        return any(is_context(part) for part in get_args(annotation))
    annotation = get_origin(annotation) or annotation
    return isinstance(annotation, type) and issubclass(annotation, ContextMark)


def injected_default(parameter: inspect.Parameter) -> Injected | None:
    """What a parameter gets besides arguments, if it is one of those."""
    if isinstance(parameter.default, Injected):
        return parameter.default
    if get_origin(parameter.annotation) is Annotated:
        said, *about = get_args(parameter.annotation)
        return next((each.on(said) for each in about if isinstance(each, Injected)), None)
    return None


async def _inner(make: Callable[..., Any], making: Making) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for parameter in inspect.signature(make, eval_str=True).parameters.values():
        deeper = injected_default(parameter)
        if is_context(parameter.annotation):
            values[parameter.name] = current.get()
        elif deeper is not None:
            values[parameter.name] = await deeper.value(making)
    return values


async def _open(make: Callable[..., Any], values: dict[str, Any], stack: AsyncExitStack) -> Any:
    if inspect.isasyncgenfunction(make):
        return await stack.enter_async_context(asynccontextmanager(make)(**values))
    if inspect.isgeneratorfunction(make):
        return stack.enter_context(contextmanager(make)(**values))
    value = make(**values)
    if inspect.isawaitable(value):
        value = await value
    if hasattr(value, "__aenter__") and hasattr(value, "__aexit__") and _is_made(value):
        return await stack.enter_async_context(value)
    if hasattr(value, "__enter__") and hasattr(value, "__exit__") and _is_made(value):
        return stack.enter_context(value)
    return value


def _is_made(value: Any) -> bool:
    """Whether a value is what ``@contextmanager`` gives; other values that can be entered are left to their users."""
    return type(value).__module__ == "contextlib"
