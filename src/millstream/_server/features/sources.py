"""The data of registry items, its creation from Python functions, and the functions' dependencies.

A tool, resource, or prompt has a description, reads arguments, and runs. `ItemSource` holds these three, and
`source_of` creates it from a function.
"""

import asyncio
import copy
import inspect
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import AsyncExitStack, ExitStack, suppress
from contextvars import copy_context
from functools import lru_cache, partial
from types import CodeType
from typing import Any, ClassVar, Self

from msgspec import Struct

from millstream._protocol.errors import LocalError
from millstream._protocol.json_schema import Schema
from millstream._protocol.jsonrpc import Json
from millstream._protocol.metadata import ParamHeader
from millstream._protocol.notifications import CompleteRequestParams
from millstream._protocol.principal import Principal
from millstream._server.calls.call import Call, check_scopes
from millstream._server.calls.context import Context, send_progress, shared_context
from millstream._server.calls.sync_context import SyncContext, Waits
from millstream._server.features import Hooks, Read, Run, wrap_with_hooks
from millstream._server.functions.dependencies import (
    Dependency,
    PlannedDependency,
    dependencies_in,
    hints_of,
    plan_dependencies,
    plan_dependency,
)
from millstream._server.functions.description import Labels, Names
from millstream._server.functions.engine import as_text, encode_value
from millstream._server.functions.msgspec_engine import Output
from millstream._server.functions.parameters import Kind
from millstream._server.functions.plan import Invoker, Plan, plan, read_arguments, read_texts

CONTEXTS = (Context, SyncContext)


async def call_with_dependencies(
    call: Call,
    home: object,
    dependencies: Mapping[str, PlannedDependency],
    work: Callable[[dict[str, Any]], Awaitable[Any]],
) -> Any:
    """Resolve the dependencies of a call, run its work with the values, and close them."""
    async with AsyncExitStack() as exits:
        resolution = _Resolution(call, shared_context(call, home), call.services.overrides_of(home), exits)
        values = await resolution.resolve(dependencies)
        call.begin()
        return await work(values)


class _Resolution(Struct, eq=False):
    """The dependencies of one call.

    The value of a `Depends` function is computed once per run of a call. Its resources are closed in reverse order when
    the function is done, before its result is encoded, and also if it failed, was canceled, or stopped for a question.
    The error is raised at the ``yield``, as in `contextlib`, so a dependency can roll back. The call still fails if a
    dependency suppresses the error.
    """

    call: Call
    context: Context
    overrides: Mapping[Callable[..., Any], Callable[..., Any]]
    exits: AsyncExitStack
    """Closes the opened dependencies."""
    values: dict[Callable[..., Any], Any] = {}
    sync_context: SyncContext | None = None
    """The context of functions in threads."""

    async def resolve(self, dependencies: Mapping[str, PlannedDependency]) -> dict[str, Any]:
        """Return the values of parameters."""
        return {name: await self._value(planned) for name, planned in dependencies.items()}

    async def _value(self, planned: PlannedDependency) -> Any:
        if planned.key in self.overrides:
            planned = _override(self.overrides[planned.key])
        if planned.key not in self.values:
            self.values[planned.key] = await self._make(planned)
        return self.values[planned.key]

    async def _make(self, planned: PlannedDependency) -> Any:
        arguments = await self.resolve(planned.dependencies)
        if planned.context is not None:
            arguments[planned.context] = self._sync() if planned.threaded else self.context
        make = partial(planned.make, **arguments)
        if planned.how == "awaitable":
            return await make()
        if planned.how == "async manager":
            manager = make()

            async def leave(*exc: Any) -> None:
                await manager.__aexit__(*exc)

            value = await manager.__aenter__()
            self.exits.push_async_exit(leave)
            return value
        if planned.how == "manager":
            return await self._enter(make, threaded=planned.threaded)
        return await self.call.services.threads.run(make, owner=self.call.owner) if planned.threaded else make()

    def _sync(self) -> SyncContext:
        if self.sync_context is None:
            waits = Waits(self.context, asyncio.get_running_loop())
            self.exits.callback(waits.abandon)
            self.sync_context = SyncContext(self.context, waits)
        return self.sync_context

    async def _enter(self, make: Callable[[], Any], *, threaded: bool) -> Any:
        threads, stack, lock, context = self.call.services.threads, ExitStack(), threading.Lock(), copy_context()

        def run(function: Callable[..., Any], *args: Any) -> Any:
            with lock:  # wait until the opening thread is done, even if the call is canceled
                return context.run(function, *args)

        def enter() -> Any:
            return stack.enter_context(make())

        async def close(*exc: Any) -> None:
            if threaded:
                await threads.run_anyway(run, stack.__exit__, *exc)
            else:
                stack.__exit__(*exc)

        self.exits.push_async_exit(close)
        if not threaded:
            return enter()
        value = await threads.run(run, enter, owner=self.call.owner)
        own = copy_context()
        for variable, each in context.items():
            if own.get(variable, context) is not each:
                self.exits.callback(variable.reset, variable.set(each))
        return value


