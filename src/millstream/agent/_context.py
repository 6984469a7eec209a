"""Context for a model: resources and prompts that the user selects, and content from servers, as messages.

The user selects resources by ``@server:uri`` mentions. Content is converted to text, with images and audio as message
parts. Tool messages can contain only text, so images and audio of a result are sent in a user message after it.
"""

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice, pairwise
from typing import Any

import msgspec
from msgspec import UNSET

from millstream import Audio, EmbeddedResource, Image, ResourceContents, ResourceLink, Text, ToolResultBlock, ToolUse
from millstream.agent._configuration import ConnectedServer
from millstream.agent._events import ContextError
from millstream.agent._model import Message
from millstream.client import ClientError, Result, ServerError
from millstream.protocol import MALFORMED, Json, PromptDescription, image_type, is_array, is_object

Part = Json
_SOUNDS = {"audio/wav": "wav", "audio/x-wav": "wav", "audio/wave": "wav", "audio/mpeg": "mp3", "audio/mp3": "mp3"}
"""Media type -> format name of the API. Others aren't supported."""
_PICTURES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})


def show_result(result: Result, limit: int) -> tuple[str, list[Part]]:
    """Return the text and parts of a tool's result, with structured content if the text doesn't contain it."""
    text, parts = show_blocks(result.content, limit)
    structured = result.structured_content
    if structured is not UNSET and len(text) <= limit and not (text and _repeats(text, structured)):
        text = cut(f"{text}\n{bytes(structured).decode('utf-8', 'replace')}".lstrip("\n"), limit)
    return text or ("(see the next message)" if parts else "(no content)"), parts


def _repeats(text: str, structured: msgspec.Raw) -> bool:
    """Return whether text has the first values of structured content."""
    with suppress(*MALFORMED):
        text = "\n".join(map(str, _leaves(msgspec.json.decode(text))))
    try:
        found = msgspec.json.decode(structured)
    except MALFORMED:
        return True
    return all(str(each) in text for each in islice(_leaves(found), 100))


def _leaves(value: Any) -> Iterator[Any]:
    pending = [value]
    for each in pending:
        if is_object(each):
            pending += each.values()
        elif is_array(each):
            pending += each
        elif each is not None:
            yield each


def show_blocks(blocks: Iterable[Any], limit: int) -> tuple[str, list[Part]]:
    """Return the text of the content blocks of a tool result or prompt, and their images and audio as parts."""
    shown = [_show(block) for block in blocks]
    text = "\n".join(text for text, _ in shown if text)
    return cut(text, limit), [part for _, part in shown if part is not None]


def text_part(text: str) -> Part:
    """Return text as a message part."""
    return {"type": "text", "text": text}


def message_content(text: str, parts: Sequence[Part]) -> str | list[Part]:
    """Return the content of a message: plain text if possible, because some APIs only accept text."""
    if not parts:
        return text
    return ([text_part(text)] if text else []) + list(parts)


def cut(text: str, limit: int) -> str:
    """Truncate text to `limit` characters and append a note about the rest."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\n[{len(text) - limit:,} more characters were left out]"


_SHORT, _LAST_SHORT = 500, 2000
"""Maximum characters of a shortened result: of earlier rounds, and of the last one if that isn't enough."""


def shorten_results(messages: Sequence[Message]) -> int:
    """Shorten the results of earlier rounds, or of the last round if the earlier ones are short already.

    Args:
        messages: The conversation, whose messages are changed.

    Returns:
        How many messages were shortened.
    """
    last = max((number for number, each in enumerate(messages) if "tool_calls" in each), default=len(messages))
    return _shorten(messages[:last], _SHORT) or _shorten(messages[last:], _LAST_SHORT)


def _shorten(messages: Sequence[Message], limit: int) -> int:
    count = leave_out_media(messages)
    for message in messages:
        if message["role"] == "tool" and len(message["content"]) > 2 * limit:
            message["content"] = cut(message["content"], limit)
            count += 1
    return count


