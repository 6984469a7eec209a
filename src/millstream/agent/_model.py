"""The interface between an agent and a model: a request in, text and one reply out.

Messages and tools have the format of OpenAI's chat completions, which other APIs support as well
(https://platform.openai.com/docs/api-reference/chat).
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Protocol

from msgspec import Struct

Message = dict[str, Any]


class ToolCall(Struct, frozen=True):
    """An unchecked tool call by the model: the name may be unknown, and the arguments malformed.

    Example:
        ``for call in reply.tool_calls: print(call.name)``
    """

    id: str
    name: str
    arguments: str


class ModelResponse(Struct, frozen=True):
    """The model's complete output of one round. ``yield ModelResponse(text="Hello")``"""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    stop: str = "stop"
    """``stop``, ``length`` (out of tokens), ``content_filter``, or ``tool_calls``."""
    tokens: int = 0
    """Tokens of the prompt and the reply, or 0 if the API doesn't count them."""


class ModelRequest(Struct, frozen=True, kw_only=True):
    """A request to the model. ``async def stream(self, request: ModelRequest): ...``"""

    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]] = ()
    max_tokens: int = 0
    """Maximum tokens of the reply; 0 leaves it to the model."""
    temperature: float | None = None
    stop: Sequence[str] = ()


class Model(Protocol):
    """A language model."""

    @property
    def name(self) -> str:
        """Name of the model at its API."""
        ...

    def stream(self, request: ModelRequest) -> AsyncGenerator[str | ModelResponse, None]:
        """Yield chunks of the text, then the complete reply.

        Args:
            request: The conversation, the tools, and the limits of the reply.

        Raises:
            ModelError: There's no complete reply. Chunks that were already yielded are invalid.
        """
        ...

    async def close(self) -> None:
        """Close connections."""
        ...
