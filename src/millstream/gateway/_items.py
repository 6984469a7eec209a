"""Registry items for the tools, resources, and prompts of an upstream. Arguments and results stay bytes."""

import copy
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self

from msgspec import Raw, Struct, structs

from millstream import EmbeddedResource, ProtocolError, ResourceContents, ToolError, ToolResult
from millstream._override import override
from millstream._protocol import revisions
from millstream._server.features.resources import HINTS
from millstream.client import InvalidResponse
from millstream.client._negotiation import headers_of
from millstream.gateway._bridge import forward, no_response_error
from millstream.gateway._catalog import Description
from millstream.gateway._names import Names, with_origin
from millstream.gateway._results import MalformedResult, has_uris, message_uris, resource_uris, split_result, tool_uris
from millstream.gateway._upstream import Upstream
from millstream.parts import (
    ArgumentError,
    Call,
    Hooks,
    Item,
    ItemSource,
    Prompt,
    Readable,
    Resource,
    TaskRules,
    Template,
    Tool,
)
from millstream.protocol import (
    INTERNAL_ERROR,
    MALFORMED,
    METHOD_NOT_FOUND,
    NEWEST,
    CallToolResult,
    CompleteRequestParams,
    GetPromptResult,
    ReadResourceResult,
    UriTemplate,
    decoder,
    encode,
    find_annotations,
    foreign_decoder,
    is_array,
    is_object,
    members,
)

_BRACE = ord("{")
_TASK_RULES = TaskRules(retry=True, deferred=True)
"""A call becomes a task if the upstream makes it one. Running it again waits for the same task."""
_decode_object = decoder(dict[str, Any])
_decode_tool = foreign_decoder(CallToolResult)
_decode_prompt = foreign_decoder(GetPromptResult)
_decode_read = foreign_decoder(ReadResourceResult)
_NO_COMPLETION = b'"completion":{"values":[],"total":0,"hasMore":false}'


def make_item(kind: str, upstream: Upstream, name: str, own_name: str, description: Description) -> Item:
    """Return the registry item for an item that an upstream lists.

    Args:
        kind: Tools, resources, templates, or prompts.
        upstream: The upstream.
        name: Name or URI on this server.
        own_name: Name or URI at the upstream.
        description: Description on this server, without the name.

    Raises:
        ValueError: Clients would drop an item with this description.
    """
    return _CLASSES[kind](upstream, name, own_name, description)


def raw_object(raw: Any) -> Raw:
    """Return arguments unchanged.

    Raises:
        ArgumentError: They aren't an object.
    """
    if type(raw) is Raw and memoryview(raw)[0] == _BRACE:
        return raw
    data = bytes(raw).lstrip()
    if data[:1] != b"{":
        raise ArgumentError("The arguments must be an object.")
    return Raw(data)


def _identity(values: Any) -> Any:
    return values


def _with_view(description: Description, names: Names) -> Description:
    """Return the description of a tool with the prefix in the URI of its view, see ``io.modelcontextprotocol/ui``."""
    meta = members(description.get("_meta"))
    if not names.prefix or not meta:
        return description
    changed = dict(meta)
    if isinstance(uri := meta.get(_LEGACY_VIEW_KEY), str):
        changed[_LEGACY_VIEW_KEY] = names.uri(uri)
    ui = members(meta.get("ui"))
    if isinstance(uri := ui.get("resourceUri"), str):
        changed["ui"] = {**ui, "resourceUri": names.uri(uri)}
    return {**description, "_meta": changed}


_LEGACY_VIEW_KEY = "ui/resourceUri"
"""Member of `_meta` that older hosts read."""


class _UpstreamItem(Item):
    """The common part of an upstream's items: their results stay bytes, unless middleware reads them."""

    upstream: Upstream

    @override
    def within(self, hooks: Hooks) -> Self:
        """See `Item`. Middleware receives results as functions of this server would return them."""
        inner = copy.copy(self)
        if hooks.for_kind(self.kind):
            inner.run = self._run_typed
        return super(_UpstreamItem, inner).within(hooks)

    async def _run_typed(self, arguments: Any, call: Call) -> Any:
        value = await self.run(arguments, call)
        if type(value) is not bytes:
            return value
        try:
            return self._decode(value, call)
        except MalformedResult as exc:
            raise _malformed_error(call, self.upstream, exc) from None

    def _decode(self, value: bytes, call: Call) -> Any:
        raise NotImplementedError