def leave_out_media(messages: Sequence[Message]) -> int:
    """Leave out the images and sounds of results, and return the number of messages with any."""
    count = 0
    for before, message in pairwise(messages):
        content = message["content"]
        if before["role"] == "tool" and is_array(content) and any(part["type"] != "text" for part in content):
            names = [part["text"] for part in content if part["type"] == "text"]
            message["content"] = "\n".join([*names, "[images and sounds were left out]"])
            count += 1
    return count


def _show(block: Any) -> tuple[str, Part | None]:
    match block:
        case Text():
            return block.text, None
        case Image() | Audio():
            return _show_bytes(block.data, block.mime_type)
        case ResourceLink():
            about = f": {block.description}" if block.description else ""
            return f"[resource {block.uri} ({block.title or block.name}){about}]", None
        case EmbeddedResource(resource=ResourceContents() as resource):
            text, part = _show_resource(resource)
            return f"[resource {resource.uri}]\n{text}".rstrip(), part
        case ToolUse():  # like results, these occur only in sampling
            return f"[called {block.name} with {msgspec.json.encode(block.input).decode()}]", None
        case ToolResultBlock():
            return "\n".join(_show(each)[0] for each in block.content), None
        case _:
            return f"[{type(block).__name__} left out]", None


def _show_resource(content: ResourceContents) -> tuple[str, Part | None]:
    if content.blob is None:
        return content.text or "", None
    return _show_bytes(content.blob, content.mime_type or "")


def _show_bytes(data: bytes, media: str) -> tuple[str, Part | None]:
    """Return an image or audio part if models support it, or else a description."""
    media = image_type(data) or media.partition(";")[0].strip().lower()  # APIs reject an image with another type
    encoded = base64.b64encode(data).decode()
    if media in _PICTURES:
        return "", {"type": "image_url", "image_url": {"url": f"data:{media};base64,{encoded}"}}
    if media in _SOUNDS:
        return "", {"type": "input_audio", "input_audio": {"data": encoded, "format": _SOUNDS[media]}}
    if media.startswith("text/") or media.endswith(("json", "xml")):
        return data.decode("utf-8", "replace"), None
    return f"[{media or 'bytes'}, {len(data):,} bytes]", None


_MENTION = re.compile(r"(?<!\S)@(?P<server>[\w.-]+):(?P<uri>[A-Za-z][\w+.-]*:\S+)")
_CLOSING = ".,;!?)'\""
"""Punctuation that can follow a URI in a sentence."""


def mentions(text: str, servers: Sequence[ConnectedServer]) -> list[tuple[ConnectedServer, str]]:
    """Return the resources mentioned in a message. Mentions of unknown servers stay plain text."""
    by_name = {server.name: server for server in servers}
    found = [(by_name.get(each["server"]), each["uri"].rstrip(_CLOSING)) for each in _MENTION.finditer(text)]
    return [(server, uri) for server, uri in dict.fromkeys(found) if server is not None]


async def read(server: ConnectedServer, uri: str, limit: int) -> list[Part]:
    """Return a resource as message parts.

    Raises:
        ContextError: The resource can't be read.
    """
    try:
        contents = await server.client.read(uri)
    except ClientError as exc:
        raise ContextError(f"{server.name} can't provide {uri}: {exc}") from exc
    parts: list[Part] = []
    for each in contents:
        text, part = _show_resource(each)
        parts.append(text_part(cut(f"Content of {uri}:\n{text}" if text else f"Content of {uri}:", limit)))
        if part is not None:
            parts.append(part)
    return parts


async def find_prompt(name: str, servers: Sequence[ConnectedServer]) -> tuple[ConnectedServer, PromptDescription]:
    """Find a prompt by its name, or by ``server:name`` if several servers have it.

    Raises:
        ContextError: The prompt is unknown or ambiguous.
    """
    found: list[tuple[ConnectedServer, PromptDescription]] = []
    known: list[str] = []
    for server in servers:
        try:
            prompts = await server.client.prompts()
        except ServerError:  # the other servers may have the prompt
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
        ContextError: An argument is missing, or the server returned an error.
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
        text, parts = show_blocks(each.blocks, limit)
        converted.append({"role": each.role, "content": message_content(text, parts if each.role == "user" else [])})
    return converted
