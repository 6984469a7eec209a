"""Conversations of sampling requests: validation, and conversion for a revision.

https://modelcontextprotocol.io/specification/2025-11-25/client/sampling#message-content-constraints: tool uses and
results must balance, and a message with results has no other content. The function that asks gets the error for a
conversation that breaks these rules, and nothing is sent.
"""

from collections import Counter
from collections.abc import Sequence

from millstream._protocol.content import (
    Audio,
    EmbeddedResource,
    Message,
    ResourceLink,
    ToolResultBlock,
    ToolUse,
)
from millstream._protocol.errors import ToolError
from millstream._protocol.revisions import Revision


def conversation(given: str | Message | Sequence[Message | str]) -> list[Message]:
    """Return the messages in order. Strings become user messages."""
    several = [given] if isinstance(given, str | Message) else given
    return [Message("user", each) if isinstance(each, str) else each for each in several]


def has_tools(messages: Sequence[Message]) -> bool:
    """Return whether a conversation has tool uses or results."""
    return any(isinstance(block, ToolUse | ToolResultBlock) for message in messages for block in message.blocks)


def check_conversation(messages: Sequence[Message]) -> None:
    """Check the rules that hold in every revision.

    Raises:
        ValueError: A message breaks a rule. The text names it and says what to do.
    """
    asked: Counter[str] = Counter()
    for number, message in enumerate(messages, 1):
        uses, results = _tools_of(message, f"Message {number} of the conversation")
        if results != asked:
            raise ValueError(
                f"Message {number} of the conversation must answer the tool uses of the previous message, which "
                f"are {_ids(asked)}, but its tool results are for {_ids(results)}. Put one tool result for each "
                "tool use, and no other content, into the user's next message."
            )
        asked = uses
    if asked:
        raise ValueError(f"The conversation ends before the tool uses {_ids(asked)} have tool results. Add them.")


def _tools_of(message: Message, where: str) -> tuple[Counter[str], Counter[str]]:
    """Return the ids of a message's tool uses and tool results."""
    blocks = message.blocks
    for block in blocks:
        if isinstance(block, ResourceLink | EmbeddedResource):
            raise ValueError(f"{where} contains a resource, which can't be sent to a model. Use its text instead.")
        speaker = "assistant" if isinstance(block, ToolUse) else "user"
        if isinstance(block, ToolUse | ToolResultBlock) and message.role != speaker:
            raise ValueError(f"{where} contains a {type(block).__name__}, so its role must be {speaker!r}.")
    uses = Counter(block.id for block in blocks if isinstance(block, ToolUse))
    results = Counter(block.tool_use_id for block in blocks if isinstance(block, ToolResultBlock))
    if results and results.total() != len(blocks):
        raise ValueError(f"{where} mixes tool results with other content. Put the other content into a later message.")
    return uses, results


def _ids(counted: Counter[str]) -> str:
    return ", ".join(map(repr, counted.elements())) or "none"


def project_conversation(messages: Sequence[Message], revision: Revision) -> list[Message]:
    """Return messages for a revision. A message with several blocks can become several messages of the same role.

    Raises:
        ToolError: The revision doesn't support a block.
    """
    if "audio" not in revision.content and any(isinstance(b, Audio) for message in messages for b in message.blocks):
        raise ToolError(f"This needs sampling with audio, which protocol revision {revision.date} doesn't have.")
    if revision.sampling_tools:
        return list(messages)
    return [each for message in messages for each in message.one_by_one()]
