"""Tools: their descriptions, arguments, execution, and results.

A tool is built from an `ItemSource` and has no knowledge of functions. Everything is computed at registration.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any, Literal, Self, Unpack, cast

from msgspec import Struct

from millstream._override import override
from millstream._protocol import revisions
from millstream._protocol.content import ToolAnnotations, ToolAnnotationsDict
from millstream._protocol.errors import ToolUnavailable
from millstream._protocol.json_schema import is_object, members, walk
from millstream._protocol.jsonrpc import Json
from millstream._protocol.jsonrpc import encode as encode_json
from millstream._protocol.metadata import (
    CLIENT_CAPABILITIES,
    TASKS,
    ParamHeader,
)
from millstream._server.calls.call import Call
from millstream._server.calls.idempotency import KEY
from millstream._server.features import Hooks, Run
from millstream._server.features.sources import Item, ItemSource, source_of
from millstream._server.functions.dependencies import name_of, warn_author
from millstream._server.functions.description import Labels, Names, check_options, describe_item
from millstream._server.functions.engine import ToolResult, encode_result, encode_value
from millstream._server.functions.msgspec_engine import Output
from millstream._suggestions import suggest
from millstream._text import pluralize


class ToolOptions(Labels, total=False):
    """Options of ``@mcp.tool``."""

    name: str | None
    annotations: ToolAnnotations | ToolAnnotationsDict | None
    input_schema: Json | None
    """A schema that is listed unchanged. Arguments are validated against it."""
    output_schema: Json | None
    timeout: float | None
    """Maximum duration of a call in seconds, or 0 for no limit."""
    thread: bool
    """Whether a `def` function runs in a worker thread."""
    replay: bool | None
    """Whether the function may run again from its start, if the process that waits for an answer is gone."""
    idempotency: bool | str | None
    """Whether calls with the same key run once, or a time such as ``10m``, in which calls with the same arguments count
    as one, too.
    """
    requires: Mapping[str, Any] | None
    """Client capabilities that a call requires."""
    scopes: Names | None
    """The scopes that a caller needs to see and run the tool."""
    limit: str | None
    """Rate limit per caller: ``10/minute``."""
    cost: float | None
    """Number of calls that one call counts as in the server's rate limits and quota."""
    concurrency: int | None
    """Maximum number of concurrent calls, over all callers."""
    result_tokens: int | None
    """Maximum length of a result in estimated tokens. A caller gets the beginning of a longer one, and the URI of the
    whole.
    """
    coerce: bool
    """Accept ``"3"`` as 3 and JSON strings as lists or objects and ignore unknown arguments."""
    task: Literal["allowed", "required"] | None
    """Whether calls become tasks for clients that declare the tasks extension. Calls of other clients are plain calls,
    or are rejected with ``required``.
    """
    task_ttl: float | None
    """Seconds after which a task and its result are deleted, instead of ``Settings.task_ttl``."""
    task_retry: bool
    """Whether a task runs again from its start if its worker stopped. Otherwise, the task fails."""
    defer_task: bool
    """Whether the call becomes a task only when the function awaits `Context.start_task`."""


_NAME = re.compile("[A-Za-z_][A-Za-z0-9_-]{0,63}")
"""MCP also allows dots, digits at the start, and 128 characters (2025-11-25, server/tools). Claude Desktop then rejects
all tools of a server, and Gemini's API all of a request.
"""
_WORDS = re.compile(r"[_\W]+|(?<=[a-z0-9])(?=[A-Z])")
NAMES_THAT_WORK = "use 1 to 64 ASCII letters, digits, underscores, and hyphens, and begin with a letter"
_SCALARS: Mapping[str, type] = {"integer": int, "boolean": bool}
_SCALAR_RESULTS = {
    "any": b'"content":[{"type":"text","text":"%b"}],"structuredContent":%b',
    "object": b'"content":[{"type":"text","text":"%b"}],"structuredContent":{"result":%b}',
    "none": b'"content":[{"type":"text","text":"%b"}]',
}
"""Members of a numeric or boolean result, by the revision's kind of structured content."""


