"""The seam between an agent and a model: a request goes in, text and one reply come out.

Messages and tools have the shape of OpenAI's chat completions, which is what other APIs speak, too
(https://platform.openai.com/docs/api-reference/chat).
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Protocol

from msgspec import Struct

Message = dict[str, Any]


class ToolCall(Struct, frozen=True):
    """A tool call that the model wants, as it wrote it: neither name nor arguments need to make sense.

    Example:
        ``for call in reply.tool_calls: print(call.name)``
    """

    id: str
    name: str
    arguments: str


class Reply(Struct, frozen=True):
    """Everything that the model said in one round. ``yield Reply(text="Hello")``"""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    stop: str = "stop"
    """``stop``, ``length`` (it ran out of tokens), ``content_filter`` or ``tool_calls``."""
    tokens: int = 0
    """Of prompt and reply, as the API counts them; 0 if it doesn't."""


class Request(Struct, frozen=True, kw_only=True):
    """What the model is asked. ``async def stream(self, request: Request): ...``"""

    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]] = ()
    max_tokens: int = 0
    """Of the reply; 0 leaves it to the model."""
    temperature: float | None = None
    stop: Sequence[str] = ()


class Model(Protocol):
    """A language model."""

    @property
    def name(self) -> str:
        """What the API calls it."""
        ...

    def stream(self, request: Request) -> AsyncGenerator[str | Reply, None]:
        """The pieces of the text as they come, then the reply, which holds all of it.

        Raises:
            ModelError: there's no reply, or not all of it. Pieces that were given before don't count then.
        """
        ...

    async def close(self) -> None:
        """Give up connections."""
        ...
