"""`Client`: one object for a server of any revision, however it is reached."""

from collections.abc import Mapping
from typing import Any, Self, TypeVar, overload

import msgspec

from millstream._protocol.content import ResourceContents
from millstream._protocol.errors import INVALID_PARAMS, METHOD_NOT_FOUND
from millstream._protocol.jsonrpc import encode
from millstream._protocol.messages import (
    CompleteRequestParams,
    CompleteResult,
    Completion,
    CompletionArgument,
    CompletionContext,
    GetPromptResult,
    ListPromptsResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    PromptDescription,
    ReadResourceResult,
    Reference,
    ResourceDescription,
    TemplateDescription,
    ToolDescription,
)
from millstream._protocol.metadata import Implementation
from millstream._protocol.suggesting import instead, suggesting
from millstream.client._conversation import Conversation, decode_tools, raw_ask
from millstream.client._errors import ClientError, Failure
from millstream.client._familiar import FamiliarNames
from millstream.client._incoming import OnChange, OnLog, OnProgress
from millstream.client._listing import Listing
from millstream.client._options import Options
from millstream.client._questions import Elicit, Questions, Roots, Sample
from millstream.client._requests import Ask
from millstream.client._results import Result, read, read_result
from millstream.client._targets import Target
from millstream.client._watching import Changes, wanted

T = TypeVar("T")

_decode_json = msgspec.json.Decoder(dict[str, Any]).decode
_decode_resources = msgspec.json.Decoder(ListResourcesResult).decode
_decode_templates = msgspec.json.Decoder(ListResourceTemplatesResult).decode
_decode_prompts = msgspec.json.Decoder(ListPromptsResult).decode
_decode_read = msgspec.json.Decoder(ReadResourceResult).decode
_decode_prompt = msgspec.json.Decoder(GetPromptResult).decode
_decode_completion = msgspec.json.Decoder(CompleteResult).decode


