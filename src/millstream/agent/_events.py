"""Events of an answer, in order. Each event is also a line of a transcript, by its `type`."""

from typing import Any, Literal

from msgspec import Struct


class AgentEvent(Struct, frozen=True, tag_field="type", rename="camel"):
    """Base class of the events."""


class UserMessage(AgentEvent, frozen=True, tag="user_message"):
    """The user sent a message; `context` names the attached resources or the prompt.

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


class Delta(AgentEvent, frozen=True, tag="delta"):
    """A chunk of the answer's text. ``case Delta(text=text): print(text, end="")``"""

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
    void: bool = False
    """Whether the chunks emitted so far are invalid."""


class ToolStart(AgentEvent, frozen=True, tag="tool_start"):
    """A tool call starts. ``case ToolStart(tool=tool, arguments=arguments): print(tool, arguments)``"""

    id: str
    server: str
    tool: str
    arguments: dict[str, Any]


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
    | Delta
    | AssistantMessage
    | ModelRetry
    | ToolStart
    | ToolProgress
    | ToolEnd
    | SamplingResult
    | AnswerEnd
)