class TaskRules(Struct, frozen=True):
    """How the calls of a tool become tasks: ``TaskRules(required=True)``. See `ToolOptions`."""

    required: bool = False
    ttl: float | None = None
    retry: bool = False
    deferred: bool = False


class Tool(Item):
    """A tool from any source: ``Tool(ItemSource("add", run, read, schema=schema), limit="10/minute")``"""

    kind = "tools"
    version: str = ""
    """A digest of the definition and the rules, if people have to approve calls."""

    def __init__(  # noqa: PLR0913  the options of tools, and named
        self,
        source: ItemSource,
        *,
        timeout: float | None = None,
        replay: bool | None = None,
        idempotency: bool | str | None = None,
        requires: Mapping[str, Any] | None = None,
        scopes: Names | None = None,
        limit: str | None = None,
        cost: float | None = None,
        concurrency: int | None = None,
        task: "TaskRules | None" = None,
        result_tokens: int | None = None,
        annotations: ToolAnnotations | Mapping[str, Any] | None = None,
        **labels: Unpack[Labels],
    ) -> None:
        self.idempotency: bool | str = idempotency or False
        """Whether calls with the same key run once, or how long calls with the same arguments count as one, too."""
        if self.idempotency:
            if replay or (task is not None and task.retry):
                option = "replay" if replay else "task_retry"
                raise ValueError(f"{source.name}: with idempotency, a call never runs again. Remove {option}=True.")
            replay, labels["meta"] = False, {**(labels.get("meta") or {}), KEY: True}
        needed = dict(requires or {})
        _check_required(source, needed)
        if task is not None and task.required:
            needed["extensions"] = {**needed.get("extensions", {}), TASKS: {}}
        super().__init__(source.name, source, scopes, labels)
        self.headers: tuple[ParamHeader, ...] = source.headers
        self.timeout: float | None = timeout
        self.limit: str = limit or ""
        self.concurrency: int = concurrency or 0
        """Maximum number of concurrent calls, or 0 for no limit."""
        self.limited: bool = bool(limit or concurrency)
        """Whether the tool has its own limits."""
        self.cost: float = 1.0 if cost is None else float(cost)
        self.task: TaskRules | None = task
        """Rules for turning calls into tasks, or None if they never become tasks."""
        self.result_tokens: int = result_tokens or 0
        """Maximum length of a result in estimated tokens, or 0 for no limit."""
        self.requires: Mapping[str, Any] = needed
        """Client capabilities that a call requires."""
        self.decode: Callable[[Any], Any] = cast("Callable[[Any], Any]", source.decode)
        """Decodes raw arguments to a struct. Only for a tool that is `plain`."""
        self.reads_all: bool = source.reads_all
        """See `Engine.reads_all`. Only for a tool that is `plain`."""
        self.plain: bool = source.decode is not None and not (
            self.requires or self.headers or self.visible or self.idempotency or "stream" in self.parameters
        )
        """Whether a transport can decode the arguments and pass a prepared call, because nothing wraps the tool."""
        self.output: Output | None = source.output
        """The output schema and encoder. Clients don't see the schema if results can be shortened."""
        output = None if source.output is None else source.output.schema
        self.wraps = output is not None and output.get("type") != "object"
        """Whether structured values have to be wrapped for revisions that allow only objects."""
        self._simple = str if output is None else _SCALARS.get(output.get("type", "")) if len(output) == 1 else None
        """The class with values that don't need validation or another encoder."""
        self._described = describe_item(
            {"name": self.name},
            source.description,
            {**labels, "annotations": annotations, "title": _title(source, labels.get("title"), annotations)},
            # Some clients require `properties`.
            inputSchema={"type": "object", "properties": {}} | source.schema,
            outputSchema=None if self.result_tokens else output,
        )
        hints = members(self._described.get("annotations"))
        hint = hints.get("readOnlyHint") or hints.get("idempotentHint") or None
        self.replay: bool | None = hint if replay is None else replay
        """Whether the function may run again from its start, if the process that waits for an answer is gone. With
        None, the setting decides.
        """
        self.unclear: str = _unclear(source, self._described)
        """A warning for the author about missing information for models, or an empty string."""

    @override
    def within(self, hooks: Hooks) -> Self:
        """Return a copy with middleware. See `Item`."""
        other = super().within(hooks)
        other.plain = self.plain and not hooks.wide
        return other

    @override
    def restrict(self, rules: Mapping[str, Any]) -> Self:
        """See `Item`."""
        other = super().restrict(rules)
        other.limit = self.limit or rules.get("limit") or ""
        other.limited = bool(other.limit or other.concurrency)
        other.plain = self.plain and other.visible is None
        return other

    def encode(self, value: Any, call: Call) -> bytes:
        """Return the members of the result for the call's revision.

        Args:
            value: The return value of the tool's function.
            call: The call.

        Raises:
            LocalError: The value doesn't match the tool's output schema.
        """
        revision = call.revision
        if type(value) is self._simple:
            data = encode_json(value)
            if self._simple is str:
                return b'"content":[{"type":"text","text":%b}]' % data
            return _SCALAR_RESULTS[revision.structured] % ((data,) if revision.structured == "none" else (data, data))
        if revision.structured == "object" and self.wraps and not isinstance(value, ToolResult):
            data = encode_value(value, self.output)
            text = encode_json(data.decode())
            return b'"content":[{"type":"text","text":%b}],"structuredContent":{"result":%b}' % (text, data)
        if isinstance(value, ToolResult) and value.meta:
            call.meta = {**(call.meta or {}), **value.meta}
        can_be_short = self.result_tokens and isinstance(value, ToolResult)
        members = encode_result(value, None if can_be_short else self.output)
        if revision.structured == "any":
            return members
        # With the same kinds of content, results with an object schema look the same as in the newest revision.
        same = revision.structured == "object" and self.output is not None and not self.wraps
        same = same and revision.content >= revisions.NEWEST.content
        return members if same else revisions.project_tool_result(members, revision, wraps=self.wraps)


