"""A tool: its description for clients, and how its function is run.

Everything that can be known at registration is: the plan of the function, the closure that runs it, the description
in the newest shape. A call decodes arguments, runs, encodes.
"""

import asyncio
import copy
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Unpack

from msgspec import Struct

from millstream.protocol import projection
from millstream.protocol.errors import ToolError
from millstream.protocol.jsonrpc import encode as encode_json
from millstream.protocol.revisions import Revision
from millstream.server.calls.call import Call
from millstream.server.calls.context import Context, send_progress
from millstream.server.calls.sync_context import SyncContext, Waits
from millstream.server.functions.description import Labels, described
from millstream.server.functions.plan import Plan, plan
from millstream.server.functions.results import ToolResult, as_text, encode, encode_result

Run = Callable[[Any, Call], Awaitable[Any]]
"""``run(arguments, call)``."""


class ToolAnnotations(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Hints about a tool for clients; never a promise (digest §9.1)."""

    title: str | None = None
    read_only_hint: bool | None = None
    destructive_hint: bool | None = None
    idempotent_hint: bool | None = None
    open_world_hint: bool | None = None


_SCALARS: Mapping[str, type] = {"integer": int, "boolean": bool}
_SCALAR_RESULTS = {
    "any": b'"content":[{"type":"text","text":"%b"}],"structuredContent":%b',
    "object": b'"content":[{"type":"text","text":"%b"}],"structuredContent":{"result":%b}',
    "none": b'"content":[{"type":"text","text":"%b"}]',
}
"""Members of the result of a number or boolean, by what structured content a revision has."""


class Tool:
    """One registered tool."""

    __slots__ = ("_described", "_simple", "name", "plain", "plan", "requires", "run", "timeout", "wraps")

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        input_schema: dict[str, Any] | None = None,
        output_schema: dict[str, Any] | None = None,
        timeout: float | None = None,
        thread: bool = True,
        home: object = None,
        requires: Mapping[str, Any] | None = None,
        **labels: Unpack[Labels],
    ) -> None:
        self.plan = plan(
            function,
            kind="tool",
            contexts=(Context, SyncContext),
            name=name,
            input_schema=input_schema,
            output_schema=output_schema,
        )
        self.name = self.plan.name
        self.requires: Mapping[str, Any] = requires or {}
        """Client capabilities without which a call is refused before it runs."""
        self.timeout = timeout
        self.plain = not (
            requires
            or timeout
            or self.plan.headers
            or self.plan.check
            or "stream" in self.plan.parameters
            or not issubclass(self.plan.arguments, Struct)
        )
        """A transport may decode its arguments and hand the call over prepared: nothing is to be done around it."""
        output = self.plan.output_schema
        self.wraps = output is not None and output.get("type") != "object"
        """Structured values are no objects: revisions that know only objects get them wrapped."""
        self._simple = str if output is None else _SCALARS.get(output.get("type", "")) if len(output) == 1 else None
        """Values of exactly this class need no check and no other encoder."""
        self.run = runner(self.plan, thread=thread, home=home)
        self._described = described(
            {"name": self.name}, self.plan.description, labels, inputSchema=self.plan.input_schema, outputSchema=output
        )

    def describe(self) -> dict[str, Any]:
        """The description in the newest shape."""
        return self._described

    def named(self, name: str) -> "Tool":
        """The same tool under another name."""
        other = copy.copy(self)
        other.name = name
        other._described = {**self._described, "name": name}
        return other

    def encode(self, value: Any, call: Call) -> bytes:
        """The members of the result for the call's revision.

        Raises:
            LocalError: the value is not what the tool promises.
        """
        revision = call.revision
        if type(value) is self._simple:
            data = encode_json(value)
            if self._simple is str:
                return b'"content":[{"type":"text","text":%b}]' % data
            return _SCALAR_RESULTS[revision.structured] % ((data,) if revision.structured == "none" else (data, data))
        if revision.structured == "object" and self.wraps and not isinstance(value, ToolResult):
            return self._wrapped(value)
        if isinstance(value, ToolResult):
            call.meta = value.meta
        members = encode_result(value, self.plan.output)
        if revision.structured == "any":
            return members
        return members if self._fits(revision) else projection.tool_result(members, revision)

    def _fits(self, revision: Revision) -> bool:
        """Results of this tool look the same in a revision as in the newest."""
        return revision.structured == "object" and self.plan.output is not None and not self.wraps

    def _wrapped(self, value: Any) -> bytes:
        data = encode(value)
        if self.plan.output is not None:
            self.plan.output.check(value, data)
        return b'"content":[{"type":"text","text":%b}],"structuredContent":{"result":%b}' % (
            encode_json(data.decode()),
            data,
        )


def runner(plan: Plan, *, thread: bool, home: object) -> Run:
    """The narrowest way to run a planned function in a call.

    Args:
        plan: of the function.
        thread: a `def` function runs in a worker thread.
        home: the server that it was registered on, which may be mounted on the one that runs.

    Raises:
        TypeError: the function asks for the wrong kind of context.
    """
    call_function, wants_context = plan.call, plan.context_parameter is not None
    threaded = thread and not plan.is_async
    if wants_context and plan.context_type is SyncContext and not threaded:
        raise TypeError(f"{plan.name}: SyncContext is for `def` functions in a worker thread; annotate ctx: Context")
    if wants_context and plan.context_type is Context and threaded:
        raise TypeError(
            f"{plan.name}: a `def` function runs in a worker thread and cannot await; annotate ctx: SyncContext, "
            "or make it `async def`"
        )
    if threaded:
        return _in_thread(plan, home)
    if plan.is_generator:
        return _streaming(plan, home)
    if plan.is_async:
        if wants_context:
            return lambda arguments, call: call_function(arguments, Context(call, home))
        return call_function  # what it takes for a context it does not use

    async def run(arguments: Any, call: Call) -> Any:
        return call_function(arguments, Context(call, home) if wants_context else None)

    return run


def _in_thread(plan: Plan, home: object) -> Run:
    call_function, wants_context = plan.call, plan.context_parameter is not None

    async def run(arguments: Any, call: Call) -> Any:
        context = Context(call, home)
        waits = Waits(context, asyncio.get_running_loop())
        work = _drain if plan.is_generator else _plainly
        try:
            return await call.services.threads.run(
                work, call_function, arguments, SyncContext(context, waits), wants_context
            )
        finally:
            waits.abandon()

    return run


def _plainly(function: Callable[..., Any], arguments: Any, context: SyncContext, wanted: bool) -> Any:
    return function(arguments, context if wanted else None)


def _drain(function: Callable[..., Any], arguments: Any, context: SyncContext, wanted: bool) -> Any:
    last: Any = None
    for count, last in enumerate(function(arguments, context if wanted else None), 1):
        context.progress(count, message=as_text(last))
    return last


def _streaming(plan: Plan, home: object) -> Run:
    call_function, wants_context = plan.call, plan.context_parameter is not None

    async def run(arguments: Any, call: Call) -> Any:
        last: Any = None
        count = 0
        values = call_function(arguments, Context(call, home) if wants_context else None)
        try:
            async for last in values:
                count += 1
                if call.token is not None:
                    told = call.progress.value if call.progress is not None else 0.0
                    await send_progress(call, max(count, told + 1), None, as_text(last))
        finally:
            await values.aclose()
        return last

    return run


async def run_with_timeout(run: Run, call: Call, arguments: Any, seconds: float) -> Any:
    """Run with a limit.

    Raises:
        ToolError: the function took longer.
    """
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            return await run(arguments, call)
    except TimeoutError:
        if scope.expired():
            call.cancelled = True
            raise ToolError(f"The tool {call.name} did not finish in {seconds:g} seconds.") from None
        raise
