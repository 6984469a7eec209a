"""The plan of a dependency: how the function behind a `Depends` is called, opened and closed, and what it needs itself.

Planned when the function that depends on it is registered, so that whatever is wrong is said then.
"""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from msgspec import Struct

from millstream._server.functions.dependencies import Dependency, dependencies_in
from millstream._server.functions.plan import context_in, hints_of, name_of

How = Literal["value", "awaitable", "manager", "async manager"]


class Need(Struct, frozen=True, eq=False):
    """A planned dependency."""

    key: Callable[..., Any]
    """The function as it was written: it runs once a call, and tests can put another in its place."""
    make: Callable[..., Any]
    """Gives a value, an awaitable or a context manager, as `how` says."""
    how: How
    threaded: bool
    context: str | None
    """The parameter that takes the context."""
    needs: Mapping[str, "Need"]


def needs_of(
    dependencies: Mapping[str, Dependency], contexts: tuple[type, type], path: tuple[Callable[..., Any], ...] = ()
) -> dict[str, Need]:
    """Plan dependencies, and theirs.

    Args:
        dependencies: by the name of the parameter.
        contexts: the classes that mark a parameter for the context: of coroutines, and of threads.
        path: who depends on them.

    Raises:
        TypeError: one has a parameter that nobody fills in, takes the wrong context, or depends on itself.
    """
    return {name: need_of(each, contexts, path) for name, each in dependencies.items()}


def need_of(dependency: Dependency, contexts: tuple[type, type], path: tuple[Callable[..., Any], ...] = ()) -> Need:
    """Plan one dependency; see `needs_of`."""
    function = dependency.function
    name = name_of(function)
    if function in path:
        raise TypeError(f"{name}: it depends on itself, by way of {name_of(path[-1])}")
    make, how = _nature(function)
    threaded = dependency.thread and how in ("value", "manager")
    signature, hints = inspect.signature(function), hints_of(function)
    context, kind = context_in(signature, hints, contexts, name)
    _check_context(name, kind, contexts, threaded=threaded)
    filled = dependencies_in(signature, hints)
    for parameter in signature.parameters.values():
        optional = parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if not optional and parameter.name != context and parameter.name not in filled:
            raise TypeError(
                f"{name}: nobody fills in the parameter {parameter.name!r} of this dependency. Give it a default, "
                "annotate it as Context, or mark it with Depends"
            )
    return Need(function, make, how, threaded, context, needs_of(filled, contexts, (*path, function)))


def _nature(function: Callable[..., Any]) -> tuple[Callable[..., Any], How]:
    if inspect.isasyncgenfunction(function):
        return contextlib.asynccontextmanager(function), "async manager"
    if inspect.isgeneratorfunction(function):
        return contextlib.contextmanager(function), "manager"
    if inspect.isclass(function):
        if hasattr(function, "__aenter__"):
            return function, "async manager"
        return function, "manager" if hasattr(function, "__enter__") else "value"
    # What `contextlib` has decorated is a plain function around a generator function.
    inner = inspect.unwrap(function)
    if inspect.isasyncgenfunction(inner):
        return function, "async manager"
    if inspect.isgeneratorfunction(inner):
        return function, "manager"
    called = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
    either = (function, called, inner)
    return function, "awaitable" if any(inspect.iscoroutinefunction(each) for each in either) else "value"


def _check_context(name: str, kind: type | None, contexts: tuple[type, type], *, threaded: bool) -> None:
    plain, blocking = contexts
    if kind is blocking and not threaded:
        raise TypeError(
            f"{name}: it doesn't run in a worker thread, so it can't take SyncContext; annotate ctx: Context"
        )
    if kind is plain and threaded:
        raise TypeError(
            f"{name}: a `def` dependency runs in a worker thread and can't await; annotate ctx: SyncContext, make it "
            "`async def`, or say Depends(…, thread=False) if it never blocks"
        )
