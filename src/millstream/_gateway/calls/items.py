"""Upstream items on this server: tools, resources, and prompts as registry items, and extensions.

Arguments and results of items stay bytes.

An extension is forwarded if only one upstream announces it, that upstream has no prefix and no policy with `allow` or
that changes an item, and this server doesn't have the extension itself. A prefix would have to be added to params and
results of unknown shape, and a policy has no rules for unknown methods. Skills have a known shape, so upstreams' skills
are merged.
"""

import copy
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Self

from msgspec import Raw, Struct, structs

from millstream import EmbeddedResource, ProtocolError, ResourceContents, ToolError, ToolResult
from millstream._gateway.calls.failures import no_response_error
from millstream._gateway.calls.forward import forward
from millstream._gateway.catalog.catalog import Description
from millstream._gateway.log import logger
from millstream._gateway.names import MatchedUri, Names, UpstreamPattern, with_origin
from millstream._gateway.questions.abilities import UI
from millstream._gateway.rules.results import split_result
from millstream._gateway.upstreams.mcp import McpUpstream
from millstream._gateway.upstreams.upstream import ItemClasses, Upstream
from millstream._override import override
from millstream._parts import PartHost
from millstream._protocol.errors import CustomResult
from millstream._protocol.foreign import foreign_decoder
from millstream._protocol.jsonrpc import decode_members
from millstream._protocol.metadata import decode_name, find_annotations, param_headers
from millstream._protocol.notifications import (
    CallToolResult,
    CompleteRequestParams,
    GetPromptResult,
    InputResponseRequestParams,
    ReadResourceResult,
)
from millstream._protocol.revisions import holds_less, project_prompt
from millstream._server.calls.call import Call, granted_scopes
from millstream._server.features import Hooks, Read
from millstream._server.features.registry import RegisteredExtension, sees
from millstream._server.features.resources import Prompt, Readable, Resource, Template
from millstream._server.features.sources import Item, ItemSource
from millstream._server.features.tools import TaskRules, Tool
from millstream._server.functions.plan import ArgumentError
from millstream._server.handlers import take_rounds
from millstream.client import InvalidResponse
from millstream.protocol import (
    BY_DATE,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    MALFORMED,
    METHOD_NOT_FOUND,
    SKILLS,
    TASKS,
    Json,
    Revision,
    decode_object,
    decoder,
    encode,
    is_array,
    is_object,
    members,
    project_tool_result,
    shorten,
)

_BRACE = ord("{")
_NOT_CACHED = b',"ttlMs":0,"cacheScope":"private"'
_TASK_RULES = TaskRules(retry=True, deferred=True)
"""Rules by which a call becomes a task if the upstream makes it one. Running the call again waits for the same task."""
_decode_tool = foreign_decoder(CallToolResult, logger.debug)
_decode_prompt = foreign_decoder(GetPromptResult, logger.debug)
_decode_read = foreign_decoder(ReadResourceResult, logger.debug)
_NO_COMPLETION = b'"completion":{"values":[],"total":0,"hasMore":false}'


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
    """Return a tool's description with the prefix in the URI of its view (extension ``io.modelcontextprotocol/ui``)."""
    meta = dict(members(description.get("_meta")))
    if isinstance(uri := meta.get(_LEGACY_VIEW_KEY), str):
        meta[_LEGACY_VIEW_KEY] = names.uri(uri)
    ui = members(meta.get("ui"))
    if isinstance(uri := ui.get("resourceUri"), str):
        meta["ui"] = {**ui, "resourceUri": names.uri(uri)}
    return {**description, "_meta": meta} if meta else description


_LEGACY_VIEW_KEY = "ui/resourceUri"
"""Member of `_meta` that older hosts read."""
_NOT_OBJECT = re.compile(rb'"structuredContent":(?!\{)')
"""The part of a result that handshake clients reject, although some handshake servers send it."""


async def _ask(call: Call, upstream: McpUpstream, params: Json) -> bytes:
    """Forward a call that isn't for an item and return the result as the policy allows."""
    work, redactor = forward(call, upstream, call.method, encode(params), ""), upstream.policy.redactor(call.method, "")
    return await (work if redactor is None else redactor.redact(work, call))