class UpstreamTool(_UpstreamItem, Tool):
    """A tool of an upstream."""

    def __init__(self, upstream: Upstream, name: str, own_name: str, description: Description) -> None:
        """See `make_item`."""
        schema: Any = description.get("inputSchema")
        if not is_object(schema):
            schema = {"type": "object"}
        headers = find_annotations(schema)
        shown: Any = schema if is_object(schema.get("properties", {})) else {**schema, "properties": {}}
        source = ItemSource(name, self._run, raw_object, schema=shown, headers=headers, decode=raw_object)
        super().__init__(source, task=_TASK_RULES)
        self.upstream: Upstream = upstream
        self.own_name: str = own_name
        self._call_head = b'{"name":%b,"arguments":' % encode(own_name)
        original = upstream.catalog.tools.get(own_name, description).get("inputSchema")
        self._own_headers = headers if original is schema else find_annotations(original or {})
        """Headers of the upstream's own schema, because the policy may have removed arguments."""
        output = description.get("outputSchema")
        self.wraps: bool = is_object(output) and output.get("type") != "object"
        self._described = {
            "inputSchema": {"type": "object", "properties": {}},
            **_with_view(description, upstream.names),
            "name": name,
        }

    def _run(self, arguments: Any, call: Call) -> Awaitable[Any]:
        params = self._call_head + bytes(arguments) + b"}"
        if self._own_headers:
            headers = headers_of(self._own_headers, _decode_object(arguments))
            return forward(call, self.upstream, "tools/call", params, self.own_name, headers=headers)
        return forward(call, self.upstream, "tools/call", params, self.own_name)

    @override
    def _decode(self, value: bytes, call: Call) -> ToolResult:
        members, meta = split_result(value, "content")
        result = _decode_tool(b"{%b}" % tool_uris(members, self.upstream.link_uri))
        return ToolResult([*result.content], result.structured_content, result.is_error, meta)

    @override
    def encode(self, value: Any, call: Call) -> bytes:
        """Return the members of the result in the call's revision.

        Raises:
            ToolError: The upstream's result is malformed.
        """
        if type(value) is not bytes:  # middleware has replaced it
            return super().encode(value, call)
        upstream, revision = self.upstream, call.revision
        try:
            members, call.meta = split_result(value, "content")
            if upstream.names.prefix and has_uris(members):
                members = tool_uris(members, upstream.link_uri)
            if upstream.catalog.revision > revision.date:
                wraps = self.wraps and not _is_wrapped(members)
                members = revisions.tool_result(members, revision, wraps=wraps)
        except MalformedResult as exc:
            raise _malformed_error(call, upstream, exc) from None
        return members


class _WrappedValue(Struct, forbid_unknown_fields=True):
    """A structured value, wrapped for revisions that allow only objects."""

    result: Raw


class _StructuredResult(Struct, rename="camel"):
    structured_content: _WrappedValue


_decode_wrapped = decoder(_StructuredResult)


def _is_wrapped(members: bytes) -> bool:
    """Return whether the structured value is already wrapped in an object, as for a call of an older revision."""
    try:
        _decode_wrapped(b"{%b}" % members)
    except MALFORMED:
        return False
    return True


class UpstreamPrompt(_UpstreamItem, Prompt):
    """A prompt of an upstream."""

    def __init__(self, upstream: Upstream, name: str, own_name: str, description: Description) -> None:
        """See `make_item`."""
        listed = description.get("arguments")
        names = [members(each).get("name") for each in (listed if is_array(listed) else ())]
        properties = {each: dict[str, Any]() for each in names if isinstance(each, str)}
        super().__init__(ItemSource(name, self._run, _identity, schema={"properties": properties}))
        self.upstream: Upstream = upstream
        self.own_name: str = own_name
        self._described = {**description, "name": name}

    def _run(self, arguments: Any, call: Call) -> Awaitable[Any]:
        params = encode({"name": self.own_name, "arguments": arguments} if arguments else {"name": self.own_name})
        return forward(call, self.upstream, "prompts/get", params, self.own_name)

    @override
    def _decode(self, value: bytes, call: Call) -> Any:
        members, _ = split_result(value, "messages")
        return _decode_prompt(b"{%b}" % message_uris(members, self.upstream.link_uri)).messages

    @override
    def encode(self, value: Any, call: Call) -> bytes:
        """See `Prompt.encode`."""
        if type(value) is not bytes:
            return super().encode(value, call)
        upstream, revision = self.upstream, call.revision
        try:
            members, call.meta = split_result(value, "messages")
            if upstream.names.prefix and has_uris(members):
                members = message_uris(members, upstream.link_uri)
            if upstream.catalog.revision > revision.date and not revision.content >= NEWEST.content:
                about = _decode_object(b"{%b}" % members).get("description")
                members = revisions.prompt_messages(members, revision)
                members = members if about is None else b'"description":%b,%b' % (encode(about), members)
        except MalformedResult as exc:
            raise _malformed_error(call, upstream, exc) from None
        return members

    @override
    async def complete(self, params: CompleteRequestParams, call: Call) -> bytes | None:
        """See `Item.complete`."""
        return await _complete(self.upstream, {"type": "ref/prompt", "name": self.own_name}, params, call)


class _MatchedUri(dict[str, Any]):
    """The variables of a URI, and the URI itself."""

    uri: str = ""


class UpstreamPattern:
    """The URI pattern of a template on this server."""

    def __init__(self, uri: str) -> None:
        """See `UriTemplate`; a malformed template matches nothing."""
        try:
            self._template: UriTemplate | None = UriTemplate(uri)
        except MALFORMED:
            self._template = None

    @property
    def variables(self) -> tuple[str, ...]:
        """See `Pattern`."""
        return () if self._template is None else self._template.variables

    def match(self, uri: str) -> dict[str, Any] | None:
        """See `Pattern`."""
        found = None if self._template is None else self._template.match(uri)
        if found is None:
            return None
        matched = _MatchedUri(found)
        matched.uri = uri
        return matched