@suggesting
class Client(FamiliarNames):
    """``async with Client("https://example.com/mcp") as c: await c.call("add", a=1, b=2)``.

    Calls may run side by side. The connection is made when the block is entered, and again when it is lost.

    Args:
        target: a URL, a command, a script, a `Server`, or a configuration with `mcpServers` (`targets.find`).
        revision: the date of the only revision to speak; without it, the newest that both sides know.
        headers: sent with each HTTP request, such as ``{"Authorization": "Bearer …"}``.
        timeout: seconds until an answer; progress starts them again. `math.inf` waits for ever.
        elicit: answers for the person. Without it the server can't ask.
        sample: answers for a model.
        roots: the folders and files that the server may know of.
        on_log: hears log messages. It doesn't keep a connection that breaks; the next request makes a new one.
        on_change: hears what changes where the handshake era tells it, and keeps the connection as `watch` does.
        options: limits and details.

    Raises:
        TargetError: the target means no server.
    """

    def __init__(
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
    ) -> None:
        self.conversation: Conversation = Conversation(
            target,
            Questions(elicit, sample, roots),
            options or Options(),
            revision=revision,
            headers=headers or {},
            timeout=timeout,
            on_log=on_log,
            on_change=on_change,
        )
        """What the client stands on: for those who build on it, and free to change."""
        self._progress: OnProgress | None = None
        """Receives the messages of calls without a handler of their own."""

    # The connection

    async def __aenter__(self) -> Self:
        """Connect, and agree on a revision.

        Raises:
            ClientError: it isn't possible; the text says why and what to do.
        """
        await self.conversation.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.conversation.close()

    @property
    def server(self) -> Implementation:
        """Name and version of the server."""
        return self.conversation.agreed.server

    @property
    def revision(self) -> str:
        """The date of the revision that both sides speak."""
        return self.conversation.agreed.revision.date

    @property
    def capabilities(self) -> Mapping[str, Any]:
        """What the server offers."""
        return self.conversation.agreed.capabilities

    @property
    def instructions(self) -> str:
        """What the server wants a model to know."""
        return self.conversation.agreed.instructions

    @property
    def transport(self) -> str:
        """``streamable-http``, ``http+sse``, ``websocket``, ``stdio`` or ``memory``."""
        return self.conversation.transport.name

    # Tools

    @overload
    async def call(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        /,
        *,
        into: type[T],
        progress: OnProgress | None = None,
        timeout: float = 0,
        raise_on_error: bool = True,
        **more: Any,
    ) -> T: ...

    @overload
    async def call(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        /,
        *,
        into: None = None,
        progress: OnProgress | None = None,
        timeout: float = 0,
        raise_on_error: bool = True,
        **more: Any,
    ) -> Result: ...

    async def call(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        /,
        *,
        into: type[Any] | None = None,
        progress: OnProgress | None = None,
        timeout: float = 0,
        raise_on_error: bool = True,
        **more: Any,
    ) -> Any:
        """Call a tool: ``(await client.call("add", a=1, b=2)).data``.

        Args:
            tool: its name.
            arguments: as a mapping, for names that are options here; keywords are arguments, too.
            into: the type of the value; the result is then the value itself.
            progress: hears how far the call is: ``progress(value, total, message)``.
            timeout: seconds for this call.
            raise_on_error: whether a tool that reports an error raises; else see `Result.is_error`. With `into`, it
                always raises.

        Raises:
            ToolFailed: the tool reported an error.
            Failure: the server answered with an error, for example because it has no such tool.
            ClientError: there's no answer.
        """
        given = {**arguments, **more} if arguments else more
        try:
            raw = await self.conversation.call(tool, given, progress or self._progress, timeout)
        except Failure as exc:
            raise await self._suggest(tool, exc) from None
        result = read_result(raw)
        if raise_on_error:
            result.check()
        return result if into is None else result.into(into)

    async def _suggest(self, tool: str, failure: Failure) -> Failure:
        """Add the nearest name to the error of a tool that the server doesn't have."""
        if failure.code not in (INVALID_PARAMS, METHOD_NOT_FOUND):
            return failure
        try:
            names = [each.name for each in await self.tools()]
        except ClientError:
            return failure
        if tool in names:
            return failure
        message = f"{failure.message.rstrip('.')}; {instead(tool, names)}" if names else failure.message
        return Failure(failure.code, message, failure.data)

    def tools(self, *, fresh: bool = False) -> Listing[ToolDescription]:
        """The tools: ``await`` all of them, or go through them with ``async for``."""

        return self.conversation.list("tools/list", decode_tools, self.conversation.callable, fresh=fresh)

    # Resources and prompts

    def resources(self, *, fresh: bool = False) -> Listing[ResourceDescription]:
        """The resources."""
        return self.conversation.list("resources/list", _decode_resources, lambda result: result.resources, fresh=fresh)

    def templates(self, *, fresh: bool = False) -> Listing[TemplateDescription]:
        """The templates of resources."""
        method = "resources/templates/list"
        return self.conversation.list(method, _decode_templates, lambda result: result.resource_templates, fresh=fresh)

    def prompts(self, *, fresh: bool = False) -> Listing[PromptDescription]:
        """The prompts."""
        return self.conversation.list("prompts/list", _decode_prompts, lambda result: result.prompts, fresh=fresh)

    async def read(self, uri: str, *, fresh: bool = False, timeout: float = 0) -> list[ResourceContents]:
        """The contents of a resource.

        Raises:
            Failure: there's no such resource, or it can't be read.
        """
        ask = Ask(method="resources/read", params=encode({"uri": uri}), name=uri, timeout=timeout, repeatable=True)
        result: ReadResourceResult = await self.conversation.cached(ask, _decode_read, fresh=fresh)
        return result.contents

    async def prompt(
        self, name: str, arguments: Mapping[str, str] | None = None, /, *, timeout: float = 0, **more: str
    ) -> GetPromptResult:
        """The messages of a prompt.

        Raises:
            Failure: there's no such prompt, or an argument is missing.
        """
        params = encode({"name": name, "arguments": {**(arguments or {}), **more}})
        ask = Ask(method="prompts/get", params=params, name=name, timeout=timeout, repeatable=True)
        return read("prompts/get", _decode_prompt, await self.conversation.requests.ask(ask))

    async def complete(
        self, argument: str, value: str, *, prompt: str = "", template: str = "", known: Mapping[str, str] | None = None
    ) -> Completion:
        """Suggestions for an argument of a prompt or template.

        Args:
            argument: its name.
            value: what has been typed.
            prompt: the name of the prompt, or
            template: the URI of the template.
            known: arguments that have a value already.
        """
        reference = Reference("ref/prompt", name=prompt) if prompt else Reference("ref/resource", uri=template)
        context = CompletionContext(dict(known)) if known else None
        params = encode(CompleteRequestParams(reference, CompletionArgument(argument, value), context))
        raw = await self.conversation.requests.ask(Ask(method="completion/complete", params=params, repeatable=True))
        return read("completion/complete", _decode_completion, raw).completion

    # Everything else

    async def request(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        progress: OnProgress | None = None,
        timeout: float = 0,
    ) -> dict[str, Any]:
        """The result of any request as it is on the wire; questions are answered on the way.

        Raises:
            Failure: the server answered with an error.
            ClientError: there's no answer.
        """
        ask = raw_ask(method, dict(params or {}), progress, timeout)
        return read(method, _decode_json, await self.conversation.requests.ask(ask))

    async def ping(self, *, timeout: float = 0) -> None:
        """Find out whether the server answers: by a ping, or where there's none, by asking what it offers."""
        method = "ping" if self.conversation.agreed.revision.handshake else "server/discover"
        await self.conversation.requests.ask(Ask(method=method, timeout=timeout, repeatable=True))

    async def set_log_level(self, level: str) -> None:
        """Ask for log messages of this severity and above, where that holds for a session.

        Raises:
            Unsupported: the revision asks for it with each request: `Options.log_level`.
        """
        await self.conversation.set_log_level(level)

    async def roots_changed(self) -> None:
        """Tell the server that the roots are different now; revisions without that notification ask each time."""
        await self.conversation.notify("notifications/roots/list_changed")

    def watch(self, *uris: str, tools: bool = False, prompts: bool = False, resources: bool = False) -> Changes:
        """Hear what changes: ``async with client.watch("orders://7") as changes: async for change in changes: …``.

        Args:
            uris: resources whose content is of interest.
            tools: whether the list of tools is.
            prompts: whether the list of prompts is.
            resources: whether the list of resources is. Without any of these, all three lists are.
        """
        return self.conversation.watch(wanted(uris, tools=tools, prompts=prompts, resources=resources))