class _UpstreamItem(Item):
    """The common part of an upstream's items. Their results stay bytes, unless middleware reads them."""

    upstream: Upstream
    own_name: str
    """The upstream's own name, or URI template."""

    @property  # type: ignore[explicit-override]  # mypy doesn't see it on a property with a setter
    @override
    def asks(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  depends on the upstream
        """See `Item`."""
        return self._asks or self.upstream.may_ask

    @asks.setter
    def asks(self, value: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._asks = value

    @override
    def within(self, hooks: Hooks) -> Self:
        """See `Item`. Middleware receives results as functions of this server would return them."""
        inner = copy.copy(self)
        if hooks.for_kind(self.kind):
            inner.run = self._run_typed
        return super(_UpstreamItem, inner).within(hooks)

    async def _run_typed(self, arguments: Any, call: Call) -> Any:
        value = await self.run(arguments, call)
        try:
            return self._decode(value)
        except MALFORMED as exc:
            raise _malformed_error(call, self.upstream, exc) from None

    def _decode(self, value: bytes) -> Any:
        raise NotImplementedError


class _CompletedItem(_UpstreamItem):
    """The common part of items whose arguments clients complete."""

    upstream: McpUpstream  # pyright: ignore[reportIncompatibleVariableOverride]  set once

    @override
    async def complete(self, params: CompleteRequestParams, call: Call) -> bytes | None:
        """See `Item`. The values come from the upstream. They're empty if it doesn't support completion, and for
        arguments that callers can't set.
        """
        upstream, revision = self.upstream, self.upstream.revision
        lacks_completion = revision.completions_capability and "completions" not in upstream.catalog.capabilities
        fixed = {name.casefold() for name in self.fixed}
        if lacks_completion or params.argument.name.casefold() in fixed:
            return _NO_COMPLETION
        key = "name" if self.kind == "prompts" else "uri"
        own_params: Json = {"ref": {"type": params.ref.type, key: self.own_name}, "argument": params.argument}
        if params.context is not None and revision.completion_context:
            given = params.context.arguments.items()
            own_params["context"] = {
                "arguments": {name: value for name, value in given if name.casefold() not in fixed}
            }
        try:
            result = await _ask(call, upstream, own_params)
        except ProtocolError as exc:
            if exc.code == METHOD_NOT_FOUND:
                return _NO_COMPLETION
            raise
        try:
            members, call.meta = split_result(result, "")
        except MALFORMED as exc:
            raise _malformed_error(call, upstream, exc) from None
        return members


class UpstreamTool(_UpstreamItem, Tool):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A tool of an upstream. Subclasses call it."""

    def __init__(
        self, upstream: Upstream, name: str, own_name: str, description: Description, read: Read = raw_object
    ) -> None:
        """See `Upstream.item_classes`."""
        schema = description["inputSchema"]
        headers = find_annotations(schema)
        source = ItemSource(
            name, self._run, read, schema=schema, headers=headers, decode=raw_object, asks=False, asks_first=True
        )
        super().__init__(source, task=_TASK_RULES, replay=False)
        self.upstream = upstream
        self.own_name = own_name
        self._call_head = b'{"name":%b,"arguments":' % encode(own_name)
        original = upstream.catalog.tools.get(own_name, description)["inputSchema"]
        self._own_headers = headers if original is schema else find_annotations(original)
        """Headers of the upstream's own schema, because the policy may have removed arguments."""
        output = description.get("outputSchema")
        self.wraps: bool = is_object(output) and output.get("type") != "object"
        self._described = {**_with_view(description, upstream.names), "name": name}

    def _run(self, arguments: Any, call: Call) -> Awaitable[Any]:
        raise NotImplementedError

    @override
    def _decode(self, value: bytes) -> ToolResult:
        members, meta = split_result(value, "content", self.upstream.link_uri)
        result = _decode_tool(b"{%b}" % members)
        sent, structured = _value_in(members) if self.wraps else None, result.structured_content
        if is_object(sent) and [*sent] == ["result"]:  # the value was already wrapped (see `encode`)
            structured = sent["result"]
        return ToolResult([*result.content], structured, result.is_error, meta)

    @override
    def encode(self, value: Any, call: Call) -> bytes:
        """Return the members of the result in the call's revision.

        Raises:
            ToolError: The upstream's result is malformed.
        """
        if type(value) is not bytes:  # middleware has replaced the result
            return super().encode(value, call)
        upstream, revision = self.upstream, call.revision
        try:
            members, call.meta = split_result(value, "content", upstream.link_uri if upstream.names.prefix else None)
            if holds_less(revision, upstream.revision) or (
                revision.structured == "object" and _NOT_OBJECT.search(members)
            ):
                value = _value_in(members) if self.wraps else None
                # A value in an object was wrapped already, as for a call of an older revision.
                wraps = self.wraps and not (is_object(value) and [*value] == ["result"])
                members = project_tool_result(members, revision, wraps=wraps)
        except MALFORMED as exc:
            raise _malformed_error(call, upstream, exc) from None
        return members


def _value_in(members: bytes) -> Any:
    return decode_object(b"{%b}" % members).get("structuredContent")


class _McpTool(UpstreamTool):
    """A tool of an MCP upstream."""

    upstream: McpUpstream

    @override
    def _run(self, arguments: Any, call: Call) -> Awaitable[Any]:
        params = self._call_head + bytes(arguments) + b"}"
        headers: Mapping[str, str] = {}
        if self._own_headers:
            headers = param_headers(self._own_headers, decode_object(arguments))
        return forward(call, self.upstream, "tools/call", params, self.own_name, headers=headers)


class UpstreamPrompt(_CompletedItem, Prompt):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A prompt of an upstream."""

    def __init__(self, upstream: McpUpstream, name: str, own_name: str, description: Description) -> None:
        """See `Upstream.item_classes`."""
        properties = {each["name"]: Json() for each in description.get("arguments", ())}
        super().__init__(
            ItemSource(name, self._run, _identity, schema={"properties": properties}, asks=False, asks_first=True)
        )
        self.upstream = upstream
        self.own_name = own_name
        self._described = {**description, "name": name}

    def _run(self, arguments: Any, call: Call) -> Awaitable[Any]:
        params = encode({"name": self.own_name, "arguments": arguments} if arguments else {"name": self.own_name})
        return forward(call, self.upstream, "prompts/get", params, self.own_name)

    @override
    def _decode(self, value: bytes) -> Any:
        members, _ = split_result(value, "messages", self.upstream.link_uri)
        return _decode_prompt(b"{%b}" % members).messages

    @override
    def encode(self, value: Any, call: Call) -> bytes:
        """See `Prompt.encode`."""
        if type(value) is not bytes:
            return super().encode(value, call)
        upstream = self.upstream
        try:
            members, call.meta = split_result(value, "messages", upstream.link_uri if upstream.names.prefix else None)
            return project_prompt(members, call.revision, upstream.revision)
        except MALFORMED as exc:
            raise _malformed_error(call, upstream, exc) from None


class _UpstreamReadable(_CompletedItem, Readable):  # pyright: ignore[reportIncompatibleVariableOverride]
    """The common part of an upstream's resources and templates."""

    def _uri(self, arguments: Any, call: Call) -> str:
        return self.name

    def _run(self, arguments: Any, call: Call) -> Awaitable[Any]:
        own_uri = self.upstream.names.original_uri(self._uri(arguments, call))
        return forward(call, self.upstream, "resources/read", encode({"uri": own_uri}), own_uri or "")

    @override
    def _decode(self, value: bytes) -> list[EmbeddedResource]:
        names = self.upstream.names
        return [
            EmbeddedResource(resource=structs.replace(each, uri=names.uri(each.uri))) for each in _contents_of(value)
        ]

    @override
    def encode(self, value: Any, uri: str, call: Call) -> bytes:
        """See `Readable.encode`."""
        upstream, names, hints = self.upstream, self.upstream.names, call.revision.result_type
        if type(value) is not bytes:
            members = super().encode(value, uri, call)
        else:
            try:
                members, call.meta = split_result(
                    value, "contents", names.uri if names.prefix else None, () if hints else ("ttlMs", "cacheScope")
                )
            except MALFORMED as exc:
                raise _malformed_error(call, upstream, exc) from None
            if hints and b'"ttlMs"' not in members:
                members += _NOT_CACHED
        if not upstream.is_relayed:
            call.meta = with_origin(call.meta, upstream.name)
        return members

    @override
    def unwrap(self, value: Any) -> Any:
        """See `Readable.unwrap`."""
        found = _contents_of(value) if type(value) is bytes else [each.resource for each in value]  # by middleware
        if len(found) == 1:
            return found[0].blob if found[0].text is None else found[0].text
        return [EmbeddedResource(resource=each) for each in found]


def _contents_of(value: bytes) -> list[ResourceContents]:
    try:
        return _decode_read(value).contents
    except MALFORMED as exc:
        raise ProtocolError(INTERNAL_ERROR, f"The resource can't be read: {exc}") from None


class UpstreamResource(_UpstreamReadable, Resource):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A resource of an upstream, listed or not."""

    def __init__(self, upstream: McpUpstream, name: str, own_name: str, description: Description) -> None:
        """See `Upstream.item_classes`."""
        super().__init__(name, ItemSource(name, self._run, _identity, asks=False, asks_first=True))
        self.upstream = upstream
        self._described = {**description, "uri": name}


class UpstreamTemplate(_UpstreamReadable, Template):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A resource template of an upstream."""

    def __init__(self, upstream: McpUpstream, name: str, own_name: str, description: Description) -> None:
        """See `Upstream.item_classes`."""
        properties = {each: Json() for each in UpstreamPattern(name).variables}
        source = ItemSource(name, self._run, _identity, schema={"properties": properties}, asks=False, asks_first=True)
        super().__init__(name, source, pattern=UpstreamPattern)
        self.upstream = upstream
        self.own_name = own_name
        self._described = {**description, "uriTemplate": name}

    @override
    def _uri(self, arguments: Any, call: Call) -> str:
        return arguments.uri if type(arguments) is MatchedUri else call.name


MCP_ITEMS: ItemClasses = {
    "tools": _McpTool,
    "resources": UpstreamResource,
    "templates": UpstreamTemplate,
    "prompts": UpstreamPrompt,
}


def _malformed_error(call: Call, upstream: Upstream, exc: Exception) -> ToolError | ProtocolError:
    return no_response_error(call, upstream, InvalidResponse(f"The result is malformed: {exc}."))


Hides = Callable[[Upstream, str], bool]
"""``hides(upstream, uri)`` returns whether a URI on this server belongs to another upstream or isn't offered."""
_SEPARATOR = " "
_FORWARDED_MEMBERS = ("nextCursor", "ttlMs")


class _Params(Struct):
    uri: str = ""
    cursor: str | None = None


_decode_skill_params = decoder(_Params)


_RESERVED_PARAMS = ("_meta", "inputResponses", "requestState")
SKILL_METHODS = "skills/list", "skills/get", "resources/directory/read"
CORE = frozenset(method for revision in BY_DATE.values() for method in revision.requests)
"""Requests of MCP itself."""
_decode_rounds = decoder(InputResponseRequestParams)


class ExtensionForwarding:
    """The extensions of a gateway's upstreams.

    It merges the skills of several upstreams, or of one with a prefix or a policy, into one list. If an upstream has a
    prefix, its URIs begin with it.
    Their files are resources, which the gateway offers anyway. A skill is listed if the policy offers its `SKILL.md`.

    Args:
        host: The running server.
        hides: See `Hides`.
    """

    _skilled: Sequence[McpUpstream] = ()
    """Upstreams with merged skills, in the order of the list."""

    def __init__(self, host: PartHost, hides: Hides) -> None:
        self._host = host
        self._hides = hides
        handlers = self._list, self._get, self._read_directory
        self._skill_methods: dict[str, Callable[[Call], Awaitable[bytes]]] = dict(
            zip(SKILL_METHODS, handlers, strict=True)
        )
        self._settings: Json = {}
        """Identifier -> settings, as the registry announces them."""
        self._upstreams: dict[str, McpUpstream] = {}
        """Identifier -> the upstream that has it."""
        self._settings_in_sets: Json = {}
        """The same, for extensions that only concern the results of items."""
        for settings in self._settings, self._settings_in_sets:
            in_sets = settings is self._settings_in_sets
            host.extend(RegisteredExtension("extensions", settings, {}, frozenset(BY_DATE)), in_sets=in_sets)
        host.find_methods(self.find)

    def update(self, upstreams: Collection[McpUpstream]) -> None:
        """Announce the extensions of the upstreams, and route their methods."""
        claims = dict[str, list[McpUpstream]]()
        ours = id(self._settings), id(self._settings_in_sets)
        own = {
            name
            for each in self._host.registry.extensions
            if each.capability == "extensions" and id(each.settings) not in ours
            for name in each.settings
        }
        for upstream in upstreams:
            for name in upstream.catalog.extensions:
                if name not in own:
                    claims.setdefault(name, []).append(upstream)
        found = {
            name: upstream
            for name, (upstream, *others) in claims.items()
            if not others
            and name != TASKS
            and not (upstream.names.prefix or (name == SKILLS and not upstream.policy.is_empty))
            and upstream.policy.passes_extensions(upstream.catalog)
        }
        announced = {name: upstream.catalog.extensions[name] for name, upstream in found.items()}
        if TASKS in claims:  # changes results of MCP's own methods, so the gateway wraps the tasks
            announced[TASKS] = {}
        self._skilled = () if SKILLS in found else claims.get(SKILLS, ())
        if self._skilled:
            settings = [members(each.catalog.extensions[SKILLS]) for each in self._skilled]
            reads = any(each.get("directoryRead") is True for each in settings)
            announced[SKILLS] = {"directoryRead": True} if reads else {}
        if UI in claims:
            announced.setdefault(UI, {})  # the extension has no methods: views are resources that tools refer to
        if announced != self._settings:
            self._settings.clear()
            self._settings.update(announced)
            self._settings_in_sets.clear()
            self._settings_in_sets.update((name, announced[name]) for name in (TASKS, UI) if name in announced)
            for each in self._host.dispatcher.everywhere:
                each.announcement.forget()
        self._upstreams = found
        self._host.services.forwarded_extensions = frozenset(found)

    def find(self, method: str, revision: Revision) -> Callable[[Call], Awaitable[bytes]] | None:
        """Return a handler that forwards a method to the upstream without a prefix, or None if it has no extension."""
        if method in CORE:
            return None
        if self._skilled and method in self._skill_methods:
            return self._skill_methods[method]
        upstream = next(iter(self._upstreams.values()), None)  # one, because prefixes differ
        if upstream is None:
            return None
        return lambda call: _forward(call, upstream)

    # Skills

    async def _list(self, call: Call) -> bytes:
        """Return a page of one upstream's skills. The cursor consists of the upstream's name and its own cursor."""
        cursor = _read(call).cursor or ""
        name, separator, rest = cursor.partition(_SEPARATOR)
        upstream_cursor = rest if separator else None
        names = [each.name for each in self._skilled]
        if cursor and name not in names:
            raise ProtocolError(INVALID_PARAMS, "Invalid params: unknown cursor")
        upstream, *remaining = self._skilled[names.index(name) if cursor else 0 :]
        page = None
        while page is None:
            try:
                page = await self._ask(call, upstream, cursor=upstream_cursor)
            except (ProtocolError, ToolError) as exc:
                if not remaining:
                    raise
                logger.debug("Skipped the skills from the upstream %s: %s", upstream.name, exc)
                upstream, upstream_cursor = remaining.pop(0), None
        result = self._hints(upstream, page)
        result["skills"] = self._visible_skills(call, upstream, page.get("skills"))
        next_cursor = page.get("nextCursor")
        if isinstance(next_cursor, str) and (next_cursor or upstream_cursor != ""):  # "" is followed once
            result["nextCursor"] = f"{upstream.name}{_SEPARATOR}{next_cursor}"
        elif remaining:
            result["nextCursor"] = remaining[0].name
        return encode(result)[1:-1]

    async def _get(self, call: Call) -> bytes:
        uri = _read(call).uri
        upstream, original_uri = self._resolve(uri)
        if upstream is not None and self._can_read(call, upstream, uri):
            page = await self._ask(call, upstream, uri=original_uri)
            if skills := self._visible_skills(call, upstream, [page.get("skill")]):
                return encode({**self._hints(upstream, page), "skill": skills[0]})[1:-1]
        raise ProtocolError(INVALID_PARAMS, f"No skill is served at {shorten(uri)}.")

    async def _read_directory(self, call: Call) -> bytes:
        params = _read(call)
        upstream, original_uri = self._resolve(params.uri)
        if upstream is None:
            raise ProtocolError(INVALID_PARAMS, f"{shorten(params.uri)} isn't a directory resource.")
        page = await self._ask(call, upstream, uri=original_uri, cursor=params.cursor)
        result: Json = {name: page[name] for name in _FORWARDED_MEMBERS if name in page}
        result["resources"] = self._entries(call, upstream, page.get("resources"))
        return encode(result)[1:-1]

    async def _ask(self, call: Call, upstream: McpUpstream, **params: str | None) -> Json:
        raw = await _ask(call, upstream, {name: value for name, value in params.items() if value is not None})
        try:
            return decode_object(raw)
        except MALFORMED as exc:
            raise ProtocolError(INTERNAL_ERROR, f"The server {upstream.name!r} returned an invalid result.") from exc

    # Entries

    def _resolve(self, uri: str) -> tuple[McpUpstream | None, str]:
        """Return the upstream of a URI, and the upstream's own URI."""
        for upstream in self._skilled:
            original_uri = upstream.names.original_uri(uri)
            if original_uri is not None and not self._hides(upstream, uri):
                return upstream, original_uri
        return None, ""

    def _visible_skills(self, call: Call, upstream: McpUpstream, skills: Any) -> list[Json]:
        """Return the skills that the caller can see, in the form for the caller."""
        found = self._entries(call, upstream, skills)
        for skill in found:
            if is_array(skill.get("resources")):
                skill["resources"] = self._entries(call, upstream, skill["resources"])
        return found

    def _entries(self, call: Call, upstream: McpUpstream, entries: Any) -> list[Json]:
        found = [
            {**each, "uri": upstream.names.uri(each["uri"])}
            for each in (entries if is_array(entries) else ())
            if is_object(each) and isinstance(each.get("uri"), str)
        ]
        return [each for each in found if self._can_read(call, upstream, each["uri"])]

    def _can_read(self, call: Call, upstream: McpUpstream, uri: str) -> bool:
        """Return whether the caller may read a resource, by its URI on this server."""
        rules = None if self._hides(upstream, uri) else upstream.policy.rules_of(uri)
        scopes = granted_scopes(call)
        return rules is not None and sees(call, rules) and (scopes is None or rules.scopes <= scopes)

    def _hints(self, upstream: McpUpstream, page: Json) -> Json:
        private = self._host.registry.private or upstream.config.policy is not None  # access then depends on the caller
        hints: Json = {name: page[name] for name in ("ttlMs", "cacheScope") if name in page}
        return {**hints, "cacheScope": "private"} if private and hints else hints


def _read(call: Call) -> _Params:
    try:
        return _decode_skill_params(call.params or b"{}")
    except MALFORMED as exc:
        raise ProtocolError(INVALID_PARAMS, f"Invalid params: {exc}") from exc


async def _forward(call: Call, upstream: McpUpstream) -> bytes:
    if not call.revision.handshake and call.params:
        take_rounds(call, _decode_rounds(call.params))
    params = {
        name: value for name, value in decode_members(call.params or b"{}").items() if name not in _RESERVED_PARAMS
    }
    name = decode_name((call.headers or {}).get(b"mcp-name", b"").strip(b" \t"))

    async def work() -> bytes:
        return await forward(call, upstream, call.method, encode(params), name)

    result = await call.services.parked.run(call, work, asks=upstream.may_ask, replay=False, begun=False)
    try:
        members_of_result = decode_object(result)
        if members_of_result.get("resultType", "complete") != "complete":
            raise CustomResult(members_of_result)
        found, call.meta = split_result(result, "")
    except MALFORMED as exc:
        raise ProtocolError(INTERNAL_ERROR, f"The server {upstream.name!r} returned an invalid result.") from exc
    return found
