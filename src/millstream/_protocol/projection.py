"""Conversion of the newest revision's shapes for older revisions, as pure functions of a `Revision`.

Handlers build what the newest revision defines. These functions drop members, convert content, and wrap structured
output. They read fields of the revision and never compare dates.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from msgspec import UNSET

from millstream._protocol.content import BLOCKS, Audio, Content, EmbeddedResource, Message, ResourceLink, Text
from millstream._protocol.errors import (
    INVALID_PARAMS,
    MISSING_CLIENT_CAPABILITY,
    OVERLOADED,
    RESOURCE_NOT_FOUND,
    SERVER_ERROR,
    ProtocolError,
)
from millstream._protocol.foreign import foreign_decoder
from millstream._protocol.json_schema import wrap_output
from millstream._protocol.jsonrpc import encode
from millstream._protocol.messages import CallToolResult, GetPromptResult
from millstream._protocol.revisions import Revision

Json = dict[str, Any]


def project_item(item: Json, revision: Revision) -> Json:
    """Return the description of a resource, template, prompt, or tool without members that the revision lacks."""
    drop: set[str] = set()
    if not revision.named_titles:
        drop |= {"title", "_meta"}
    if not revision.icons:
        drop.add("icons")
    if not drop.isdisjoint(item):
        item = {key: value for key, value in item.items() if key not in drop}
    if "annotations" in item and not revision.named_titles:
        kept = {key: value for key, value in item["annotations"].items() if key != "lastModified"}
        item = {**item, "annotations": kept}
    if "arguments" in item and not revision.named_titles:
        item = {**item, "arguments": [project_item(argument, revision) for argument in item["arguments"]]}
    return item


def tool(item: Json, revision: Revision) -> Json:
    """Return a tool description for a revision."""
    item = project_item(item, revision)
    if not revision.tool_annotations and "annotations" in item:
        item = {key: value for key, value in item.items() if key != "annotations"}
    output = item.get("outputSchema")
    if output is not None:
        if revision.structured == "none":
            item = {key: value for key, value in item.items() if key != "outputSchema"}
        elif revision.structured == "object" and output.get("type") != "object":
            item = {**item, "outputSchema": wrap_output(output)}
    return item


def implementation(info: Json, revision: Revision, *, whole: bool = True) -> Json:
    """Return the server's name and version for a revision, with the potentially long members only if `whole`."""
    kept = {"name", "version"}
    if revision.named_titles:
        kept.add("title")
    if revision.icons and whole:
        kept |= {"description", "websiteUrl", "icons"}
    return {key: value for key, value in info.items() if key in kept}


def capabilities(offered: Mapping[str, Any], revision: Revision) -> Json:
    """Return the server capabilities for a revision. Older ones have the method but no `completions` member."""
    return {key: value for key, value in offered.items() if key != "completions" or revision.completions_capability}


def project_structured(value: bytes, revision: Revision, *, wraps: bool = False) -> bytes:
    """Return encoded structured content for a revision, or empty bytes if the revision has none. Non-objects are
    wrapped.

    Args:
        value: The encoded content.
        revision: The client's revision.
        wraps: Whether the tool's output schema is wrapped, so that objects are wrapped, too.
    """
    if revision.structured == "none":
        return b""
    if revision.structured == "object" and (wraps or value[:1] != b"{"):
        return b'{"result":' + value + b"}"
    return value


def blocks(content: Sequence[Content], revision: Revision) -> list[Content]:
    """Return content blocks, with those that the revision lacks converted to text."""
    return [block(each, revision) for each in content]


def block(each: Content, revision: Revision) -> Content:
    """Return a content block for a revision."""
    if isinstance(each, ResourceLink) and "resource_link" not in revision.content:
        title = each.title or each.name
        return Text(f"{title}: {each.uri}" + (f"\n{each.description}" if each.description else ""))
    if isinstance(each, Audio) and "audio" not in revision.content:
        return EmbeddedResource(uri="attachment:audio", blob=each.data, mime_type=each.mime_type)
    return each


def error(exc: ProtocolError, revision: Revision) -> ProtocolError:
    """Return an error with the code that an older revision uses."""
    if exc.code == RESOURCE_NOT_FOUND:
        return ProtocolError(revision.missing_resource_code, exc.message, exc.data, status=exc.status)
    if exc.code == MISSING_CLIENT_CAPABILITY and revision.handshake:
        return ProtocolError(INVALID_PARAMS, exc.message, exc.data)
    if exc.code == OVERLOADED and revision.handshake:
        return ProtocolError(SERVER_ERROR, exc.message, exc.data, status=exc.status)
    return exc


_decode_result = foreign_decoder(CallToolResult)
_decode_messages = foreign_decoder(GetPromptResult)


def tool_result(members: bytes, revision: Revision, *, wraps: bool = False) -> bytes:
    """Return the members of a tool result for an older revision. `wraps` is as for `project_structured`."""
    result = _decode_result(b"{%b}" % members)
    parts = [b'"content":%b' % encode(blocks(result.content, revision))]
    if result.structured_content is not UNSET:
        value = project_structured(bytes(result.structured_content), revision, wraps=wraps)
        if value:
            parts.append(b'"structuredContent":%b' % value)
    if result.is_error:
        parts.append(b'"isError":true')
    return b",".join(parts)


def prompt_messages(members: bytes, revision: Revision) -> bytes:
    """Return the members of a prompt result for an older revision."""
    messages = [
        Message(message.role, block(cast("Content", message.content), revision))
        if isinstance(message.content, BLOCKS)
        else message
        for message in _decode_messages(b"{%b}" % members).messages
    ]
    return b'"messages":%b' % encode(messages)