@lru_cache(maxsize=1024)
def _override(function: Callable[..., Any]) -> PlannedDependency:
    return plan_dependency(Dependency(function), CONTEXTS)


Completer = Callable[[str, Mapping[str, str], Call], Awaitable[Any]]
"""``complete(value, arguments, call)``."""


def completer_of(function: Callable[..., Any], *, home: object) -> Completer:
    """Return a completer for the registry.

    Args:
        function: ``f(value, arguments)``, which can have dependencies.
        home: The server it's registered on.

    Raises:
        TypeError: A dependency is invalid.
    """
    planned: dict[str, PlannedDependency] = {}
    with suppress(ValueError):  # the function is written in C
        planned = plan_dependencies(dependencies_in(inspect.signature(function), hints_of(function)), CONTEXTS)
    awaited = inspect.iscoroutinefunction(function)

    async def complete(value: str, known: Mapping[str, str], call: Call) -> Any:
        def ask(values: dict[str, Any]) -> Awaitable[Any]:
            if awaited:
                found: Awaitable[Any] = function(value, known, **values)
                return found
            return call.services.threads.run(partial(function, value, known, **values), owner=call.owner)

        return await call_with_dependencies(call, home, planned, ask)

    return complete


def require_scopes(run: Run, scopes: frozenset[str]) -> Run:
    """Return a `run` that checks the caller's scopes, or `run` itself if it needs none.

    Args:
        run: The function to protect.
        scopes: Scopes, all of which the caller needs.

    Example:
        ``item.run = require_scopes(item.run, frozenset({"orders:write"}))``
    """
    if not scopes:
        return run

    def run_if_granted(arguments: Any, call: Call) -> Awaitable[Any]:
        check_scopes(call, scopes)
        return run(arguments, call)

    return run_if_granted


Visible = Callable[[Principal | None], bool]
"""Returns whether a caller sees an item."""


def both(first: Visible | None, second: Visible | None) -> Visible | None:
    """Return the condition that holds if two others do: ``item.visible = both(item.visible, is_staff)``.

    Args:
        first, second: The conditions, or None without one.
    """
    if first is None or second is None:
        return first or second
    return lambda principal: first(principal) and second(principal)


def for_groups(groups: Collection[str]) -> Visible | None:
    """Return the condition for callers in one of these groups: ``item.visible = for_groups(["staff"])``.

    Args:
        groups: The groups, or none for no condition.
    """
    return (lambda principal: principal is not None and principal.in_group(groups)) if groups else None


