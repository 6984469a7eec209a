"""`Client` connects to a server of any of the five revisions."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import cached_property
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self, TypedDict, TypeVar, cast, overload

import msgspec

from millstream._copies import NotCopyable
from millstream._protocol.content import ResourceContents
from millstream._protocol.errors import INVALID_PARAMS, METHOD_NOT_FOUND, RESOURCE_NOT_FOUND
from millstream._protocol.foreign import foreign_decoder
from millstream._protocol.json_schema import members
from millstream._protocol.jsonrpc import Json, decode_object, encode
from millstream._protocol.notifications import (
    CompleteRequestParams,
    CompleteResult,
    Completion,
    CompletionArgument,
    CompletionContext,
    GetPromptResult,
    ListPromptsResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    PromptDescription,
    ReadResourceResult,
    Reference,
    ResourceDescription,
    TemplateDescription,
    ToolDescription,
)
from millstream._recent import RecentBytes
from millstream._suggestions import no_attribute, suggest, suggest_keywords
from millstream.client._conversation import Conversation, decode_tools, encode_call, logger
from millstream.client._errors import ClientError, InvalidResponse, ServerError
from millstream.client._questions import Elicit, Questions, Roots, Sample
from millstream.client._requests import RawRequest, ServerInfo, with_meta
from millstream.client._results import PaginatedList, Result, find_mismatch, read, read_result
from millstream.client._server_messages import OnChange, OnLog, OnProgress
from millstream.client._targets import Target
from millstream.client._transports import Options
from millstream.client._watches import Changes

if TYPE_CHECKING:
    from millstream._protocol.skills import Skill
    from millstream.client._events import ClientEvents
    from millstream.client._extensions import ClientExtension
    from millstream.client._tasks import ClientTasks


T = TypeVar("T")

_decode_resources = foreign_decoder(ListResourcesResult, logger.warning)
_decode_templates = foreign_decoder(ListResourceTemplatesResult, logger.warning)
_decode_prompts = foreign_decoder(ListPromptsResult, logger.warning)
_decode_read = foreign_decoder(ReadResourceResult, logger.debug)
_decode_prompt = foreign_decoder(GetPromptResult, logger.debug)
_decode_completion = foreign_decoder(CompleteResult)


ELSEWHERE = {
    "close": "Leave the block: `async with Client(…) as client:` closes it.",
    "connect": "Write `async with Client(…) as client:`.",
    "get_tool": "Find it in `await client.tools()`.",
    "initialize": "`async with Client(…)` does that; see `server`, `capabilities`, and `revision`.",
    "initialize_result": "See `server`, `capabilities`, `instructions`, and `revision`.",
    "invoke": "Write `await client.call(name, arguments)`.",
    "is_connected": "A client is connected inside `async with Client(…) as client:`.",
    "send_ping": "Write `await client.ping()`.",
    "send_request": "Write `await client.request(method, params)`.",
    "send_roots_list_changed": "Write `await client.roots_changed()`.",
    "session": "The client has the session's methods: `await client.call(name, arguments)`.",
    "set_logging_level": "Write `await client.set_log_level(level)`.",
    "subscribe": "Write `async with client.watch(uri) as changes:`.",
    "subscribe_resource": "Write `async with client.watch(uri) as changes:`.",
}
"""Name in other packages -> its replacement here."""


_EVENT_METHODS = frozenset({"events/poll", "events/stream", "events/subscribe", "events/unsubscribe"})
_METHODS_WITH_NAME = frozenset({"tools/call", "prompts/get", "resources/read"})
"""Methods with a name or URI that's also sent in a header."""
_MAX_SCHEMAS = 1000
_HANDLERS = ("on_progress", "progress_callback", "progress_handler")
"""Names of `progress` in other packages."""


