"""Parameters and results of requests from a server, sent on their own or in an `InputRequiredResult`.

The names are those of https://modelcontextprotocol.io/specification/2026-07-28/schema, plus members of older revisions.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from msgspec import Raw, Struct

from millstream._protocol.content import Message, Role, SamplingContent, Text, Wire
from millstream._protocol.messages import EmptyResult, Json, Params


class ElicitRequestParams(Params, kw_only=True):
    """`elicitation/create`: a form without a mode or with the mode `form`, or a URL with the mode `url`."""

    mode: str | None = None
    message: str
    requested_schema: Json | None = None
    url: str | None = None
    elicitation_id: str | None = None
    """For URLs in 2025-11-25."""


class ElicitResult(Params):
    """The user's action, with the values of a form."""

    action: str
    content: Raw = Raw(b"")


class CreateMessageRequestParams(Params):
    """`sampling/createMessage`."""

    messages: list[Message]
    max_tokens: int
    system_prompt: str | None = None
    temperature: float | None = None
    stop_sequences: Sequence[str] | None = None
    model_preferences: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: Mapping[str, Any] | None = None


class SampleResult(Wire, frozen=True):
    """The answer of the client's model: ``(await ctx.sample("Say hello")).text``."""

    role: Role
    content: SamplingContent | list[SamplingContent]
    model: str
    stop_reason: str | None = None

    @property
    def text(self) -> str:
        """Return the text blocks, joined."""
        content = self.content if isinstance(self.content, list) else [self.content]
        return "\n".join(block.text for block in content if isinstance(block, Text))


class Root(Wire, frozen=True):
    """A folder or file that the client works on."""

    uri: str
    name: str | None = None


class ListRootsResult(Wire, frozen=True):
    """`roots/list`."""

    roots: list[Root]


QUESTIONS: Mapping[str, tuple[type[Struct], type[Struct]]] = MappingProxyType(
    {
        "ping": (Params, EmptyResult),
        "roots/list": (Params, ListRootsResult),
        "sampling/createMessage": (CreateMessageRequestParams, SampleResult),
        "elicitation/create": (ElicitRequestParams, ElicitResult),
    }
)
"""Server method -> its parameters and result."""