class ItemSource(Struct, frozen=True):
    """The arguments, description, and callable of an item.

    Example:
        >>> async def run(arguments: dict[str, Any], call: Call) -> int:
        ...     return arguments["a"] + arguments["b"]
        >>> schema = {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
        >>> host.add_item(Tool(ItemSource("add", run, msgspec.json.decode, schema=schema)))
    """

    name: str
    run: Run
    read: Read
    description: str = ""
    schema: Schema = {}
    """The schema of the arguments."""
    output: Output | None = None
    """The output schema and encoder of a tool."""
    headers: tuple[ParamHeader, ...] = ()
    """Arguments that are repeated in headers."""
    decode: Read | None = None
    """Decodes raw arguments to a struct, if no other preparation is needed."""
    reads_all: bool = False
    """See `Engine.reads_all`."""
    code: CodeType | None = None
    """The code of the function, to locate warnings."""
    asks: bool = True
    """Whether a call may ask the client."""
    asks_first: bool = False
    """Whether it may ask before it does anything else, for example in dependencies."""
    prepares: bool = False
    """Whether something else runs before the function, such as dependencies. It calls `Call.begin` afterwards."""
    untyped: tuple[str, ...] = ()
    """Parameters without an annotation."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the arguments."""
        return tuple(self.schema.get("properties", ()))

    def choices(self, argument: str) -> list[str]:
        """Return all values of an argument that is an enum, `Literal`, or `bool`; otherwise an empty list.

        Args:
            argument: Name of the argument.
        """
        node = self.schema.get("properties", {}).get(argument, {})
        choices = node.get("enum", ["true", "false"] if node.get("type") == "boolean" else [])
        return [str(each) for each in choices]


class Item:
    """The common part of tools, prompts, resources, and templates: visibility, arguments, execution, and
    description.

    Example:
        ``item.visible = lambda principal: principal is not None`` hides it from anonymous callers.
    """

    kind: ClassVar[str]
    """The kind for hooks: tools, prompts, or resources."""
    origin: str = ""
    """Name of the upstream that it comes from, if any."""
    main_name: str = ""
    """The name at the main address, if the item is another address's copy. Limits and records use it."""
    short_name: str = ""
    """Name without the upstream's prefix."""
    long_name: str = ""
    """The upstream's own name with the prefix, if some models' APIs reject it. Callers can use it as well."""
    companion_of: Collection[str] | None = None
    """Names of upstreams, or "" for the server itself. A set (`Server.add_set`) that has an item of one of them also
    has this one, without choosing it. With no names, each set has it. None for other items.
    """
    fixed: frozenset[str] = frozenset()
    """Names of the arguments that a policy or a set has fixed."""
    naming: ClassVar[str] = "name"
    """The member of the description that identifies the item."""
    _described: Json

    def __init__(self, name: str, source: ItemSource, scopes: Names | None, labels: Labels) -> None:
        self.name: str = name
        """The name or URI for clients."""
        self.read: Read = source.read
        self.scopes: frozenset[str] = frozenset(scopes or ())
        self.tags: frozenset[str] = frozenset(labels.get("tags") or ())
        self.enabled: bool = labels.get("enabled") is not False
        """Whether the item is enabled from the start."""
        self.visible: Visible | None = both(for_groups(labels.get("groups") or ()), labels.get("visible"))
        """Returns whether a caller sees the item."""
        self.asks: bool = source.asks
        """Whether calls may ask the client."""
        self.asks_first: bool = source.asks_first
        """Whether calls may ask before the body of the function starts."""
        self.asks_inside: bool = source.asks and not _QUESTIONS.isdisjoint(_find_names(source.code))
        """Whether the function itself contains a question."""
        self.prepares: bool = source.prepares or source.asks_first
        """See `ItemSource`."""
        self.path: tuple[Hooks, ...] = ()
        """The middleware of each server that the item is reached through, if any."""
        self.run: Run = require_scopes(source.run, self.scopes)
        self.parameters: tuple[str, ...] = source.parameters
        self.choices: Callable[[str], list[str]] = source.choices

    def describe(self) -> Json:
        """Return the description in the newest shape."""
        return self._described

    def set_description(self, description: Json) -> None:
        """Replace the description of an item that isn't registered yet.

        Args:
            description: The description in the newest shape.
        """
        self._described = description

    async def complete(self, params: CompleteRequestParams, call: Call) -> bytes | None:
        """Return the members of a completion result, or None to use the registry's completers.

        Args:
            params: The argument to complete, and the values of the other arguments.
        """
        return None

    def within(self, hooks: Hooks) -> Self:
        """Return a copy of the item with its server's middleware around it.

        Args:
            hooks: The middleware.
        """
        other = copy.copy(self)
        other.path = (hooks, *self.path)
        if hooks.for_kind(self.kind):
            other.asks = other.asks_first = other.prepares = True
        run = wrap_with_hooks(self.kind, self.name, self.run, self.read, hooks, begins=not self.prepares)
        other.run = require_scopes(run, self.scopes)
        return other

    def restrict(self, rules: Mapping[str, Any]) -> Self:
        """Return a copy of the item with the conditions of a server that mounts its server.

        Args:
            rules: The options of `Server.mount`.
        """
        other, scopes = copy.copy(self), frozenset(rules.get("scopes") or ())
        other.scopes |= scopes
        other.run = require_scopes(self.run, scopes)
        other.tags |= frozenset(rules.get("tags") or ())
        other.visible = both(for_groups(rules.get("groups") or ()), self.visible)
        return other

    def with_name(self, name: str) -> Self:
        """Return a copy of the item with another name or URI.

        Args:
            name: The new name or URI.
        """
        other = copy.copy(self)
        other.name = name
        other._described = {**self._described, self.naming: name}
        return other


