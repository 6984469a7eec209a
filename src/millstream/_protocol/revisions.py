"""The five revisions, and the conversion of the newest revision's shapes for older ones.

Each revision is its predecessor plus changes, in the order of the specification's changelog. Only this module contains
dates. Other code reads the fields of a `Revision`. `Revision.requests` is the version gate: a method that isn't in it
is "method not found".

Handlers build what the newest revision defines. The conversions drop members, convert content, and wrap structured
output. They are pure functions of a `Revision`, read its fields, and never compare dates.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.structs import replace

from millstream._protocol.content import BLOCKS, Audio, Message, Text
from millstream._protocol.errors import (
    INVALID_PARAMS,
    MISSING_CLIENT_CAPABILITY,
    OVERLOADED,
    RESOURCE_NOT_FOUND,
    SERVER_ERROR,
    ProtocolError,
    ToolError,
)
from millstream._protocol.foreign import present
from millstream._protocol.json_schema import Schema, wrap_output
from millstream._protocol.jsonrpc import MALFORMED, Json, decode_members, decode_object, decoder, encode


class Revision(Struct, frozen=True, kw_only=True, eq=False):
    """One revision of the protocol: its methods, limits, and requirements.

    Example:
        ``"elicitation/create" in BY_DATE["2025-06-18"].asks``
    """

    date: str
    handshake: bool = True
    """Whether the revision has `initialize` and sessions. Otherwise every request carries its own metadata."""
    requests: Mapping[str, str]
    """Client request -> the server capability it needs ("" for none)."""
    notifications: frozenset[str]
    """Notifications that a client can send."""
    asks: frozenset[str]
    """Methods that a server can call on a client."""
    batches: bool = False
    content: frozenset[str]
    """Content block types. `block` converts the other types of ours."""
    structured: Literal["none", "object", "any"] = "none"
    """The values allowed for `structuredContent` and `outputSchema`."""
    tool_annotations: bool = False
    progress_message: bool = False
    completions_capability: bool = False
    completion_context: bool = False
    named_titles: bool = False
    """`title` and `_meta` on named items."""
    icons: bool = False
    """`icons` everywhere; `description` and `websiteUrl` of an implementation."""
    header: bool = False
    """Clients send `MCP-Protocol-Version` after initialization."""
    routing_headers: bool = False
    """`Mcp-Method`, `Mcp-Name`, and `Mcp-Param-*` must match the body."""
    elicitation_modes: frozenset[str] = frozenset()
    rich_forms: bool = False
    """Titled and multi-select enums, and defaults for every primitive."""
    elicitation_ids: bool = False
    sampling_tools: bool = False
    url_error: bool = False
    """A server that can't ask can answer with error -32042 and URLs."""
    argument_errors_in_result: bool = False
    """Arguments that violate the schema return `isError` instead of a protocol error."""
    missing_resource_code: int = -32002
    event_ids: bool = False
    """Streams carry event ids and can be resumed."""
    priming: bool = False
    """Streams start with an empty event, and can be closed early and polled."""
    result_type: bool = False
    """`resultType`, cache hints and server information on results."""
    log_level_per_request: bool = False


R2024_11_05 = Revision(
    date="2024-11-05",
    requests=MappingProxyType(
        {
            "initialize": "",
            "ping": "",
            "tools/list": "tools",
            "tools/call": "tools",
            "resources/list": "resources",
            "resources/templates/list": "resources",
            "resources/read": "resources",
            "resources/subscribe": "resources",
            "resources/unsubscribe": "resources",
            "prompts/list": "prompts",
            "prompts/get": "prompts",
            "completion/complete": "completions",
            "logging/setLevel": "logging",
        }
    ),
    notifications=frozenset(
        {
            "notifications/initialized",
            "notifications/cancelled",
            "notifications/progress",
            "notifications/roots/list_changed",
        }
    ),
    asks=frozenset({"ping", "roots/list", "sampling/createMessage"}),
    content=frozenset({"text", "image", "resource"}),
)

R2025_03_26 = replace(
    R2024_11_05,
    date="2025-03-26",
    event_ids=True,  # Streamable HTTP
    batches=True,
    tool_annotations=True,
    content=R2024_11_05.content | {"audio"},
    completions_capability=True,
    progress_message=True,
)

R2025_06_18 = replace(
    R2025_03_26,
    date="2025-06-18",
    batches=False,
    structured="object",
    content=R2025_03_26.content | {"resource_link"},
    asks=R2025_03_26.asks | {"elicitation/create"},
    elicitation_modes=frozenset({"form"}),
    header=True,
    named_titles=True,
    completion_context=True,
)