def _check_arguments(timeout: object, headers: Any, roots: object, options: object) -> None:
    """Check the types of a client's arguments.

    Raises:
        TypeError: An argument has the wrong type. The message identifies it.
    """
    fields = cast("Mapping[object, object]", headers or {} if isinstance(headers, Mapping | None) else {0: 0})
    texts = [*fields, *fields.values()]
    for name, valid, kind in (
        ("timeout", isinstance(timeout, int | float) and timeout > 0, "a number of seconds above 0, or math.inf"),
        ("headers", all(isinstance(each, str) for each in texts), "a dict of strings"),
        ("roots", not isinstance(roots, str), "a list of folders and files"),
        ("options", isinstance(options, Options | None), "Options(…)"),
    ):
        if not valid:
            raise TypeError(f"Client: {name} must be {kind}.")


@suggest_keywords
class Client(NotCopyable):
    """An MCP client: ``async with Client("https://example.com/mcp") as c: await c.call("add", a=1, b=2)``.

    Calls can run concurrently. Entering the block connects. After a connection is lost, the next request reconnects. A
    client can be entered repeatedly, also nested. The outermost block connects and closes.

    Args:
        target: A URL, a command, a script, a `Server`, a configuration with `mcpServers`, or one of its entries.
        revision: The only protocol revision to ask for, as a date. In a handshake, the server may choose another one.
            By default, it's the newest that both sides support.
        headers: Headers for every HTTP request to the server, such as ``{"Authorization": "Bearer …"}``.
        timeout: Seconds to wait for a response. Progress restarts the clock. `math.inf` waits forever.
        elicit: Handler for questions to the user. Without it, the server can't ask.
        sample: Handler for requests to a language model.
        roots: Folders and files to tell the server about.
        on_log: Handler for log messages. A lost connection isn't reopened for it, but by the next request.
        on_change: Handler for changes that a handshake-era server reports. Keeps the connection open, like `watch`.
        options: Limits and less common settings.
        extensions: Extensions of MCP (see `millstream.extensions.Extension`).

    Raises:
        TargetError: The target doesn't identify a server.
    """

    _COPY_ADVICE: ClassVar[str] = "Create another one with the same arguments."
    _ELSEWHERE: ClassVar = {
        **dict.fromkeys(("api_key", "bearer", "key", "token"), "Write headers={'Authorization': 'Bearer KEY'}."),
        **dict.fromkeys(("args", "base_url", "command", "transport", "url"), "The target is a URL, or a command."),
        "auth": "Write options=Options(auth=OAuth()), or headers={'Authorization': 'Bearer KEY'}.",
        "cwd": "Write options=Options(cwd=…).",
        "elicitation_callback": "Write elicit=…",
        "elicitation_handler": "Write elicit=…",
        "env": "Write options=Options(env={…}).",
        "list_roots_callback": "Write roots=[…].",
        "log_handler": "Write on_log=…",
        "logging_callback": "Write on_log=…",
        "message_handler": "Write on_change=…",
        "progress_handler": "Write client.call(name, arguments, progress=…).",
        "sampling_callback": "Write sample=…",
        "sampling_handler": "Write sample=…",
    }
    """Keyword in other packages -> its replacement here."""

    def __init__(  # noqa: PLR0913  keyword-only settings
        self,
        target: Target,
        *,
        revision: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        elicit: Elicit | None = None,
        sample: Sample | None = None,
        roots: Roots | None = None,
        on_log: OnLog | None = None,
        on_change: OnChange | None = None,
        options: Options | None = None,
        extensions: "Sequence[ClientExtension]" = (),
    ) -> None:
        _check_arguments(timeout, headers, roots, options)
        questions = Questions(elicit, sample, roots)
        options = options or Options()
        self.conversation: Conversation = Conversation(
            target,
            questions,
            options,
            revision=revision,
            headers=headers or {},
            timeout=timeout,
            on_log=on_log,
            on_change=on_change,
        )
        """Internal state, for code that builds on the client. It can change in any release."""
        if extensions:
            from millstream.client._extensions import ClientHost  # noqa: PLC0415  few clients have extensions

            ClientHost(self, questions).add(extensions)
        self._output_schemas: RecentBytes[str, tuple[Json | None, int]] = RecentBytes(
            _MAX_SCHEMAS, max_bytes=options.max_bytes, size_of=itemgetter(1)
        )
        """Output schemas of listed tools, and their sizes as JSON, by name."""
        self._progress: OnProgress | None = None
        """Progress handler for calls without their own handler."""
        self._blocks = 0
        """Number of blocks that the client is in."""
        self._turn = asyncio.Lock()
        """Held while a block connects or closes."""

    # The connection

    async def __aenter__(self) -> Self:
        """Connect and negotiate a revision.

        Raises:
            ClientError: The connection failed. The message explains why and suggests a fix.
        """
        async with self._turn:
            await (self.conversation.requests.connect(first=True) if self._blocks else self.conversation.start())
            self._blocks += 1
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._blocks -= 1
        if not self._blocks:
            async with self._turn:
                if not self._blocks:
                    await self.conversation.close()

    @property
    def server(self) -> ServerInfo:
        """Name, version, and other information about the server."""
        return self.conversation.negotiated.server

    @property
    def revision(self) -> str:
        """Date of the negotiated revision."""
        return self.conversation.negotiated.revision.date

    @property
    def capabilities(self) -> Mapping[str, Any]:
        """The server's capabilities."""
        return self.conversation.negotiated.capabilities

    @property
    def server_extensions(self) -> Mapping[str, Any]:
        """Settings of each extension that the server announced, by identifier."""
        return members(self.capabilities.get("extensions"))

    @property
    def instructions(self) -> str:
        """The server's instructions for a language model."""
        return self.conversation.negotiated.instructions

    @property
    def transport(self) -> str:
        """Name of the transport: ``streamable-http``, ``http+sse``, ``websocket``, ``stdio`` or ``memory``."""
        return self.conversation.transport.name

    # Tools

    @overload
    async def call(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        /,
        *,
        result_type: type[T],
        progress: OnProgress | None = None,
        timeout: float = 0,
        raise_on_error: bool = True,
        task: bool = False,
        meta: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> T: ...

    @overload
    async def call(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        /,
        *,
        result_type: None = None,
        progress: OnProgress | None = None,
        timeout: float = 0,
        raise_on_error: bool = True,
        task: bool = False,
        meta: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Result: ...

    async def call(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        /,
        *,
        result_type: type[Any] | None = None,
        progress: OnProgress | None = None,
        timeout: float = 0,
        raise_on_error: bool = True,
        task: bool = False,
        meta: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Any:
        """Call a tool: ``(await client.call("add", a=1, b=2)).data``.

        Args:
            tool: Name of the tool.
            arguments: Arguments as a mapping, for names that clash with these options.
            result_type: Type of the value. With it, the call returns the value instead of a `Result`.
            progress: Handler for progress reports: ``progress(value, total, message)``.
            timeout: Seconds to wait for this call, or 0 for the client's `timeout`.
            raise_on_error: Whether to raise an error if the tool reports one, or if the result doesn't match the output
                schema that you have listed. If False, check `Result.is_error`. With `result_type`, an error always
                raises.
            task: Whether the server can run the call as a task. Waiting then continues across lost connections and
                server restarts, and `timeout` applies to the total time. See `tasks`.
            meta: Members to add to the request's `_meta`, such as ``{"millstream/idempotencyKey": "order-7"}``.
            more: The tool's arguments as keywords.

        Raises:
            ToolFailed: The tool reported an error.
            ServerError: The server responded with an error, for example because the tool doesn't exist.
            InvalidResponse: The result doesn't match the output schema that `tools` has listed.
            ClientError: There was no response.
        """
        if arguments is not None and not hasattr(arguments, "keys"):
            raise TypeError(f"Pass arguments by name: call({tool!r}, name={arguments!r})")
        if meta is not None and not hasattr(meta, "keys"):
            raise TypeError(f"meta must be a mapping. Pass an argument of this name as call({tool!r}, {{'meta': …}}).")
        given = {**arguments, **more} if arguments else more
        for name in _HANDLERS:
            if callable(more.get(name)):
                raise TypeError(f"call({tool!r}, {name}=…): to receive progress reports, write progress=….")
        report = progress or self._progress
        try:
            if task and self.tasks.supported:
                started = await self.tasks.start(tool, given, meta=meta)
                result = await self.tasks.wait(started, progress=report, timeout=timeout, raise_on_error=False)
            else:
                result = read_result(await self.conversation.call(tool, given, report, timeout, meta=meta))
        except ServerError as exc:
            raise await self._suggest("tool", tool, exc) from None
        if raise_on_error:
            result.check()
            await self._check_structured(tool, result)
        return result if result_type is None else result.into(result_type)

    async def _check_structured(self, tool: str, result: Result) -> None:
        """Compare a result with the listed output schema. The tool may have changed since it was listed."""
        if self._mismatch(tool, result):
            await self.tools(fresh=True)
            if why := self._mismatch(tool, result):
                raise InvalidResponse(f"The result of {tool!r} doesn't match its output schema: {why}.")

    def _mismatch(self, tool: str, result: Result) -> str:
        schema, _ = self._output_schemas.get(tool, (None, 0))
        return "" if schema is None else find_mismatch(result, schema)

    async def _suggest(self, kind: str, name: str, failure: ServerError) -> ServerError:
        """Add the closest name to the error for an unknown tool, prompt, or resource."""
        if failure.code not in (INVALID_PARAMS, METHOD_NOT_FOUND, RESOURCE_NOT_FOUND):
            return failure
        try:
            names = await self._names(kind)
        except ClientError:
            return failure
        if any(each == name or ("{" in each and name.startswith(each.partition("{")[0])) for each in names):
            return failure
        if not names and failure.code == METHOD_NOT_FOUND:
            return ServerError(failure.code, f"The server has no {kind}s, so there is no {name!r}.", failure.data)
        message = f"{failure.message.rstrip('.')}; {suggest(name, names)}" if names else failure.message
        return ServerError(failure.code, message, failure.data)

    async def _names(self, kind: str) -> list[str]:
        if kind == "tool":
            return [each.name for each in await self.tools()]
        if kind == "prompt":
            return [each.name for each in await self.prompts()]
        return [each.uri for each in await self.resources()] + [each.uri_template for each in await self.templates()]

    def tools(self, *, fresh: bool = False) -> PaginatedList[ToolDescription]:
        """List the tools: ``await`` the full list, or iterate page by page with ``async for``.

        A list is cached for as long as the server allows (MCP 2026-07-28, server/utilities/caching).

        Args:
            fresh: Whether to ask the server even if the cached list is still valid.

        Example:
            ``names = [tool.name for tool in await client.tools()]``
        """

        return self.conversation.list("tools/list", decode_tools, self._learn, fresh=fresh)

    def _learn(self, page: ListToolsResult) -> list[ToolDescription]:
        found = self.conversation.learn(page.tools)
        for tool in found:
            schema = tool.output_schema
            self._output_schemas.keep(tool.name, (schema, 0 if schema is None else len(encode(schema))))
        return found

    # Resources and prompts

    def resources(self, *, fresh: bool = False) -> PaginatedList[ResourceDescription]:
        """List the resources, all or page by page, like `tools`: ``await client.resources()``.

        Args:
            fresh: Whether to ask the server even if the cached list is still valid.
        """
        return self.conversation.list("resources/list", _decode_resources, lambda result: result.resources, fresh=fresh)

    def templates(self, *, fresh: bool = False) -> PaginatedList[TemplateDescription]:
        """List the resource templates, all or page by page, like `tools`: ``await client.templates()``.

        Args:
            fresh: Whether to ask the server even if the cached list is still valid.
        """
        method = "resources/templates/list"
        return self.conversation.list(method, _decode_templates, lambda result: result.resource_templates, fresh=fresh)

    def prompts(self, *, fresh: bool = False) -> PaginatedList[PromptDescription]:
        """List the prompts, all or page by page, like `tools`: ``await client.prompts()``.

        Args:
            fresh: Whether to ask the server even if the cached list is still valid.
        """
        return self.conversation.list("prompts/list", _decode_prompts, lambda result: result.prompts, fresh=fresh)

    async def read(self, uri: str, *, fresh: bool = False, timeout: float = 0) -> list[ResourceContents]:
        """Return the contents of a resource: ``(await client.read("docs://guide/start.md"))[0].text``.

        Args:
            uri: URI of the resource. For a template, the URI with its variables filled in.
            fresh: Whether to ask the server even if the cached contents are still valid.
            timeout: Seconds to wait for this request, or 0 for the client's `timeout`.

        Raises:
            ServerError: The resource doesn't exist or can't be read.
            ClientError: There was no response.
        """
        ask = RawRequest(
            method="resources/read", params=encode({"uri": uri}), name=uri, timeout=timeout, repeatable=True
        )
        try:
            result, _ = await self.conversation.ask_cached(ask, _decode_read, fresh=fresh)
        except ServerError as exc:
            raise await self._suggest("resource", uri, exc) from None
        found: ReadResourceResult = result
        return found.contents

    async def prompt(
        self, name: str, arguments: Mapping[str, Any] | None = None, /, *, timeout: float = 0, **more: Any
    ) -> GetPromptResult:
        """Return a prompt's messages: ``(await client.prompt("review", isbn="9780141439600")).messages``.

        Args:
            name: Name of the prompt.
            arguments: Arguments as a mapping, for names that clash with `timeout`.
            timeout: Seconds to wait for this request, or 0 for the client's `timeout`.
            more: The prompt's arguments as keywords. Prompts take text, so other values are sent as JSON.

        Raises:
            ServerError: The prompt doesn't exist, or an argument is missing.
            ClientError: There was no response.
        """
        params = encode_call(name, {**(arguments or {}), **more}, as_text=True)
        ask = RawRequest(method="prompts/get", params=params, name=name, timeout=timeout, repeatable=True)
        try:
            found = await self.conversation.requests.ask(ask)
        except ServerError as exc:
            raise await self._suggest("prompt", name, exc) from None
        return read("prompts/get", _decode_prompt, found)

    async def complete(
        self, argument: str, value: str, *, prompt: str = "", template: str = "", known: Mapping[str, str] | None = None
    ) -> Completion:
        """Return suggestions for an argument: ``await client.complete("day", "s", prompt="plan")``.

        Args:
            argument: Name of the argument of a prompt or template.
            value: Text typed so far.
            prompt: Name of the prompt.
            template: URI of the template, instead of a prompt.
            known: Arguments that already have a value.

        Example:
            ``(await client.complete("isbn", "978", prompt="review")).values``
        """
        reference = Reference("ref/prompt", name=prompt) if prompt else Reference("ref/resource", uri=template)
        context = CompletionContext(dict(known)) if known else None
        params = encode(CompleteRequestParams(reference, CompletionArgument(argument, value), context))
        raw = await self.conversation.requests.ask(
            RawRequest(method="completion/complete", params=params, repeatable=True)
        )
        return read("completion/complete", _decode_completion, raw).completion

    # Skills

    def skills(self, *, fresh: bool = False) -> "PaginatedList[Skill]":
        """List the server's skills without reading their files: ``for skill in await client.skills(): …``.

        Args:
            fresh: Whether to ask the server even if the cached list is still valid.
        """
        from millstream.client import _skills  # noqa: PLC0415  few clients use skills

        return _skills.list_skills(self.conversation, fresh=fresh)

    async def skill(self, uri: str) -> "Skill":
        """Return the entry of one skill, even if the server doesn't list it: ``await client.skill(uri)``.

        Args:
            uri: URI of its `SKILL.md`.

        Raises:
            ServerError: The server has no such skill.
            SkillMismatch: The entry is invalid.
        """
        from millstream.client import _skills  # noqa: PLC0415  few clients use skills

        return await _skills.get_skill(self.conversation, uri)

    async def read_skill(self, skill: "Skill", path: str = "SKILL.md") -> bytes:
        """Read a file of a skill and check it against the manifest: ``(await client.read_skill(skill)).decode()``.

        The content is instructions from the server's author. Show the user where it comes from, and ask before a model
        follows them.

        Args:
            skill: Entry of the skill.
            path: Path of the file inside the skill.

        Raises:
            SkillMismatch: The file differs from its manifest, or isn't listed there.
        """
        from millstream.client import _skills  # noqa: PLC0415  few clients use skills

        return await _skills.read_file(self, skill, path)

    # Other requests

    @cached_property
    def tasks(self) -> "ClientTasks":
        """The server's tasks: start them, wait for them, and cancel them."""
        from millstream.client._tasks import ClientTasks  # noqa: PLC0415  few clients use tasks

        return ClientTasks(self.conversation)

    @cached_property
    def events(self) -> "ClientEvents":
        """The server's events (SEP-3415, an extension in Beta): list them, and subscribe to them."""
        from millstream.client._events import ClientEvents  # noqa: PLC0415  few clients use events

        return ClientEvents(self.conversation)

    async def request(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        name: str = "",
        progress: OnProgress | None = None,
        timeout: float = 0,
    ) -> dict[str, Any]:
        """Send any request and return its result as JSON data. The handlers answer the server's questions.

        Args:
            method: Method of MCP or of an extension.
            params: Parameters, an object.
            name: Value of the header `Mcp-Name`, for extension methods that require it.
            progress: Handler for progress reports.
            timeout: Seconds to wait for this request.

        Raises:
            ServerError: The server responded with an error.
            ClientError: There was no response.
        """
        given = dict(params or {})
        if method in _EVENT_METHODS:
            ask = await self.events.request(method, given)
            ask.name, ask.timeout, ask.progress = name or ask.name, timeout, progress
            return read(method, decode_object, await self.conversation.requests.ask(ask))
        named = given.get("name") or given.get("uri") if method in _METHODS_WITH_NAME else ""
        ask = RawRequest(
            method=method,
            params=encode(given),
            name=name or (named if isinstance(named, str) else ""),
            timeout=timeout,
            progress=progress,
        )
        return read(method, decode_object, await self.conversation.requests.ask(ask))

    async def notify(self, method: str, params: Mapping[str, Any] | None = None) -> None:
        """Send a notification of an extension: ``await client.notify("com.example/sold", {"sku": "7"})``.

        Args:
            method: The method, which begins with the extension's identifier.
            params: Parameters, an object.

        Raises:
            ClientError: The notification couldn't be sent.
        """
        requests = self.conversation.requests
        connection = await requests.connect()
        body = msgspec.Raw(with_meta(encode(params or {}), connection.meta))
        await requests.notify(connection.transport, method, body)

    async def ping(self, *, timeout: float = 0) -> None:
        """Check that the server responds: ``await client.ping(timeout=5)``.

        Sends a ping (MCP 2025-11-25, basic/utilities/ping), or `server/discover` in revisions without one.

        Args:
            timeout: Seconds to wait, or 0 for the client's `timeout`.

        Raises:
            ClientError: There was no response.
        """
        method = "ping" if self.conversation.negotiated.revision.handshake else "server/discover"
        await self.conversation.requests.ask(RawRequest(method=method, timeout=timeout, repeatable=True))

    async def set_log_level(self, level: str) -> None:
        """Set the minimum severity of log messages for the session: ``await client.set_log_level("warning")``.

        See MCP 2025-11-25, server/utilities/logging.

        Args:
            level: One of debug, info, notice, warning, error, critical, alert, and emergency.

        Raises:
            NotSupported: The revision sets the level per request. Use `Options.log_level`.
        """
        await self.conversation.set_log_level(level)

    async def roots_changed(self) -> None:
        """Notify the server that the roots have changed. Does nothing in revisions that ask for roots with each
        request.
        """
        conversation, method = self.conversation, "notifications/roots/list_changed"
        if method in conversation.negotiated.revision.notifications:
            await conversation.requests.notify(conversation.transport, method)

    def watch(self, *uris: str, tools: bool = False, prompts: bool = False, resources: bool = False) -> Changes:
        """Subscribe to changes: ``async with client.watch("orders://7") as changes: async for change in changes: …``.

        Args:
            uris: Resources to watch for updates.
            tools: Whether to watch the list of tools.
            prompts: Whether to watch the list of prompts.
            resources: Whether to watch the list of resources. Without any arguments, all three lists are watched.
        """
        return self.conversation.watch(*uris, tools=tools, prompts=prompts, resources=resources)

    # Names in other MCP libraries. New programs should use the short names: `call`, `tools`, `read`, `prompt`.

    async def call_tool(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        progress: OnProgress | None = None,
        timeout: float = 0,
        raise_on_error: bool = True,
        meta: Mapping[str, Any] | None = None,
    ) -> Result:
        """Call a tool (alias of `call`): ``await client.call_tool("add", {"a": 1})``.

        Args:
            name: Name of the tool.
            arguments: Arguments of the tool.
            progress: Handler for progress reports: ``progress(value, total, message)``.
            timeout: Seconds to wait for this call, or 0 for the client's `timeout`.
            raise_on_error: Whether to raise an error if the tool reports one. If False, check `Result.is_error`.
            meta: Members to add to the request's `_meta`.
        """
        return await self.call(
            name, arguments or {}, progress=progress, timeout=timeout, raise_on_error=raise_on_error, meta=meta
        )

    async def list_tools(self) -> list[ToolDescription]:
        """Return all tools. See `tools`."""
        return await self.tools()

    async def list_resources(self) -> list[ResourceDescription]:
        """Return all resources. See `resources`."""
        return await self.resources()

    async def list_resource_templates(self) -> list[TemplateDescription]:
        """Return all resource templates. See `templates`."""
        return await self.templates()

    async def list_prompts(self) -> list[PromptDescription]:
        """Return all prompts. See `prompts`."""
        return await self.prompts()

    async def read_resource(self, uri: str) -> list[ResourceContents]:
        """Read a resource (alias of `read`): ``await client.read_resource("docs://guide/start.md")``.

        Args:
            uri: URI of the resource.
        """
        return await self.read(str(uri))

    async def get_prompt(self, name: str, arguments: Mapping[str, str] | None = None) -> GetPromptResult:
        """Return the messages of a prompt (alias of `prompt`): ``await client.get_prompt("review", {"isbn": "1"})``.

        Args:
            name: Name of the prompt.
            arguments: Arguments of the prompt, all as text.
        """
        return await self.prompt(name, arguments)

    if not TYPE_CHECKING:  # type checkers would accept a plain `with`, and every name

        def __enter__(self) -> NoReturn:
            raise TypeError(
                f"{type(self).__name__} is asynchronous: write `async with`, or use BlockingClient from "
                "millstream.client."
            )

        def __exit__(self, *exc: object) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name, ELSEWHERE)


class ClientArguments(TypedDict, total=False):
    """Keyword arguments that `Client` takes in addition to its target."""

    revision: str | None
    headers: Mapping[str, str] | None
    timeout: float
    elicit: Elicit | None
    sample: Sample | None
    roots: Roots | None
    on_log: OnLog | None
    on_change: OnChange | None
    options: Options | None
    extensions: "Sequence[ClientExtension]"
