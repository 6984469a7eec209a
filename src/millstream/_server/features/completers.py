"""Completers, ``f(value, arguments)``, and dependencies in their parameters."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from msgspec import Struct

from millstream._server.calls.call import Call
from millstream._server.features.dependency_resolver import CONTEXTS, call_with_dependencies
from millstream._server.functions.callables import hints_of
from millstream._server.functions.dependencies import dependencies_in, plan_dependencies


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