class _UpstreamReadable(_UpstreamItem, Readable):
    """The common part of an upstream's resources and templates."""

    def _uri(self, arguments: Any, call: Call) -> str:
        return self.name

    def _run(self, arguments: Any, call: Call) -> Awaitable[Any]:
        own_uri = self.upstream.names.original_uri(self._uri(arguments, call))
        return forward(call, self.upstream, "resources/read", encode({"uri": own_uri}), own_uri or "")

    @override
    def _decode(self, value: bytes, call: Call) -> list[EmbeddedResource]:
        names = self.upstream.names
        return [
            EmbeddedResource(resource=structs.replace(each, uri=names.uri(each.uri))) for each in _contents_of(value)
        ]

    @override
    def encode(self, value: Any, uri: str, call: Call) -> bytes:
        """See `Readable.encode`."""
        upstream, hints = self.upstream, call.revision.result_type
        if type(value) is not bytes:
            members = super().encode(value, uri, call)
        else:
            try:
                members, call.meta = split_result(value, "contents", () if hints else ("ttlMs", "cacheScope"))
                if upstream.names.prefix:
                    members = resource_uris(members, upstream.names.uri)
            except MalformedResult as exc:
                raise _malformed_error(call, upstream, exc) from None
            if hints and b'"ttlMs"' not in members:
                members += HINTS
        call.meta = with_origin(call.meta, upstream.config.name)
        return members

    @override
    def unwrap(self, value: Any) -> Any:
        """See `Readable.unwrap`."""
        found = _contents_of(value) if type(value) is bytes else [each.resource for each in value]  # from middleware
        if len(found) == 1:
            return found[0].blob if found[0].text is None else found[0].text
        return [EmbeddedResource(resource=each) for each in found]


def _contents_of(value: bytes) -> list[ResourceContents]:
    try:
        return _decode_read(value).contents
    except MalformedResult as exc:
        raise ProtocolError(INTERNAL_ERROR, f"The resource can't be read: {exc}") from None


class UpstreamResource(_UpstreamReadable, Resource):
    """A resource of an upstream, listed or not."""

    def __init__(self, upstream: Upstream, name: str, own_name: str, description: Description) -> None:
        """See `make_item`."""
        super().__init__(name, ItemSource(name, self._run, _identity))
        self.upstream: Upstream = upstream
        self._described = {**description, "uri": name}


class UpstreamTemplate(_UpstreamReadable, Template):
    """A resource template of an upstream."""

    def __init__(self, upstream: Upstream, name: str, own_name: str, description: Description) -> None:
        """See `make_item`."""
        properties = {each: dict[str, Any]() for each in UpstreamPattern(name).variables}
        source = ItemSource(name, self._run, _identity, schema={"properties": properties})
        super().__init__(name, source, pattern=UpstreamPattern)
        self.upstream: Upstream = upstream
        self.own_name: str = own_name
        self._described = {**description, "uriTemplate": name}

    @override
    def _uri(self, arguments: Any, call: Call) -> str:
        return arguments.uri if type(arguments) is _MatchedUri else call.name

    @override
    async def complete(self, params: CompleteRequestParams, call: Call) -> bytes | None:
        """See `Item.complete`."""
        return await _complete(self.upstream, {"type": "ref/resource", "uri": self.own_name}, params, call)


_CLASSES: Mapping[str, Callable[[Upstream, str, str, Description], Item]] = {
    "tools": UpstreamTool,
    "resources": UpstreamResource,
    "templates": UpstreamTemplate,
    "prompts": UpstreamPrompt,
}


async def _complete(upstream: Upstream, ref: dict[str, str], params: CompleteRequestParams, call: Call) -> bytes:
    """Return the members of a completion's result, without values if the upstream doesn't support completion."""
    revision = upstream.revision
    if revision.completions_capability and "completions" not in upstream.catalog.capabilities:
        return _NO_COMPLETION
    params_of_upstream: dict[str, Any] = {"ref": ref, "argument": params.argument}
    if params.context is not None and revision.completion_context:
        params_of_upstream["context"] = params.context
    try:
        work = forward(call, upstream, "completion/complete", encode(params_of_upstream), "")
        redactor = upstream.redactor("completion/complete")
        result = await (work if redactor is None else redactor.redact(work, call))
    except ProtocolError as exc:
        if exc.code == METHOD_NOT_FOUND:
            return _NO_COMPLETION
        raise
    try:
        members, call.meta = split_result(result, "")
    except MalformedResult as exc:
        raise _malformed_error(call, upstream, exc) from None
    return members


def _malformed_error(call: Call, upstream: Upstream, exc: Exception) -> ToolError | ProtocolError:
    return no_response_error(call, upstream, InvalidResponse(f"The result is malformed: {exc}."))
