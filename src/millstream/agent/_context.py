"""What the person points to: ``@server:uri`` in a sentence, and the messages of a prompt."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from millstream._protocol.messages import PromptDescription
from millstream.agent._content import Part, message_content, show_blocks, show_contents
from millstream.agent._errors import ContextError
from millstream.agent._model import Message
from millstream.agent._servers import Connected
from millstream.client._errors import ClientError

_MENTION = re.compile(r"(?<!\S)@(?P<server>[\w.-]+):(?P<uri>[A-Za-z][\w+.-]*:\S+)")
_CLOSING = ".,;!?)'\""
"""A sentence may end right behind a URI."""


def mentions(text: str, servers: Sequence[Connected]) -> list[tuple[Connected, str]]:
    """The resources that a sentence names, of servers that there are; anything else is just text."""
    by_name = {server.name: server for server in servers}
    found = [(by_name.get(each["server"]), each["uri"].rstrip(_CLOSING)) for each in _MENTION.finditer(text)]
    return [(server, uri) for server, uri in dict.fromkeys(found) if server is not None]


async def read(server: Connected, uri: str, limit: int) -> list[Part]:
    """A resource as parts of a message.

    Raises:
        ContextError: it can't be read.
    """
    try:
        return show_contents(uri, await server.client.read(uri), limit)
    except ClientError as exc:
        raise ContextError(f"{server.name} doesn't give {uri}: {exc}") from exc


async def find_prompt(name: str, servers: Sequence[Connected]) -> tuple[Connected, PromptDescription]:
    """The prompt of this name; ``server:name`` where several servers have one.

    Raises:
        ContextError: there's none, or more than one.
    """
    found: list[tuple[Connected, PromptDescription]] = []
    known: list[str] = []
    for server in servers:
        for prompt in await server.client.prompts():
            known.append(prompt.name)
            if name in (prompt.name, f"{server.name}:{prompt.name}"):
                found.append((server, prompt))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"{server.name}:{prompt.name}" for server, prompt in found)
        raise ContextError(f"Several servers have a prompt {name!r}. Choose one: {names}.")
    raise ContextError(f"There is no prompt {name!r}. The prompts are: {', '.join(known) or 'none'}.")


async def prompt_messages(
    server: Connected, prompt: PromptDescription, arguments: Mapping[str, str], limit: int
) -> list[Message]:
    """The messages of a prompt, as a model takes them.

    Raises:
        ContextError: an argument is missing, or the server refuses.
    """
    missing = [each.name for each in prompt.arguments if each.required and each.name not in arguments]
    if missing:
        raise ContextError(f"The prompt {prompt.name} needs {', '.join(missing)}.")
    try:
        result = await server.client.prompt(prompt.name, arguments)
    except ClientError as exc:
        raise ContextError(f"{server.name} doesn't give the prompt {prompt.name}: {exc}") from exc
    return chat_messages(result.messages, limit)


def chat_messages(given: Sequence[Any], limit: int) -> list[Message]:
    """Messages of MCP as messages of a chat API; only a person's may have pictures."""
    messages: list[Message] = []
    for each in given:
        shown = show_blocks(each.blocks, limit)
        parts = shown.parts if each.role == "user" else []
        messages.append({"role": each.role, "content": message_content(shown.text, parts)})
    return messages
