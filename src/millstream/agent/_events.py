"""One answer of an agent: its events, the errors that end it, its limits, and the transcript.

The events are in order. Each one is also a line in a transcript, with its `type`. Events never contain keys.

An error's message is one or two sentences that a person can act on. Tool errors don't end an answer: the model receives
them and continues.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
from msgspec import Struct

from millstream.protocol import CopyableError, Json, NotCopyable, SuggestionMeta


class AgentError(CopyableError):
    """Base class of the agent's errors. ``except AgentError as error: print(error)``"""


class ConfigurationError(AgentError):
    """The configuration is incomplete or contradictory: no model, no key, a missing package.

    Example:
        ``except ConfigurationError as error: sys.exit(str(error))``
    """


class ContextError(AgentError):
    """A requested resource or prompt isn't available. ``except ContextError as error: print(error)``"""


class ModelError(AgentError):
    """The model gave no answer.

    Args:
        message: The problem and how to fix it.
        temporary: Whether the same request may succeed later.
        retry_after: Seconds to wait before a retry, if the API specifies them.

    Example:
        ``except ModelError as error: print(error)``
    """

    def __init__(self, message: str, *, temporary: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.temporary = temporary
        self.retry_after = retry_after


class ModelAuthError(ModelError):
    """The key is wrong, or isn't valid for this model (401 or 403). ``except ModelAuthError: ask_for_another_key()``"""


class ModelUnreachable(ModelError):
    """The API's URL doesn't respond. ``except ModelUnreachable: check(url)``"""


class ModelRefused(ModelError):
    """The API rejected the request: an unknown model, a conversation that is too long, an unsupported image.

    Example:
        ``except ModelRefused as error: print(error)``
    """


class ContextWindowExceeded(ModelRefused):
    """The request is too long for the model: ``except ContextWindowExceeded: agent.messages.clear()``.

    Args:
        message: The problem and how to fix it.
        window: The model's context window in tokens, if the API names it, or 0.
    """

    def __init__(self, message: str, *, window: int = 0) -> None:
        super().__init__(message)
        self.window = window


class ModelRateLimited(ModelError):
    """A rate limit was reached, or the account has no credit left. ``except ModelRateLimited: wait()``"""


class ModelServerError(ModelError):
    """The API failed, or its response was incomplete or malformed. ``except ModelServerError: ask_again()``"""


class AgentEvent(Struct, frozen=True, tag_field="type", rename="camel"):
    """Base class of the events."""


class UserMessage(AgentEvent, frozen=True, tag="user_message"):
    """The user sent a message; `context` lists the attached resources or the prompt.

    Example:
        ``case UserMessage(): log(event)``
    """

    text: str
    context: tuple[str, ...] = ()


class RoundStart(AgentEvent, frozen=True, tag="round_start"):
    """A request was sent to the model. ``case RoundStart(): spinner.start()``"""

    round: int
    messages: int
    tools: int


class TextDelta(AgentEvent, frozen=True, tag="delta"):
    """A chunk of the answer's text. ``case TextDelta(text=text): print(text, end="")``"""

    text: str


class AssistantMessage(AgentEvent, frozen=True, tag="assistant_message"):
    """The complete text of one round. A model may write text before it calls tools.

    Example:
        ``case AssistantMessage(text=text): print(text)``
    """

    text: str


class ModelRetry(AgentEvent, frozen=True, tag="model_retry"):
    """The model is busy, or its response was incomplete. The request is repeated after a pause.

    Example:
        ``case ModelRetry(reason=reason): print(reason)``
    """

    seconds: float
    attempt: int
    """Number of the failed attempt, from 1."""
    reason: str
    discard_text: bool = False
    """Whether the chunks emitted so far are invalid."""


class ResultsShortened(AgentEvent, frozen=True, tag="results_shortened"):
    """The conversation was too long for the model, so earlier results of tools were shortened in it.

    Example:
        ``case ResultsShortened(results=results): print(f"{results} results were shortened.")``
    """

    results: int
    window: int = 0
    """The model's context window in tokens, if the API names it, or 0."""


class ToolStart(AgentEvent, frozen=True, tag="tool_start"):
    """A tool call starts. ``case ToolStart(tool=tool, arguments=arguments): print(tool, arguments)``"""

    id: str
    server: str
    tool: str
    arguments: Json


class ToolProgress(AgentEvent, frozen=True, tag="tool_progress"):
    """A tool reported progress. ``case ToolProgress(): bar.show(event)``"""

    id: str
    value: float
    total: float | None = None
    message: str | None = None


Outcome = Literal["done", "error", "refused", "invalid"]


class ToolEnd(AgentEvent, frozen=True, tag="tool_end"):
    """The result of a call, as sent to the model. ``case ToolEnd(): print(event)``"""

    id: str
    server: str
    tool: str
    text: str
    outcome: Outcome = "done"
    """``done``; ``error`` from the tool or its server; ``refused`` by the user; ``invalid`` tool name or arguments."""


class SamplingResult(AgentEvent, frozen=True, tag="sampling_result"):
    """A server used the model. ``case SamplingResult(): log(event)``"""

    server: str
    text: str


class AnswerEnd(AgentEvent, frozen=True, tag="answer_end"):
    """The answer has ended. ``case AnswerEnd(): print()``"""

    reason: Literal["done", "rounds", "tokens", "length", "filtered"]
    """``done``; ``rounds`` or ``tokens``, limits of the agent; ``length`` or ``filtered``, limits of the model."""
    rounds: int
    tokens: int


Event = (
    UserMessage
    | RoundStart
    | TextDelta
    | AssistantMessage
    | ModelRetry
    | ResultsShortened
    | ToolStart
    | ToolProgress
    | ToolEnd
    | SamplingResult
    | AnswerEnd
)


Emit = Callable[[Event], Awaitable[None]]
_ROOM = 256
"""Maximum unread events."""


class AnswerQueue(Struct, NotCopyable, eq=False):
    """Runs a conversation's answers one after another: ``AgentRun(queue, work)``."""

    task: asyncio.Task[None] | None = None
    """Task of the current answer, or of the last one."""
    stopping: bool = False
    """Whether the current answer is being stopped, because it has no reader."""
    emit: Emit | None = None
    """Receives events of the current answer."""

    def stop(self, task: "asyncio.Task[None]") -> None:
        """Stop an answer that isn't read anymore.

        Args:
            task: Task of the answer.
        """
        if task is self.task:
            self.stopping = True
            self.emit = None
        task.cancel()


async def _run_to_end(
    line: AnswerQueue, work: Callable[[], Coroutine[Any, Any, None]], waiting: "asyncio.Queue[Event | None]"
) -> None:
    try:
        await work()
    except asyncio.CancelledError:
        raise
    except BaseException:
        if not line.stopping:  # otherwise, there's no reader
            await waiting.put(None)
        raise
    await waiting.put(None)


class AgentRun(NotCopyable):
    """The events of one answer: ``async for event in agent.say("Hello"): print(event)``.

    The answer runs in its own task. It waits for its reader, and stops when the loop ends, the reading task is
    canceled, or the object is deleted.
    """

    def __init__(self, line: AnswerQueue, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._line = line
        self._work = work
        self._waiting: asyncio.Queue[Event | None] = asyncio.Queue(_ROOM)
        self._task: asyncio.Task[None] | None = None
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._over:
            raise StopAsyncIteration
        if self._task is None:
            # The task must not keep this object alive.
            line, work, waiting = self._line, self._work, self._waiting
            while line.task is not None and not line.task.done():
                if not line.stopping:
                    raise AgentError("The agent is still answering. Finish reading that answer first.")
                await asyncio.wait([line.task])
            line.stopping, line.emit = False, waiting.put
            self._task = line.task = asyncio.create_task(_run_to_end(line, work, waiting))
        try:
            event = await self._waiting.get()
            if event is not None:
                return event
            self._over = True
            await self._task
        except BaseException:
            await self.aclose()
            raise
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop the answer if it's still running, and wait until it has ended."""
        self._over = True
        if self._task is not None:
            if not self._task.done():
                self._line.stop(self._task)
            await asyncio.gather(self._task, return_exceptions=True)

    def __del__(self) -> None:
        task = self._task
        if task is not None and not task.done() and (loop := task.get_loop()).is_running():
            loop.call_soon_threadsafe(self._line.stop, task)
            self._line.stopping = True


class Limits(Struct, frozen=True, kw_only=True, metaclass=SuggestionMeta):
    """Limits of one answer. ``Agent(model, ["shop.py"], limits=Limits(max_model_requests=5))``"""

    max_model_requests: int = 20
    """Maximum requests to the model: one, and one more after each set of tool calls."""
    max_tokens: int = 0
    """Maximum total tokens, including prompts. The round that reaches it is the last one. 0 means no limit."""
    max_result: int = 50_000
    """Maximum characters of a tool result or resource. The rest is replaced by a note."""
    max_parallel: int = 8
    """Maximum concurrent tool calls. Further ones wait."""
    max_attempts: int = 5
    """Maximum attempts per request, if the model is busy or its response is incomplete."""
    longest_wait: float = 60.0
    """Maximum seconds between attempts. If the API requests more, the answer ends."""


_PASSING = (TextDelta, ToolProgress)


class Transcript(Struct, eq=False):
    """The transcript of one conversation: ``agent.transcript.save("chat.jsonl")``.

    It's JSON Lines: one object per event, with the time (`at`), the `type`, and the event's members. Text chunks and
    progress are omitted, because complete answers and results follow.
    """

    _lines: list[bytes] = []
    _saved: set[Path] = set()

    def note(self, event: Event) -> None:
        """Add an event to the answer.

        Args:
            event: An event of the conversation.
        """
        if not isinstance(event, _PASSING):
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            self._lines.append(msgspec.json.encode({"at": at} | msgspec.to_builtins(event)))

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._lines)

    def save(self, path: str | Path) -> int:
        """Write a file that only you can read and return the number of lines.

        Args:
            path: Path of the file.

        Raises:
            AgentError: The file can't be written, or already exists and wasn't written by this transcript.
        """
        place = Path(path).expanduser().absolute()
        how = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if place in self._saved else os.O_EXCL)
        try:
            with open(os.open(place, how, 0o600), "wb") as file:  # noqa: PTH123  `Path.open` accepts no mode
                file.write(b"".join(line + b"\n" for line in self._lines))
        except FileExistsError as exc:
            raise AgentError(f"The file {path} already exists. Choose another name.") from exc
        except OSError as exc:
            raise AgentError(f"{path} can't be written: {exc.strerror}.") from exc
        self._saved.add(place)
        return len(self._lines)
