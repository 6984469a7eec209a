"""Dependencies of one call: the value of each `Depends` function, computed once, and cleanup.

Resources are closed in reverse order when the function is done, before its result is encoded, and also if it failed,
was cancelled, or stopped for a question. The error is raised at the ``yield``, as in `contextlib`, so a dependency can
roll back. A dependency that swallows the error doesn't turn the failure into a success.

Completers, ``f(value, arguments)``, can have dependencies, too.
"""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache, partial
from typing import Any

from msgspec import Struct

from millstream._server.calls.call import Call
from millstream._server.calls.context import Context, shared_context
from millstream._server.calls.sync_context import SyncContext, Waits
from millstream._server.functions.dependencies import (
    Dependency,
    PlannedDependency,
    dependencies_in,
    hints_of,
    plan_dependencies,
    plan_dependency,
)

CONTEXTS = (Context, SyncContext)
Exit = Callable[[BaseException | None], Awaitable[Any]]


async def call_with_dependencies(
    call: Call,
    home: object,
    dependencies: Mapping[str, PlannedDependency],
    work: Callable[[dict[str, Any]], Awaitable[Any]],
) -> Any:
    """Run the work of a call with the values of its dependencies, and close what was opened for it."""
    resolution, result, failed = _Resolution(call, home), None, None
    try:
        result = await work(await resolution.values(dependencies))
    except BaseException as exc:
        failed = exc
    try:
        failed = await resolution.close(failed)
        if failed is not None:
            raise failed
    finally:
        del failed  # its traceback refers to this frame
    return result


class _Resolution:
    """The dependencies of one call."""

    __slots__ = ("_call", "_context", "_exits", "_overrides", "_values", "_waits")

    def __init__(self, call: Call, home: object) -> None:
        self._call = call
        self._context = shared_context(call, home)
        self._overrides = call.services.overrides_of(home)
        self._values: dict[Callable[..., Any], Any] = {}
        self._exits: list[Exit] = []
        self._waits: Waits | None = None

    async def values(self, dependencies: Mapping[str, PlannedDependency]) -> dict[str, Any]:
        """Return the values of parameters."""
        return {name: await self._value(planned) for name, planned in dependencies.items()}

    async def close(self, failed: BaseException | None) -> BaseException | None:
        """Close the opened dependencies.

        Args:
            failed: The error that ended the call, if any.

        Returns:
            The same error, or the one raised while closing.
        """
        while self._exits:
            try:
                await self._exits.pop()(failed)
            except BaseException as exc:
                failed = exc
        if self._waits is not None:
            self._waits.abandon()
        return failed

    async def _value(self, planned: PlannedDependency) -> Any:
        if planned.key in self._overrides:
            planned = _override(self._overrides[planned.key])
        if planned.key not in self._values:
            self._values[planned.key] = await self._make(planned)
        return self._values[planned.key]

    async def _make(self, planned: PlannedDependency) -> Any:
        arguments = await self.values(planned.dependencies)
        if planned.context is not None:
            arguments[planned.context] = self._sync_context() if planned.threaded else self._context
        if planned.how == "awaitable":
            return await planned.make(**arguments)
        if planned.how == "async manager":
            manager = planned.make(**arguments)
            value = await manager.__aenter__()
            self._exits.append(lambda exc: manager.__aexit__(*_exc_info(exc)))
            return value
        if planned.how == "manager":
            return await self._enter(_ManagerSlot(planned.make, arguments), threaded=planned.threaded)
        if planned.threaded:
            return await self._call.services.threads.run(_call, planned.make, arguments, owner=self._call.owner)
        return planned.make(**arguments)

    async def _enter(self, slot: "_ManagerSlot", *, threaded: bool) -> Any:
        threads = self._call.services.threads

        async def leave(exc: BaseException | None) -> None:
            # The closing thread waits until the opening one is done, even if the call is cancelled.
            if threaded:
                await threads.run_anyway(slot.leave, exc)
            else:
                slot.leave(exc)

        self._exits.append(leave)
        return await threads.run(slot.enter, owner=self._call.owner) if threaded else slot.enter()

    def _sync_context(self) -> SyncContext:
        if self._waits is None:
            self._waits = Waits(self._context, asyncio.get_running_loop())
        return SyncContext(self._context, self._waits)


class _ManagerSlot:
    """A context manager that one thread enters and another can exit."""

    def __init__(self, make: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        self._make = make
        self._arguments = arguments
        self._manager: Any = None
        self._lock = threading.Lock()

    def enter(self) -> Any:
        with self._lock:
            manager = self._make(**self._arguments)
            value = manager.__enter__()
            self._manager = manager
            return value

    def leave(self, exc: BaseException | None) -> None:
        with self._lock:
            if self._manager is not None:
                self._manager.__exit__(*_exc_info(exc))


def _exc_info(exc: BaseException | None) -> tuple[Any, Any, Any]:
    return (None, None, None) if exc is None else (type(exc), exc, exc.__traceback__)


def _call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    return function(**arguments)


@lru_cache(maxsize=1024)
def _override(function: Callable[..., Any]) -> PlannedDependency:
    return plan_dependency(Dependency(function), CONTEXTS)


class CompleterFunction(Struct, frozen=True, eq=False):
    """A completer with dependencies."""

    run: Callable[[str, Mapping[str, str], Call], Awaitable[Any]]


def completer_of(function: Callable[..., Any], *, home: object) -> Callable[..., Any] | CompleterFunction:
    """Return a completer for the registry: the function itself if it has no dependencies.

    Raises:
        TypeError: A dependency is invalid.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # a function written in C
        return function
    dependencies = dependencies_in(signature, hints_of(function))
    if not dependencies:
        return function
    planned = plan_dependencies(dependencies, CONTEXTS)
    awaited = inspect.iscoroutinefunction(function)

    async def run(value: str, known: Mapping[str, str], call: Call) -> Any:
        def ask(values: dict[str, Any]) -> Awaitable[Any]:
            if awaited:
                found: Awaitable[Any] = function(value, known, **values)
                return found
            return call.services.threads.run(partial(function, value, known, **values), owner=call.owner)

        return await call_with_dependencies(call, home, planned, ask)

    return CompleterFunction(run)
