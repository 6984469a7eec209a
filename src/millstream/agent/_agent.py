"""`Agent`: a language model, MCP servers with tools, and a conversation.

A server can also use the model by sampling (`sampling/createMessage`), if the user approves.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Literal, Self

from msgspec.structs import replace

from millstream import ProtocolError, SampleResult, Text
from millstream.agent._configuration import (
    Approval,
    Approve,
    ConnectedServer,
    Elicit,
    Person,
    ServerConfig,
    Servers,
    connect,
    resolve_servers,
)
from millstream.agent._context import (
    Part,
    chat_messages,
    find_prompt,
    leave_out_media,
    mentions,
    message_content,
    prompt_messages,
    read,
    shorten_results,
    text_part,
)
from millstream.agent._events import (
    AgentRun,
    AnswerEnd,
    AnswerQueue,
    AssistantMessage,
    ContextError,
    ContextWindowExceeded,
    Event,
    Limits,
    ModelError,
    ModelRefused,
    ModelRetry,
    ModelServerError,
    ResultsShortened,
    RoundStart,
    SamplingResult,
    TextDelta,
    Transcript,
    UserMessage,
)
from millstream.agent._model import Message, Model, ModelRequest, ModelResponse
from millstream.agent._tools import CallOutcome, Toolbox, ToolCaller, fit
from millstream.client import Client, ClientError, ElicitAnswer, Question, Roots
from millstream.protocol import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CreateMessageRequestParams,
    Json,
    NotCopyable,
    ToolDescription,
    suggest_keywords,
)

_REJECTED = -1
"""Error code if the user declines (MCP 2025-11-25, client/sampling#error-handling)."""
_STOPS = {"stop": "endTurn", "length": "maxTokens"}


async def listen(
    model: Model, request: ModelRequest, on_chunk: Callable[[str], Awaitable[None]] | None = None
) -> ModelResponse:
    """Return the reply to one request.

    Raises:
        ModelError: There's no complete reply.
    """
    async with contextlib.aclosing(model.stream(request)) as pieces:
        async for piece in pieces:
            if isinstance(piece, ModelResponse):
                if len(piece.tool_calls) > _MAX_CALLS:
                    raise ModelServerError(f"The model called {len(piece.tool_calls):,} tools at once.")
                return piece
            if on_chunk is not None:
                await on_chunk(piece)
    raise ModelError("The model ended its answer without a reply.")


_MAX_CALLS = 256
"""Maximum tool calls per reply."""
_FIRST_WAIT = 1.0
"""Seconds before the second attempt, unless the API specifies them. Each further pause is twice as long."""
_STOPPED = CallOutcome("The user stopped this call. It may have taken effect, fully or partly.")
_KEPT = (
    "The tool calls that the model made before are in the conversation, with their results. Send a message like "
    "'Continue' instead of the same one, or they may be made twice."
)
_REASONS: dict[str, Literal["length", "filtered"]] = {"length": "length", "content_filter": "filtered"}


def pause_before(error: ModelError, attempt: int, limits: Limits) -> float | None:
    """Return the seconds before the next attempt, or None if there's none."""
    if not error.temporary or attempt >= limits.max_attempts:
        return None
    if error.retry_after is not None:
        return error.retry_after if error.retry_after <= limits.longest_wait else None
    return min(_FIRST_WAIT * 2.0 ** (attempt - 1), limits.longest_wait) * random.uniform(0.75, 1)  # noqa: S311


@suggest_keywords
class Agent(NotCopyable):
    """A language model, MCP servers with tools, and a conversation.

    Example:
        ``async with Agent(LanguageModel("gpt-4.1", key=…), ["shop.py"]) as agent:`` and in it
        ``async for event in agent.say("Hi"): …``.

    Args:
        model: The model. See `LanguageModel`. The agent closes it.
        servers: Servers with tools, resources, and prompts: a list of `Client` targets or `ServerConfig`s, or a dict by
            name.
        system: System prompt. The servers' instructions are appended.
        approve: Decides whether a tool can run that no trusted hint marks as read-only (see
            `ServerConfig.trusts_hints`), and whether a server can use the model. By default, both are rejected.
        elicit: Fills in the forms that servers send: ``elicit(server, question)``. Without it, servers can't ask for
            input.
        roots: Folders and files to tell servers about.
        limits: Limits of one answer.

    Raises:
        ConfigurationError: `servers` isn't a list or a mapping.
        TargetError: A target isn't a server.
    """

    _COPY_ADVICE = "Create another agent with the same arguments."

    def __init__(
        self,
        model: Model,
        servers: Servers = (),
        *,
        system: str = "",
        approve: Approve | None = None,
        elicit: Elicit | None = None,
        roots: Roots | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.model = model
        self.limits: Limits = limits or Limits()
        self._system = system
        self._person = Person(approve, elicit)
        self._wanted = [(place, self._client(place, roots)) for place in resolve_servers(servers)]
        self.servers: list[ConnectedServer] = []
        """The connected servers."""
        self.messages: list[Message] = []
        """The conversation so far, in the format of the model's API."""
        self.transcript: Transcript = Transcript()
        self._beside: list[Part] = []
        """Resources to attach to the next message."""
        self._window = 0
        """Context window of the model in tokens, if its API has named it. A token has about four characters."""
        self._closing = AsyncExitStack()
        self._line = AnswerQueue()

    async def __aenter__(self) -> Self:
        """Connect to all servers.

        Raises:
            ClientError: A server can't be reached. The message explains why and suggests a fix.
        """
        self._closing.push_async_callback(self.model.close)
        try:
            self.servers = await connect(self._wanted, self._closing)
        except BaseException:
            await self._closing.aclose()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._closing.aclose()

    def say(self, text: str) -> AgentRun:
        """Send a message and return the events of the answer: ``async for event in agent.say("Any Tolkien?"): …``.

        Leaving the loop stops the answer, but keeps its messages.

        Args:
            text: The message. ``@server:uri`` in it attaches that resource.

        Raises:
            ModelError: The model gave no answer. The conversation is unchanged, except that it keeps tool calls that
                were made.
            ContextError: A resource can't be read.
            AgentError: Another answer is in progress.
        """
        return AgentRun(self._line, lambda: self._carry_out(self._append_user_message(text)))

    def prompt(self, name: str, arguments: Mapping[str, str] | None = None) -> AgentRun:
        """Send the messages of a server's prompt and return the events of the answer. Raises like `say`.

        Args:
            name: Name of the prompt, or ``server:name`` if several servers have it.
            arguments: Arguments of the prompt, all of them text.
        """
        return AgentRun(self._line, lambda: self._carry_out(self._append_prompt(name, arguments or {})))

    async def tools(self) -> Toolbox:
        """Return the tools that are currently available to the model."""
        lists = await asyncio.gather(*(server.client.tools() for server in self.servers))
        return Toolbox(list(zip(self.servers, lists, strict=True)))

    async def read(self, server: str, uri: str) -> list[Part]:
        """Attach a resource to the next message and return its parts.

        Args:
            server: Name of the server, as in `servers`.
            uri: URI of the resource.

        Raises:
            ContextError: The server is unknown, or the resource can't be read.
        """
        found = next((each for each in self.servers if each.name == server), None)
        if found is None:
            names = ", ".join(each.name for each in self.servers)
            raise ContextError(f"There is no server {server!r}. The servers are: {names or 'none'}.")
        parts = await read(found, uri, self.limits.max_result)
        self._beside += parts
        self.transcript.note(UserMessage("", (f"@{server}:{uri}",)))
        return parts

    # Servers

    def _client(self, place: ServerConfig, roots: Roots | None) -> Client:
        async def fill_in(question: Question) -> ElicitAnswer:
            return await self._person.answer(self._name_of(client), question)

        async def complete(params: CreateMessageRequestParams) -> SampleResult:
            return await self._sample(self._name_of(client), params)

        client = Client(
            place.target,
            revision=place.revision,
            headers=place.headers,
            timeout=place.timeout,
            elicit=fill_in if self._person.elicit else None,
            sample=complete if self._person.approve else None,
            roots=roots,
            options=place.options,
        )
        return client

    async def _sample(self, server: str, params: CreateMessageRequestParams) -> SampleResult:
        """Send a server's request to the model.

        Raises:
            ProtocolError: The user declined, the model gave no answer, or the request includes tools.
        """
        if params.tools:
            raise ProtocolError(INVALID_PARAMS, "This client doesn't support tools in sampling requests.")
        messages = chat_messages(params.messages, self.limits.max_result)
        text = "\n".join(str(message["content"]) for message in messages)
        if not await self._person.allows(Approval(kind="sampling", server=server, text=text)):
            raise ProtocolError(_REJECTED, "The user didn't allow the server to use the model.")
        system: list[Message] = [{"role": "system", "content": params.system_prompt}] if params.system_prompt else []
        request = ModelRequest(
            messages=[*system, *messages],
            max_tokens=params.max_tokens,
            temperature=params.temperature,
            stop=params.stop_sequences or (),
        )
        try:
            reply = await listen(self.model, request)
        except ModelError as exc:
            raise ProtocolError(INTERNAL_ERROR, str(exc)) from exc
        await self._emit(SamplingResult(server, reply.text))
        return SampleResult("assistant", Text(reply.text), self.model.name, _STOPS.get(reply.stop, reply.stop))

    def _name_of(self, client: Client) -> str:
        return next((each.name for each in self.servers if each.client is client), "the server")

    # Answers

    async def _emit(self, event: Event) -> None:
        self.transcript.note(event)
        if self._line.emit is not None:
            await self._line.emit(event)

    async def _append_user_message(self, text: str) -> UserMessage:
        found = mentions(text, self.servers)
        parts = [part for server, uri in found for part in await read(server, uri, self.limits.max_result)]
        self.messages.append({"role": "user", "content": message_content(text, [*self._beside, *parts])})
        self._beside = []
        return UserMessage(text, tuple(f"@{server.name}:{uri}" for server, uri in found))

    async def _append_prompt(self, name: str, arguments: Mapping[str, str]) -> UserMessage:
        server, prompt = await find_prompt(name, self.servers)
        messages = await prompt_messages(server, prompt, arguments, self.limits.max_result)
        text = "\n".join(str(message["content"]) for message in messages if message["role"] == "user")
        if self._beside and messages:
            content = messages[0]["content"]
            messages[0]["content"] = [*([text_part(content)] if isinstance(content, str) else content), *self._beside]
            self._beside = []
        self.messages += messages
        return UserMessage(text, (f"/prompt {server.name}:{prompt.name}",))

    async def _carry_out(self, question: Awaitable[UserMessage]) -> None:
        before, beside = len(self.messages), self._beside
        try:
            await self._emit(await question)
            room = asyncio.Semaphore(self.limits.max_parallel)
            await self._run(ToolCaller(await self.tools(), self._person, self.limits, self._emit, room))
        except Exception as exc:
            if any("tool_calls" in message for message in self.messages[before:]):
                if isinstance(exc, ModelRefused):  # the model may not support them
                    leave_out_media(self.messages[before:])
                self._say("(An error ended this answer. The tool calls above were made.)")
                exc.args = (f"{exc} {_KEPT}",)
            else:
                del self.messages[before:]
                self._beside = beside
            raise

    async def _run(self, caller: ToolCaller) -> None:
        """Send requests to the model until it stops calling tools, or a limit is reached.

        The conversation stays valid for the API: each call has a result, even if the user stops the answer.

        Raises:
            ModelError: The model gave no answer.
        """
        system, tokens, number = self._system_message(), 0, 0
        limit: Literal["rounds", "tokens"] = "rounds"
        for number in range(1, self.limits.max_model_requests + 1):
            if number > 1:  # a call may have added or removed tools
                caller = replace(caller, toolbox=await self._ask_for_tools(caller.toolbox))
            await self._emit(RoundStart(number, len(self.messages), len(caller.toolbox)))
            reply = await self._ask_within_window(system, caller.toolbox.specs)
            tokens += reply.tokens
            if reply.text:
                await self._emit(AssistantMessage(reply.text))
            if not reply.tool_calls:
                self._say(reply.text)
                await self._emit(AnswerEnd(_REASONS.get(reply.stop, "done"), number, tokens))
                return
            await self._call_all(replace(caller, limits=self._known_limits()), reply)
            if 0 < self.limits.max_tokens <= tokens:
                limit = "tokens"
                break
        self._say(f"(Stopped at the limit of {limit}.)")
        await self._emit(AnswerEnd(limit, number, tokens))

    def _say(self, text: str) -> None:
        """Add an assistant message, because many models require alternating turns."""
        self.messages.append({"role": "assistant", "content": text})

    async def _ask_for_tools(self, before: Toolbox) -> Toolbox:
        """Return the tools that the servers have now. A server that doesn't respond keeps the ones it had."""

        async def ask(server: ConnectedServer) -> Sequence[ToolDescription]:
            try:
                return await server.client.tools(fresh=True)
            except ClientError:
                return [tool.description for tool in before if tool.server is server]

        lists = await asyncio.gather(*map(ask, self.servers))
        return Toolbox(list(zip(self.servers, lists, strict=True)))

    def _known_limits(self) -> Limits:
        """Return the limits, with results of at most a quarter of the model's context window."""
        if not self._window:
            return self.limits
        return replace(self.limits, max_result=min(self.limits.max_result, self._window))

    async def _ask_within_window(self, system: Sequence[Message], tools: Sequence[Json]) -> ModelResponse:
        """Return one reply. If the request is too long for the model, shorten results, and ask once more."""
        try:
            return await self._ask(ModelRequest(messages=[*system, *self.messages], tools=tools))
        except ContextWindowExceeded as exc:
            self._window = exc.window
            count = shorten_results(self.messages)
            if not count:
                raise
            await self._emit(ResultsShortened(count, exc.window))
        return await self._ask(ModelRequest(messages=[*system, *self.messages], tools=tools))

    async def _ask(self, request: ModelRequest) -> ModelResponse:
        """Return one reply, retrying if necessary."""
        attempt, chunks = 0, list[str]()

        async def keep(chunk: str) -> None:
            chunks.append(chunk)
            await self._emit(TextDelta(chunk))

        while True:
            attempt += 1
            chunks.clear()
            try:
                return await listen(self.model, request, keep)
            except ModelError as exc:
                pause = pause_before(exc, attempt, self.limits)
                if pause is None:
                    raise
                await self._emit(ModelRetry(round(pause, 3), attempt, str(exc), bool(chunks)))
                await asyncio.sleep(pause)
            except asyncio.CancelledError:
                self._say("".join(chunks) or "(The user stopped this answer.)")
                raise

    async def _call_all(self, caller: ToolCaller, reply: ModelResponse) -> None:
        """Execute all calls of a round concurrently, then add their results to the conversation."""
        tasks: list[asyncio.Task[CallOutcome]] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(caller.call(call)) for call in reply.tool_calls]
        except ExceptionGroup as several:
            raise several.exceptions[0] from several
        finally:
            # The group has waited for all tasks.
            self._keep(reply, [_STOPPED if task.cancelled() or task.exception() else task.result() for task in tasks])

    def _keep(self, reply: ModelResponse, outcomes: Sequence[CallOutcome]) -> None:
        calls: list[Json] = []
        results: list[Message] = []
        parts: list[Part] = []
        for call, each in zip(reply.tool_calls, outcomes, strict=True):
            function = {"name": fit(call.name), "arguments": each.arguments}
            calls.append({"id": call.id, "type": "function", "function": function})
            results.append({"role": "tool", "tool_call_id": call.id, "content": each.text})
            if each.parts:
                parts += [text_part(f"From {call.name}:"), *each.parts]
        said: Message = {"role": "assistant", "content": reply.text or None, "tool_calls": calls}
        if reply.details:
            said["details"] = reply.details
        self.messages += [said, *results]
        if parts:
            self.messages.append({"role": "user", "content": parts})

    def _system_message(self) -> Sequence[Message]:
        """Return the system message: the program's text, and the servers' instructions."""
        texts = [self._system] if self._system else []
        manuals = ((each.name, each.client.instructions) for each in self.servers)
        texts += [f"How to use the tools of {name}: {instructions}" for name, instructions in manuals if instructions]
        return [{"role": "system", "content": "\n\n".join(texts)}] if texts else []
