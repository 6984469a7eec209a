"""What the functions behind `Depends` give to one call, each once, and the end of what they opened.

Whatever was opened is closed in the opposite order when the function is done: before its result is encoded, and also
when it failed, was cancelled, or stopped for a question. The error is raised at the ``yield``, as `contextlib` does it,
so a dependency can roll back; one that swallows the error doesn't turn the failure into a success.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any

from millstream._server.calls.call import Call
from millstream._server.calls.context import Context, shared_context
from millstream._server.calls.sync_context import SyncContext, Waits
from millstream._server.functions.dependencies import Dependency
from millstream._server.functions.needs import Need, need_of

CONTEXTS = (Context, SyncContext)
Exit = Callable[[BaseException | None], Awaitable[Any]]


async def around(
    call: Call, home: object, needs: Mapping[str, Need], work: Callable[[dict[str, Any]], Awaitable[Any]]
) -> Any:
    """Do the work of a call with the values of what it depends on, and close what was opened for it."""
    resolution, result, failed = _Resolution(call, home), None, None
    try:
        result = await work(await resolution.values(needs))
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

    async def values(self, needs: Mapping[str, Need]) -> dict[str, Any]:
        """The values of parameters."""
        return {name: await self._value(need) for name, need in needs.items()}

    async def close(self, failed: BaseException | None) -> BaseException | None:
        """Close what was opened.

        Args:
            failed: what the call ended with, if it failed.

        Returns:
            What it ends with now: the same, or what was raised while something closed.
        """
        while self._exits:
            try:
                await self._exits.pop()(failed)
            except BaseException as exc:
                failed = exc
        if self._waits is not None:
            self._waits.abandon()
        return failed

    async def _value(self, need: Need) -> Any:
        if need.key in self._overrides:
            need = _override(self._overrides[need.key])
        if need.key not in self._values:
            self._values[need.key] = await self._made(need)
        return self._values[need.key]

    async def _made(self, need: Need) -> Any:
        arguments = await self.values(need.needs)
        if need.context is not None:
            arguments[need.context] = self._blocking() if need.threaded else self._context
        if need.how == "awaitable":
            return await need.make(**arguments)
        if need.how == "async manager":
            manager = need.make(**arguments)
            value = await manager.__aenter__()
            self._exits.append(lambda exc: manager.__aexit__(*_three(exc)))
            return value
        if need.how == "manager":
            return await self._entered(_Held(need.make, arguments), threaded=need.threaded)
        if need.threaded:
            return await self._call.services.threads.run(_called, need.make, arguments)
        return need.make(**arguments)

    async def _entered(self, held: "_Held", *, threaded: bool) -> Any:
        threads = self._call.services.threads

        async def leave(exc: BaseException | None) -> None:
            # The thread that closes waits until the one that opens is done, even if the call is cancelled meanwhile.
            if threaded:
                await threads.run_anyway(held.leave, exc)
            else:
                held.leave(exc)

        self._exits.append(leave)
        return await threads.run(held.enter) if threaded else held.enter()

    def _blocking(self) -> SyncContext:
        if self._waits is None:
            self._waits = Waits(self._context, asyncio.get_running_loop())
        return SyncContext(self._context, self._waits)


class _Held:
    """A context manager that one thread enters and another may leave."""

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
                self._manager.__exit__(*_three(exc))


def _three(exc: BaseException | None) -> tuple[Any, Any, Any]:
    return (None, None, None) if exc is None else (type(exc), exc, exc.__traceback__)


def _called(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    return function(**arguments)


@lru_cache(maxsize=1024)
def _override(function: Callable[..., Any]) -> Need:
    return need_of(Dependency(function), CONTEXTS)