_PLANNED = ("name", "input_schema", "output_schema", "coerce")
"""Options for `plan`."""


def source_of(
    function: Callable[..., Any], kind: Kind, home: object, options: Mapping[str, Any]
) -> tuple[ItemSource, dict[str, Any]]:
    """Return a source for a function, and the options that it doesn't use.

    Args:
        function: Any callable with a signature.
        kind: The kind of item.
        home: The server it's registered on, which can be mounted on the running one.
        options: The checked options of a decorator.

    Raises:
        TypeError, ValueError, ImportError: As for `plan`, or the function takes the wrong kind of context.
    """
    rest = dict(options)
    thread: bool = rest.pop("thread", True)
    made = plan(function, kind=kind, contexts=CONTEXTS, **{name: rest.pop(name) for name in _PLANNED if name in rest})
    direct = made.check is None
    asks_first = _takes_context(plan_dependencies(made.dependencies, CONTEXTS))
    source = ItemSource(
        made.name,
        runner(made, thread=thread, home=home),
        (lambda raw: read_arguments(made, raw)) if kind == "tool" else (lambda texts: read_texts(made, texts)),
        description=made.description,
        schema=made.input_schema,
        output=made.output,
        headers=made.headers,
        decode=made.decode if direct else None,
        reads_all=made.engine.reads_all,
        code=made.code,
        asks=made.context_type is not None or asks_first,
        asks_first=asks_first,
        prepares=bool(made.dependencies),
        untyped=made.untyped,
    )
    return source, rest


_QUESTIONS = frozenset(("elicit", "elicit_url", "sample", "roots", "ask"))
"""Methods of `Context` that ask the client."""


def _find_names(code: object) -> set[str]:
    """Return the names that code uses, also in functions inside it."""
    return {*code.co_names}.union(*map(_find_names, code.co_consts)) if isinstance(code, CodeType) else set()


def _takes_context(dependencies: Mapping[str, PlannedDependency]) -> bool:
    return any(each.context is not None or _takes_context(each.dependencies) for each in dependencies.values())