def tool_of(function: Callable[..., Any], *, home: object = None, **options: Unpack[ToolOptions]) -> Tool:
    """Return a tool for a function.

    Args:
        function: Any callable with a signature.
        home: The server it's registered on.
        options: See `ToolOptions` and `Labels`.

    Raises:
        TypeError, ValueError, ImportError: The function can't be a tool. The message explains what to change.
    """
    check_options(name_of(function), options, ToolOptions, ToolAnnotations)
    source, rest = source_of(function, "tool", home, options)
    rest["task"] = _task_rules(name_of(function), rest)
    check_tool_name(source.name, source.code)
    _check_schema(source)
    return Tool(source, **rest)


def _task_rules(name: str, options: dict[str, Any]) -> TaskRules | None:
    """Remove the task options from `options` and return them as rules."""
    task, ttl = options.pop("task", None), options.pop("task_ttl", None)
    retry, deferred = bool(options.pop("task_retry", False)), bool(options.pop("defer_task", False))
    if task is not None:
        return TaskRules(task == "required", ttl, retry, deferred)
    if ttl or retry or deferred:
        raise ValueError(f"{name}: options for tasks require task='allowed' or task='required'.")
    return None


def works_everywhere(name: str) -> bool:
    """Return whether every client accepts a tool name: ``works_everywhere("find_books")``. See `NAMES_THAT_WORK`.

    Args:
        name: The name, with its prefix.
    """
    return _NAME.fullmatch(name) is not None


def title_of(name: str) -> str:
    """Return a name as words: ``find_books`` becomes "Find books"."""
    words = _WORDS.sub(" ", name).strip()
    return words[:1].upper() + words[1:]


def _title(source: ItemSource, given: str | None, annotations: Any) -> str | None:
    """Return the title of a tool. Some clients hide tools without one, so the default comes from the function's
    name.
    """
    other = annotations.get("title") if is_object(annotations) else getattr(annotations, "title", None)
    if given is not None or source.code is None or other:
        return given or None
    return title_of(source.name)


def _unclear(source: ItemSource, described: Mapping[str, Any]) -> str:
    """Return a warning about information that models need but the function lacks."""
    found: list[str] = []
    if source.untyped:
        names = ", ".join(map(repr, source.untyped))
        first = source.untyped[0]
        kind = "Context" if first.strip("_") in ("context", "ctx", "mcp_context", "mcp_ctx") else "int"
        found.append(f"clients see no type for {names}. Annotate the parameters, as in {first}: {kind}")
    if source.code is not None and "description" not in described:
        found.append("models see no description. Write a docstring")
    return "; ".join(found)


