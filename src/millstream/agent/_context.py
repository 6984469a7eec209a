"""Context that the user selects: ``@server:uri`` mentions, and the messages of a prompt."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from millstream._protocol.notifications import PromptDescription
from millstream.agent._content import Part, message_content, show_blocks, show_contents
from millstream.agent._errors import ContextError
from millstream.agent._model import Message
from millstream.agent._servers import ConnectedServer
from millstream.client._errors import ClientError, Failure

_MENTION = re.compile(r"(?<!\S)@(?P<server>[\w.-]+):(?P<uri>[A-Za-z][\w+.-]*:\S+)")
_CLOSING = ".,;!?)'\""
"""Punctuation that can follow a URI in a sentence."""


def mentions(text: str, servers: Sequence[ConnectedServer]) -> list[tuple[ConnectedServer, str]]:
    """Return the resources mentioned in a text. Mentions of unknown servers stay plain text."""
    by_name = {server.name: server for server in servers}
    found = [(by_name.get(each["server"]), each["uri"].rstrip(_CLOSING)) for each in _MENTION.finditer(text)]
    return [(server, uri) for server, uri in dict.fromkeys(found) if server is not None]


async def read(server: ConnectedServer, uri: str, limit: int) -> list[Part]:
    """Return a resource as message parts.

    Raises:
        ContextError: the resource can't be read.
    """
    try:
        return show_contents(uri, await server.client.read(uri), limit)
    except ClientError as exc:
        raise ContextError(f"{server.name} can't provide {uri}: {exc}") from exc


async def find_prompt(name: str, servers: Sequence[ConnectedServer]) -> tuple[ConnectedServer, PromptDescription]:
    """Find a prompt by its name, or by ``server:name`` if several servers have it.

    Raises:
        ContextError: the prompt is unknown or ambiguous.
    """
    found: list[tuple[ConnectedServer, PromptDescription]] = []
    known: list[str] = []
    for server in servers:
        try:
            prompts = await server.client.prompts()
        except Failure:  # the other servers may have it
            continue
        for prompt in prompts:
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
    server: ConnectedServer, prompt: PromptDescription, arguments: Mapping[str, str], limit: int
) -> list[Message]:
    """Return the messages of a prompt in the model's format.

    Raises:
        ContextError: an argument is missing, or the server returned an error.
    """
    missing = [each.name for each in prompt.arguments if each.required and each.name not in arguments]
    if missing:
        raise ContextError(f"The prompt {prompt.name} needs {', '.join(missing)}.")
    try:
        result = await server.client.prompt(prompt.name, arguments)
    except ClientError as exc:
        raise ContextError(f"{server.name} can't provide the prompt {prompt.name}: {exc}") from exc
    return chat_messages(result.messages, limit)


def chat_messages(messages: Sequence[Any], limit: int) -> list[Message]:
    """Convert MCP messages to messages of a chat API, where only user messages can contain images."""
    converted: list[Message] = []
    for each in messages:
        shown = show_blocks(each.blocks, limit)
        parts = shown.parts if each.role == "user" else []
        converted.append({"role": each.role, "content": message_content(shown.text, parts)})
    return converted
