"""`Agent`: a language model, the servers whose tools it uses, and a conversation."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Self

from millstream._protocol.errors import suggest_keywords
from millstream._protocol.notifications import CreateMessageRequestParams, SampleResult
from millstream.agent._answer import Answer, AnswerQueue
from millstream.agent._content import Part, message_content, text_part
from millstream.agent._context import find_prompt, mentions, prompt_messages, read
from millstream.agent._errors import ContextError, ModelError
from millstream.agent._events import Event, SamplingResult, UserMessage
from millstream.agent._limits import Limits
from millstream.agent._model import Message, Model
from millstream.agent._person import Approve, Elicit, Person
from millstream.agent._sampling import sample
from millstream.agent._servers import ConnectedServer, ServerAt, Servers, connect, resolve_servers
from millstream.agent._tool_caller import ToolCaller
from millstream.agent._tools import Toolbox
from millstream.agent._transcript import Transcript
from millstream.agent._turn import Turn
from millstream.client._client import Client
from millstream.client._questions import ElicitAnswer, Question, Roots


@suggest_keywords
class Agent:
    """A language model, the servers whose tools it uses, and a conversation.

    Example:
        ``async with Agent(LanguageModel("gpt-4.1", key=…), ["shop.py"]) as agent:`` and in it
        ``async for event in agent.say("Hi"): …``.

    Args:
        model: the model; see `LanguageModel`. The agent closes it.
        servers: servers with tools, resources, and prompts: targets of `Client` or `ServerAt`s, in a list or by name.
        system: system prompt. The servers' instructions are appended.
        approve: decides whether a tool may run that isn't marked as read-only, and whether a server may use the model.
            By default, both are refused.
        elicit: fills in forms of servers: ``elicit(server, question)``. Without it, servers can't ask.
        roots: folders and files that servers may learn about.
        limits: limits of one answer.

    Raises:
        ConfigurationError: `servers` isn't a list or a mapping.
        TargetError: a target isn't a server.
    """

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
        # Configuration
        self.model = model
        self.limits: Limits = limits or Limits()
        self._system = system
        self._person = Person(approve, elicit)
        self._wanted = [(place, self._client(place, roots)) for place in resolve_servers(servers)]
        # State
        self.servers: list[ConnectedServer] = []
        """The connected servers."""
        self.messages: list[Message] = []
        """The conversation so far, in the format of the model's API."""
        self.transcript: Transcript = Transcript()
        self._beside: list[Part] = []
        """Resources to attach to the next message."""
        self._closing = AsyncExitStack()
        self._line = AnswerQueue()

    async def __aenter__(self) -> Self:
        """Connect to all servers.

        Raises:
            ClientError: a server can't be reached; the message says why and what to do.
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

    def say(self, text: str) -> Answer:
        """Send a message, and return the events of the answer.

        ``@server:uri`` in the text attaches that resource. Leaving the loop stops the answer, but keeps its messages.

        Raises:
            ModelError: the model gave no answer. The conversation is unchanged.
            ContextError: a resource can't be read.
            AgentError: another answer is in progress.
        """
        return self._answer(partial(self._append_user_message, text))

    def prompt(self, name: str, arguments: Mapping[str, str] | None = None) -> Answer:
        """Send the messages of a server's prompt. Use ``server:name`` if the name isn't unique. Raises like `say`."""
        return self._answer(partial(self._append_prompt, name, arguments or {}))

    async def tools(self) -> Toolbox:
        """Return the tools that are currently available to the model."""
        lists = await asyncio.gather(*(_all(server.client.tools()) for server in self.servers))
        return Toolbox(list(zip(self.servers, lists, strict=True)))

    async def read(self, server: str, uri: str) -> list[Part]:
        """Attach a resource to the next message, and return its parts.

        Raises:
            ContextError: the server is unknown, or the resource can't be read.
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

    def _client(self, place: ServerAt, roots: Roots | None) -> Client:
        async def fill_in(question: Question) -> ElicitAnswer:
            return await self._person.answer(self._name_of(client), question)

        async def complete(params: CreateMessageRequestParams) -> SampleResult:
            name = self._name_of(client)
            result = await sample(name, params, self.model, self._person, self.limits)
            await self._emit(SamplingResult(name, result.text))
            return result

        client = Client(
            place.target,
            revision=place.revision,
            headers=place.headers,
            timeout=place.timeout,
            elicit=fill_in if self._person.fills_in else None,
            sample=complete if self._person.approves else None,
            roots=roots,
            options=place.options,
        )
        return client

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

    def _answer(self, begin: Callable[[], Coroutine[Any, Any, UserMessage]]) -> Answer:
        return Answer(self._line, partial(self._carry_out, begin))

    async def _carry_out(self, begin: Callable[[], Coroutine[Any, Any, UserMessage]]) -> None:
        before, beside = len(self.messages), self._beside
        try:
            await self._emit(await begin())
            toolbox = await self.tools()
            caller = ToolCaller(toolbox, self._person, self.limits, self._emit)
            turn = Turn(
                self.model,
                toolbox,
                caller,
                self.limits,
                self._emit,
                system=self._system_message(),
                messages=self.messages,
            )
            await turn.run()
        except ModelError:
            del self.messages[before:]
            self._beside = beside
            raise

    def _system_message(self) -> Sequence[Message]:
        """Return the system message: the program's text, and the servers' instructions."""
        texts = [self._system] if self._system else []
        manuals = ((each.name, each.client.instructions) for each in self.servers)
        texts += [f"How to use the tools of {name}: {instructions}" for name, instructions in manuals if instructions]
        return [{"role": "system", "content": "\n\n".join(texts)}] if texts else []


async def _all(listing: Any) -> Any:
    return await listing