def check_tool_name(name: str, code: CodeType | None = None) -> None:
    """Warn the author if some clients reject a tool's name: ``check_tool_name("find books")``.

    Args:
        code: Code of the tool's function, to show its location in the warning. By default, the caller's.
    """
    if not works_everywhere(name):
        warn_author(f"The tool name {name!r} doesn't work with every client: {NAMES_THAT_WORK}", code)


def _check_schema(source: ItemSource) -> None:
    """Warn the author if model APIs would reject a tool's argument schema, and all other tools with it."""
    if composed := [each for each in ("oneOf", "anyOf", "allOf") if each in source.schema]:
        warn_author(
            f"{source.name}: Claude's API rejects schemas with {composed[0]!r} at their root, and every request with "
            "such a tool. List all properties at the root, and check the alternatives in the function",
            source.code,
        )
    properties = (members(node.get("properties")) for node in walk(source.schema))
    if names := [name for each in properties for name in each if not PROPERTY_NAME.fullmatch(name)]:
        others = f" (and {len(names) - 1:,} more)" if len(names) > 1 else ""
        warn_author(
            f"{source.name}: the argument name {names[0]!r}{others} doesn't work with every model: Claude's API "
            "refuses every request with such a tool. Use up to 64 ASCII letters, digits, underscores, hyphens, dots",
            source.code,
        )
    if any("" in node.get("enum", ()) for node in walk(source.schema)):
        warn_author(
            f"{source.name}: Gemini's API rejects empty choices, and every request with such a tool. Let the "
            "argument be None instead",
            source.code,
        )
    if (size := len(encode_json(source.schema))) > _MAX_SCHEMA:
        warn_author(
            f"{source.name}: the argument schema has {size:,} bytes, and claude.ai drops tools with more "
            f"than {_MAX_SCHEMA:,}. Shorten descriptions, or split the tool",
            source.code,
        )


_MAX_SCHEMA = 16 * 1024
PROPERTY_NAME = re.compile("[a-zA-Z0-9_.-]{1,64}")
"""Names of arguments that every model's API accepts. Some APIs reject all tools if one has any other name."""


def _check_required(source: ItemSource, requires: Mapping[str, Any]) -> None:
    """Warn about client capabilities that MCP doesn't define. Clients can declare their own, but few do."""
    for name, inner in requires.items():
        known = CLIENT_CAPABILITIES.get(name, tuple(CLIENT_CAPABILITIES))
        odd = [name] if name not in CLIENT_CAPABILITIES else [each for each in inner if known and each not in known]
        if known and odd:
            where = name if name == odd[0] else f"{name}.{odd[0]}"
            warn_author(
                f"{source.name}: only clients that declare the capability {where!r} can call it, "
                f"but MCP doesn't define that name; {suggest(odd[0], known)} Capabilities of your own clients "
                "belong under 'extensions' or 'experimental'",
                source.code,
            )


async def run_tool(tool: Tool, call: Call, timeout: float, *, newest: bool = False) -> bytes:
    """Return the members of a tool's result, in the newest revision if `newest`, otherwise in the call's."""
    if timeout:
        value = await run_with_timeout(tool.run, call, call.arguments, timeout)
    else:
        value = await tool.run(call.arguments, call)
    revision = call.revision
    try:
        if newest:
            call.revision = revisions.NEWEST
        return tool.encode(value, call)
    finally:
        call.revision = revision


async def run_with_timeout(run: Run, call: Call, arguments: Any, seconds: float) -> Any:
    """Run a function with a time limit.

    Raises:
        ToolUnavailable: The function took longer.
    """
    scope = call.deadline = asyncio.timeout(seconds)
    try:
        async with scope:
            return await run(arguments, call)
    except TimeoutError:
        if scope.expired():
            call.cancelled = call.expired = True
            raise ToolUnavailable(
                f"The tool {call.name} didn't finish within {pluralize(seconds, 'second')}."
            ) from None
        raise