def runner(plan: Plan, *, thread: bool, home: object) -> Run:
    """Return the fastest way to run a planned function in a call.

    Args:
        plan: The function's plan.
        thread: Whether a `def` function runs in a worker thread.
        home: The server it's registered on, which can be mounted on the running one.

    Raises:
        TypeError: The function takes the wrong kind of context.
    """
    call_function = plan.call
    threaded = thread and not plan.is_async
    if plan.context_type is SyncContext and not threaded:
        raise TypeError(f"{plan.name}: SyncContext is for `def` functions in a worker thread. Annotate ctx: Context.")
    if plan.context_type is Context and threaded:
        raise TypeError(
            f"{plan.name}: a `def` function runs in a worker thread and can't await. Annotate ctx: SyncContext, "
            "or make it `async def`."
        )
    if plan.dependencies:
        return _with_dependencies(plan, home, threaded=threaded)
    if threaded:
        return _in_thread(plan, home, call_function)
    if plan.is_generator:
        return _run_generator(plan, home, call_function)
    if not plan.is_async:
        return _plain(plan, home, call_function)
    if plan.context_type is not None:
        return lambda arguments, call: call_function(arguments, Context(call, home))
    return call_function  # the function ignores the context argument


def _with_dependencies(plan: Plan, home: object, *, threaded: bool) -> Run:
    """Return a `run` that resolves the function's dependencies first."""
    dependencies = plan_dependencies(plan.dependencies, CONTEXTS)
    way = _in_thread if threaded else _run_generator if plan.is_generator else _plain

    async def run(arguments: Any, call: Call) -> Any:
        def work(values: dict[str, Any]) -> Awaitable[Any]:
            return way(plan, home, lambda given, ctx: plan.call(given, ctx, values))(arguments, call)

        return await call_with_dependencies(call, home, dependencies, work)

    return run


def _plain(plan: Plan, home: object, call_function: Invoker) -> Run:
    is_async, wants_context = plan.is_async, plan.context_parameter is not None

    async def run(arguments: Any, call: Call) -> Any:
        value = call_function(arguments, Context(call, home) if wants_context else None)
        return await value if is_async else value

    return run


def _in_thread(plan: Plan, home: object, call_function: Invoker) -> Run:
    work = partial(_drain, plan, call_function) if plan.is_generator else call_function
    if plan.context_parameter is None and not plan.is_generator:
        return lambda arguments, call: call.services.threads.run(work, arguments, None, owner=call.owner)

    async def run(arguments: Any, call: Call) -> Any:
        context = Context(call, home)
        waits = Waits(context, asyncio.get_running_loop())
        try:
            return await call.services.threads.run(work, arguments, SyncContext(context, waits), owner=call.owner)
        finally:
            waits.abandon()

    return run


def _drain(plan: Plan, function: Invoker, arguments: Any, context: SyncContext) -> Any:
    last: Any = None
    for count, last in enumerate(function(arguments, context), 1):
        context.progress(count, message=_progress_text(plan, last))
    return last


def _progress_text(plan: Plan, value: Any) -> str:
    """Return a yielded value as text, in the form that it has as the result."""
    if plan.engine.output is not None:
        with suppress(LocalError):  # progress can have another type
            return encode_value(value, plan.engine.output).decode()
    return as_text(value)


async def _yield_each(values: Iterable[Any]) -> AsyncGenerator[Any, None]:
    for value in values:
        yield value


def _run_generator(plan: Plan, home: object, call_function: Invoker) -> Run:
    wants_context = plan.context_parameter is not None

    async def run(arguments: Any, call: Call) -> Any:
        last: Any = None
        count = 0
        values = call_function(arguments, Context(call, home) if wants_context else None)
        if not plan.is_async:
            values = _yield_each(values)
        try:
            async for last in values:
                count += 1
                if call.token is not None or call.tee is not None:
                    reported = call.progress.value if call.progress is not None else 0.0
                    await send_progress(call, max(count, reported + 1), None, _progress_text(plan, last))
        finally:
            await values.aclose()
        return last

    return run