R2025_11_25 = replace(
    R2025_06_18,
    date="2025-11-25",
    icons=True,
    elicitation_modes=frozenset({"form", "url"}),
    elicitation_ids=True,
    url_error=True,
    rich_forms=True,
    sampling_tools=True,
    priming=True,
    argument_errors_in_result=True,
)

R2026_07_28 = replace(
    R2025_11_25,
    date="2026-07-28",
    handshake=False,
    content=frozenset(str(each.__struct_config__.tag) for each in BLOCKS),  # of the newest revision, whatever they are
    requests=MappingProxyType(
        {
            "server/discover": "",
            **{
                method: capability
                for method, capability in R2025_11_25.requests.items()
                if method
                not in {"initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"}
            },
            "subscriptions/listen": "",
        }
    ),
    notifications=frozenset({"notifications/cancelled"}),
    asks=frozenset({"roots/list", "sampling/createMessage", "elicitation/create"}),
    structured="any",
    elicitation_ids=False,
    url_error=False,
    routing_headers=True,
    result_type=True,
    log_level_per_request=True,
    event_ids=False,
    priming=False,
    missing_resource_code=-32602,
)

ALL: tuple[Revision, ...] = (R2024_11_05, R2025_03_26, R2025_06_18, R2025_11_25, R2026_07_28)
BY_DATE: Mapping[str, Revision] = MappingProxyType({revision.date: revision for revision in ALL})
HANDSHAKE: Mapping[str, Revision] = MappingProxyType({r.date: r for r in ALL if r.handshake})
PER_REQUEST: Mapping[str, Revision] = MappingProxyType({r.date: r for r in ALL if not r.handshake})

NEWEST = ALL[-1]
FIRST_PER_REQUEST = R2026_07_28
"""The first revision without a handshake. Code reads `Revision.handshake`. This constant is for unknown versions."""
NEWEST_HANDSHAKE = R2025_11_25
"""The response to an `initialize` request for a version that is unknown or has no handshake."""
ASSUMED = R2025_03_26
"""The revision of a handshake-era HTTP request without a version."""
FIRST = R2024_11_05
"""The revision of the HTTP+SSE transport."""


def names_per_request_era(version: str) -> bool:
    """Return whether a version string, known or not, names a revision without a handshake. Dates sort as text."""
    return version >= FIRST_PER_REQUEST.date and version.replace("-", "").isdecimal() and version.isascii()


def negotiate(requested: str) -> Revision:
    """Return the revision for `initialize`: the requested one, otherwise the newest with a handshake."""
    return HANDSHAKE.get(requested, NEWEST_HANDSHAKE)


_STRUCTURED = ("none", "object", "any")


def holds_less(revision: Revision, source: Revision) -> bool:
    """Return whether a tool result of `source` can have content that `revision` lacks."""
    structured = _STRUCTURED.index(revision.structured) < _STRUCTURED.index(source.structured)
    return structured or not revision.content >= source.content


def project_item(item: Json, revision: Revision, *more: str) -> Json:
    """Return the description of a resource, template, prompt, or tool without members that the revision lacks.

    Args:
        item: The description.
        revision: The client's revision.
        more: Further members to leave out.
    """
    drop = set(more)
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
    lacking = {"annotations": not revision.tool_annotations, "outputSchema": revision.structured == "none"}
    item = project_item(item, revision, *(name for name, lacks in lacking.items() if lacks))
    output = item.get("outputSchema")
    if output is not None and revision.structured == "object" and output.get("type") != "object":
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


def block(raw: Raw, revision: Revision) -> Raw:
    """Return a content block for a revision, converted if the revision lacks it. What isn't known stays unchanged."""
    kind = _kind_of(raw)
    if kind in revision.content or kind not in NEWEST.content:
        return raw
    each = present(decode_object(raw))
    if kind != "resource_link":  # what it contains has the same members in all other types
        content = {"uri": f"attachment:{kind}", "mimeType": each.get("mimeType"), "blob": each.get("data")}
        return Raw(encode({"type": "resource", "resource": present(content)}))
    title = ": ".join(str(text) for text in (each.get("title") or each.get("name"), each.get("uri")) if text)
    description = f"\n{each['description']}" if each.get("description") else ""
    return Raw(encode(Text(title + description)))


def _kind_of(block: Raw) -> str:
    try:
        return _decode_block(block).type
    except MALFORMED:
        return ""


class _Block(Struct):
    type: str = ""


class _ToolResult(Struct, rename="camel"):
    """A tool result with everything that no revision converts as JSON."""

    content: list[Raw] | None = None
    structured_content: Raw | UnsetType = UNSET
    is_error: Raw = Raw(b"false")


