"""What functions are given besides their arguments: the context, and dependencies.

A parameter annotated `Context` gets the context. A parameter whose default is ``Depends(function)``, or one of the
``Current…()`` markers, gets what that gives; a generator or context manager is left when the call ends.
"""

import inspect
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin


class ContextMark:
    """The base of `Context`: what marks a parameter that gets it."""


current: ContextVar[Any] = ContextVar("millstream_compat_context")
"""The context of the call that runs."""


class Injected:
    """A default value that stands for something that is made for each call."""

    def __init__(
        self, make: Callable[..., Any], *, use_cache: bool = True, arguments: Mapping[str, Any] | None = None
    ) -> None:
        self.make = make
        self.use_cache = use_cache and not arguments
        self.arguments = dict(arguments or {})

    @property
    def dependency(self) -> Callable[..., Any]:
        """What makes the value."""
        return self.make


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


def is_context(annotation: Any) -> bool:
    """Whether a parameter with this annotation gets the context."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return any(is_context(part) for part in get_args(annotation))
    annotation = get_origin(annotation) or annotation
    return isinstance(annotation, type) and issubclass(annotation, ContextMark)


def injected_default(parameter: inspect.Parameter) -> Injected | None:
    """What a parameter gets besides arguments, if it is one of those."""
    if isinstance(parameter.default, Injected):
        return parameter.default
    if get_origin(parameter.annotation) is Annotated:
        return next((each for each in get_args(parameter.annotation)[1:] if isinstance(each, Injected)), None)
    return None


async def resolve(injected: Injected, stack: AsyncExitStack, made: dict[Any, Any]) -> Any:
    """The value for one parameter; `made` holds those that the call has already."""
    if injected.use_cache and injected.make in made:
        return made[injected.make]
    values = {**await _inner(injected.make, stack, made), **injected.arguments}
    for name, each in values.items():
        if isinstance(each, Injected):
            values[name] = await resolve(each, stack, made)
    value = await _open(injected.make, values, stack)
    made[injected.make] = value
    return value


async def _inner(make: Callable[..., Any], stack: AsyncExitStack, made: dict[Any, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for parameter in inspect.signature(make, eval_str=True).parameters.values():
        deeper = injected_default(parameter)
        if is_context(parameter.annotation):
            values[parameter.name] = current.get()
        elif deeper is not None:
            values[parameter.name] = await resolve(deeper, stack, made)
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