def error(exc: ProtocolError, revision: Revision) -> ProtocolError:
    """Return an error with the code that an older revision uses."""
    if exc.code == RESOURCE_NOT_FOUND:
        return ProtocolError(revision.missing_resource_code, exc.message, exc.data, status=exc.status, head=exc.head)
    if exc.code == MISSING_CLIENT_CAPABILITY and revision.handshake:
        return ProtocolError(INVALID_PARAMS, exc.message, exc.data)
    if exc.code == OVERLOADED and revision.handshake:
        return ProtocolError(SERVER_ERROR, exc.message, exc.data, status=exc.status, head=exc.head)
    return exc


_decode_block = decoder(_Block)
_decode_result = decoder(_ToolResult)
_decode_messages = decoder(list[Raw])


def project_tool_result(members: bytes, revision: Revision, *, wraps: bool = False) -> bytes:
    """Return a tool result for an older revision: ``project_tool_result(b'"content":[…]', revision)``.

    Older revisions have only objects as structured content, or none: they get it as text if there's no other text.

    Args:
        members: Members of the result for the newest revision, as JSON without braces.
        revision: The client's revision.
        wraps: Whether the tool's output schema is wrapped, so that objects are also wrapped.
    """
    result = _decode_result(b"{%b}" % members)
    content = [block(each, revision) for each in result.content or ()]
    value = b"" if result.structured_content is UNSET else bytes(result.structured_content)
    if value and revision.structured == "none" and not any(_kind_of(each) == "text" for each in content):
        content.append(Raw(encode(Text(value.decode()))))
    parts = [b'"content":%b' % encode(content)]
    if value and revision.structured != "none":
        wrapped = revision.structured == "object" and (wraps or value[:1] != b"{")
        parts.append((b'"structuredContent":{"result":%b}' if wrapped else b'"structuredContent":%b') % value)
    if bytes(result.is_error) not in (b"false", b"null"):
        parts.append(b'"isError":%b' % bytes(result.is_error))
    return b",".join(parts)


def project_prompt(members: bytes, revision: Revision, source: Revision | None = None) -> bytes:
    """Return the result of `prompts/get` for a revision: ``project_prompt(b'"messages":[…]', revision)``.

    Args:
        members: Members of the result, as JSON without braces.
        revision: The client's revision.
        source: The revision of the result, by default the newest.
    """
    if revision.content >= (source or NEWEST).content:
        return members
    result = {name: value for name, value in decode_members(b"{%b}" % members).items() if bytes(value) != b"null"}
    messages = [_project_message(each, revision) for each in _decode_messages(result["messages"])]
    return encode({**result, "messages": messages})[1:-1]


def _project_message(raw: Raw, revision: Revision) -> Raw:
    try:
        message = decode_members(raw)
    except MALFORMED:
        return raw
    return Raw(encode({**message, "content": block(message["content"], revision)})) if "content" in message else raw


def project_form(schema: Schema, revision: Revision) -> Schema:
    """Return the form of a question to the user for a revision: ``project_form(params["requestedSchema"], revision)``.

    Older revisions have neither titled choices nor multi-selection. Titled choices become ``enum`` with ``enumNames``,
    and several choices become one. Only booleans keep their defaults.

    Args:
        schema: A flat form of the newest revision.
        revision: The client's revision.
    """
    if revision.rich_forms:
        return schema
    properties: Schema = {}
    for name, node in schema.get("properties", {}).items():
        field: Schema = dict(node)
        if field.get("type") == "array":
            texts: Schema = {key: field[key] for key in ("title", "description") if key in field}
            field = {"type": "string", **texts, **field.get("items", {})}
        choices: list[Schema] = field.get("oneOf") or field.get("anyOf") or []
        if choices and all("const" in choice for choice in choices):  # other handwritten members stay unchanged
            field = {key: value for key, value in field.items() if key not in ("oneOf", "anyOf")}
            field["enum"] = [choice["const"] for choice in choices]
            field["enumNames"] = [choice.get("title", choice["const"]) for choice in choices]
        if field.get("type") != "boolean":
            field.pop("default", None)
        properties[name] = field
    return {**schema, "properties": properties}


def project_conversation(messages: Sequence[Message], revision: Revision) -> list[Message]:
    """Return the messages of a sampling request for a revision: ``project_conversation(messages, revision)``.

    A message with several blocks can become several messages with the same role.

    Args:
        messages: Messages for the newest revision.
        revision: The client's revision.

    Raises:
        ToolError: The revision doesn't support a block.
    """
    if "audio" not in revision.content and any(isinstance(b, Audio) for message in messages for b in message.blocks):
        raise ToolError(f"This requires sampling with audio, which protocol revision {revision.date} doesn't support.")
    if revision.sampling_tools:
        return list(messages)
    return [each for message in messages for each in message.one_by_one()]
