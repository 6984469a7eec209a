"""Handlers of MCP's requests, and the middleware around them.

Each takes a `Call` and returns the members of the result for the call's revision. `subscriptions/listen` is the change
stream of the per-request era, open until the client disconnects.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import ExitStack
from functools import cache, partial
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Raw
from msgspec.structs import replace

from millstream._protocol import revisions
from millstream._protocol.admission import require_capabilities
from millstream._protocol.errors import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    REQUIRES_CAPABILITIES,
    RESOURCE_NOT_FOUND,
    ProtocolError,
    ToolError,
)
from millstream._protocol.foreign import foreign_decoder
from millstream._protocol.json_schema import members
from millstream._protocol.jsonrpc import (
    MALFORMED,
    MAX_MEMBERS,
    NO_MEMBERS,
    Json,
    decode_object,
    decoder,
    encode,
    notification_message,
    too_many_members,
)
from millstream._protocol.metadata import LOG_LEVELS, SUBSCRIPTION_KEY, ClientInfo, check, declares, param_headers
from millstream._protocol.notifications import (
    CallToolRequestParams,
    CompleteRequestParams,
    Completion,
    GetPromptRequestParams,
    InputResponseRequestParams,
    NotificationParams,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    Reference,
    ResourceRequestParams,
    ResourceUpdatedNotificationParams,
    SetLevelRequestParams,
    SubscriptionFilter,
    SubscriptionsAcknowledgedNotificationParams,
    SubscriptionsListenRequestParams,
)
from millstream._protocol.uri import normalize_uri
from millstream._server.calls.call import RUNNING, Call, check_scopes, granted_scopes, params_of
from millstream._server.calls.context import call_binding, open_rounds, shared_context
from millstream._server.calls.parked_calls import ParkedCalls
from millstream._server.calls.questions import read_responses
from millstream._server.calls.services import UPDATED, ServerChange, affected_uris
from millstream._server.calls.sessions import SessionRecord, size_of_uris, spellings, watch_uris
from millstream._server.control import release_arguments, too_many_streams
from millstream._server.dispatch import Dispatcher
from millstream._server.features import Hook, Hooks, ListRequest, MessageRequest, Next, chain_hooks
from millstream._server.features.registry import MAX_URI, Handler, Registry, sees
from millstream._server.features.resources import Prompt, Resource, Template
from millstream._server.features.sources import Item
from millstream._server.features.tools import Tool, run_tool
from millstream._server.functions.plan import ArgumentError
from millstream._text import shorten

S = TypeVar("S")


_decoder = cache(decoder)
_tolerant_decoder = cache(foreign_decoder)


def read(kind: type[S], call: Call, find_decoder: Callable[..., Callable[[bytes], Any]] = _decoder) -> S:
    """Decode the parameters of a call.

    Raises:
        ProtocolError: INVALID_PARAMS.
    """
    try:
        found: S = find_decoder(kind)(call.params or b"{}")
    except MALFORMED as exc:
        raise ProtocolError(INVALID_PARAMS, f"Invalid params: {exc}") from exc
    return found


def read_texts(kind: type[S], call: Call) -> S:
    """Decode parameters with an object of strings, where absent members may be null. Each string becomes an object.

    Raises:
        ProtocolError: INVALID_PARAMS, including for too many members.
    """
    if too_many_members(call.params):
        raise ProtocolError(INVALID_PARAMS, f"Invalid params: more than {MAX_MEMBERS:,} members")
    return read(kind, call, _tolerant_decoder)


def take_rounds(call: Call, params: InputResponseRequestParams) -> None:
    """Store the answers and state of a call's earlier rounds: ``take_rounds(call, decode(call.params))``.

    Args:
        call: The call, which must already have its name.
        params: Its params. Revisions with a handshake have no rounds.

    Raises:
        ProtocolError: INVALID_PARAMS, including for a state that is invalid or belongs to another call.
    """
    if call.revision.handshake:
        return
    if params.input_responses is not UNSET:
        call.responses = read_responses(bytes(params.input_responses))
    if not isinstance(params.request_state, str):
        raise ProtocolError(INVALID_PARAMS, "Invalid params: requestState must be a string")
    call.state = params.request_state
    if call.state:
        open_rounds(call)


def redirect(call: Call, params: Mapping[str, Any], name: str, arguments: Raw) -> None:
    """Turn a tool call into a call of another tool.

    Args:
        call: The call, before later gates see it.
        params: Its params.
        name: Name of the other tool.
        arguments: Arguments of the other tool.
    """
    call.name, call.arguments = name[:128], None
    call.params = encode({**params, "name": name, "arguments": arguments})
    registry = call.dispatcher.registry
    tool: Tool | None = registry.find("tools", name, call)
    if tool is None:
        return  # the handler rejects it
    call.name = registry.listed_name("tools", name)
    if tool.requires and not call.revision.handshake:
        require_capabilities(call.client.capabilities, tool.requires)
    if tool.headers and call.headers is not None:
        # The client can't know which arguments belong in headers.
        repeated = param_headers(tool.headers, msgspec.json.decode(arguments))
        call.headers = {**call.headers, **{name.lower().encode(): text.encode() for name, text in repeated.items()}}


MAX_VALUES = 100
_MAX_KEPT_PARAMS = 16 * 1024
"""Maximum bytes of parameters that a call keeps while its tool runs."""
MAX_URI_BYTES = 128 * 1024
"""Maximum total length of a subscription's URIs, the same as in a session's record."""
ACKNOWLEDGED = "notifications/subscriptions/acknowledged"


class Handlers:
    """The handlers of all methods, which a dispatcher serves from then on."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._registry = dispatcher.registry
        self._services = dispatcher.services
        self._announcement = dispatcher.announcement
        dispatcher.read_resource = self._read_inside
        dispatcher.serve(
            {
                **{method: partial(self._list, kind) for method, (kind, *_) in _LISTS.items()},
                "tools/call": self._call_tool,
                "prompts/get": self._get_prompt,
                "resources/read": self._read_resource,
                "resources/subscribe": self._subscribe,
                "resources/unsubscribe": self._unsubscribe,
                "subscriptions/listen": self._listen,
                "completion/complete": self._complete,
                "server/discover": self._discover,
                "ping": self._ping,
                "logging/setLevel": self._set_level,
            }
        )

    async def _list(self, kind: str, call: Call) -> bytes:
        """Return one page of a kind's descriptions: the cached page, or one created for the call."""
        registry = self._registry
        audience = registry.audience(kind, call.principal, partial(granted_scopes, call))
        return registry.page(kind, call.revision, read(PaginatedRequestParams, call).cursor, audience)

    async def _call_tool(self, call: Call) -> bytes:
        """Run a tool. Prepared calls skip this handler."""
        tool = self._open_tool(call)
        if tool.task is not None:
            for begin in self._services.task_hooks:
                if (task := begin(call, tool, self._run_tool)) is not None:
                    return await task
        return await self._run_tool(call, tool)

    async def _run_tool(self, call: Call, tool: Tool) -> bytes:
        """Run a tool after its arguments have been read."""
        if self._services.attach_stream is not None:
            self._services.attach_stream(call)
        option, idempotent = tool.idempotency, self._services.idempotent
        once = bool(option) and idempotent.open(call, option, begun=not tool.prepares)
        size = len(call.params)
        if (size > _MAX_KEPT_PARAMS or call.task) and not call.can_start_task:
            if not call.revision.handshake:
                call_binding(call)  # while the arguments are still available
            # The arguments have been read, and the tool can take long.
            call.params = b'{"_meta":%b}' % (bytes(params_of(call).meta) or b"{}")
        timeout = self._services.settings.tool_timeout if tool.timeout is None else tool.timeout
        work = partial(run_tool, tool, call, timeout, newest=once)
        replay, wait = tool.replay, 0.0
        if call.task and tool.task is not None:
            replay = True if replay is None and tool.task.retry else replay
            if call.task == RUNNING:
                wait = self._services.settings.task_ttl if tool.task.ttl is None else tool.task.ttl
        run = partial(self._run, call, tool, work, replay=replay, size=size, wait=wait)
        if not once:
            return await run()
        members: bytes = await idempotent.run(call, run, wait)
        newest = call.revision is revisions.NEWEST
        return members if newest else revisions.project_tool_result(members, call.revision, wraps=tool.wraps)

    async def _run(
        self,
        call: Call,
        item: Item,
        work: Callable[[], Coroutine[Any, Any, bytes]],
        *,
        replay: bool | None,
        size: int = 0,
        wait: float = 0,
    ) -> bytes:
        """Run an item, or continue the call that the request's state identifies."""
        if not item.asks and (call.rounds is None or call.rounds.ticket is None):
            return await work()
        parked: ParkedCalls = self._services.parked
        begun = not item.asks_first
        return await parked.run(call, work, asks=item.asks, replay=replay, begun=begun, size=size, wait=wait)

    def _open_tool(self, call: Call) -> Tool:
        """Find the tool and decode its arguments.

        Raises:
            ProtocolError: The tool is unknown, headers differ from the arguments, or (older revisions) the arguments
                are invalid.
            ToolError: The arguments are invalid. The text tells the model what to fix.
        """
        params = read(CallToolRequestParams, call)
        registry = self._registry
        tool: Tool | None = registry.find("tools", params.name, call) or registry.find_elsewhere("tools", params.name)
        call.name = registry.listed_name("tools", params.name)
        if tool is None:
            call.name = params.name[:128]
            raise _unknown_tool(call)
        call.item = tool.main_name
        # Before the arguments are read, because an error about them would reveal the schema.
        check_scopes(call, tool.scopes)
        if call.revision.handshake and not declares(call.client.capabilities, tool.requires):
            raise ToolError(f"{REQUIRES_CAPABILITIES} {', '.join(tool.requires)}.")
        if tool.visible is not None and not call.revision.handshake:  # for others, admission has checked it
            require_capabilities(call.client.capabilities, tool.requires)
        take_rounds(call, params)
        raw = bytes(params.arguments) or b"{}"
        if raw in NO_MEMBERS:
            raw = b"{}"
        if self._services.attach_stream is not None and b'"client_id"' in raw:
            raw = _take_client_id(tool, call, raw)
        if tool.headers and call.revision.routing_headers and call.headers is not None:
            check(tool.headers, call.headers, _object(raw))
        if call.arguments is None:  # REST has already read them, to distinguish invalid arguments from a failed tool
            try:
                call.arguments = tool.read(raw)
            except ArgumentError as exc:
                if call.revision.argument_errors_in_result:
                    raise ToolError(str(exc)) from exc
                raise ProtocolError(INVALID_PARAMS, str(exc)) from exc
        return tool

    async def _get_prompt(self, call: Call) -> bytes:
        params = read_texts(GetPromptRequestParams, call)
        registry, name = self._registry, params.name
        prompt: Prompt | None = registry.find("prompts", name, call) or registry.find_elsewhere("prompts", name)
        if prompt is None:
            raise ProtocolError(INVALID_PARAMS, f"Unknown prompt: {params.name[:128]!r}")
        check_scopes(call, prompt.scopes)
        call.name, call.item = params.name, prompt.main_name
        take_rounds(call, params)
        try:
            call.arguments = prompt.read(params.arguments or {})
        except ArgumentError as exc:
            raise ProtocolError(INVALID_PARAMS, str(exc)) from exc

        async def work() -> bytes:
            return prompt.encode(await prompt.run(call.arguments, call), call)

        return await self._run(call, prompt, work, replay=True)

    async def _read_resource(self, call: Call) -> bytes:
        params = read(ReadResourceRequestParams, call)
        call.name = params.uri
        take_rounds(call, params)
        source, arguments = self._find_readable(params.uri, call)

        async def work() -> bytes:
            value = await source.run(arguments, call)
            if value is None:
                raise _not_found(params.uri)
            return source.encode(value, params.uri, call)

        return await self._run(call, source, work, replay=True)

    async def _read_inside(self, uri: str, call: Call) -> Any:
        """Return the value of a resource, for a function that serves a call."""
        source, value = await self._read(uri, call)
        return source.unwrap(value)

    async def _read(self, uri: str, call: Call) -> tuple[Resource | Template, Any]:
        source, arguments = self._find_readable(uri, call)
        value = await source.run(arguments, call)
        if value is None:
            raise _not_found(uri)
        return source, value

    def _find_readable(self, uri: str, call: Call) -> tuple[Resource | Template, Any]:
        found, variables = self._registry.find_readable(uri, partial(sees, call))
        if found is None:
            raise _not_found(uri)
        check_scopes(call, found.scopes)
        try:
            return found, found.read(variables)
        except ArgumentError as exc:
            raise ProtocolError(INVALID_PARAMS, f"Invalid resource URI: {exc}", {"uri": uri}) from exc

    async def _subscribe(self, call: Call) -> bytes:
        """Subscribe the session to changes to one resource."""
        uri = read(ResourceRequestParams, call).uri
        if len(uri) > MAX_URI_BYTES:
            raise _not_found(uri)
        normal = normalize_uri(uri)

        def add(record: SessionRecord) -> SessionRecord | None:
            if normal in record.subscriptions:
                return None
            if len(record.subscriptions) >= self._services.settings.max_subscriptions:
                raise ProtocolError(INVALID_REQUEST, "Too many subscriptions in this session. Unsubscribe from some.")
            self._find_readable(uri, call)
            self._services.changes.source.check_room(call.owner, (uri,))
            return replace(record, subscriptions=record.subscriptions | watch_uris([uri]))

        await self._change_subscriptions(call, add)
        await self._services.changes.source.wait_until_followed((uri,))
        return b""

    async def _unsubscribe(self, call: Call) -> bytes:
        """End the session's subscription to one resource."""
        uri = read(ResourceRequestParams, call).uri
        normal = normalize_uri(uri) if len(uri) <= MAX_URI_BYTES else uri

        def drop(record: SessionRecord) -> SessionRecord | None:
            kept = record.subscriptions.copy()
            return None if kept.pop(normal, None) is None else replace(record, subscriptions=kept)

        await self._change_subscriptions(call, drop)
        return b""

    async def _change_subscriptions(self, call: Call, edit: Callable[[SessionRecord], SessionRecord | None]) -> None:
        """Change the record of a session and follow its subscriptions.

        Streamable HTTP sessions have a stream that follows them.
        """
        session = call.session
        if session is None:
            raise ProtocolError(INVALID_REQUEST, "Subscriptions need a session. Initialize one, and send its id.")
        await self._services.records.change(session, edit)
        if session.record is not None:
            self._services.changes.source.follow(session.id, session.owner, session.record.subscriptions)

    async def _listen(self, call: Call) -> bytes:
        """Acknowledge, then push changes until the call is canceled or the server closes the reply channel."""
        wanted = read(SubscriptionsListenRequestParams, call).notifications
        services, owner = self._services, call.owner
        changes, endings, most = services.changes, services.endings, services.settings.max_subscriptions
        if len(wanted.resource_subscriptions) > most:
            raise ProtocolError(INVALID_REQUEST, f"A subscription can have at most {most} resources.")
        if sum(map(len, wanted.resource_subscriptions)) > MAX_URI_BYTES:
            raise ProtocolError(
                INVALID_REQUEST, f"The URIs of a subscription can have at most {MAX_URI_BYTES} characters in total."
            )
        size = size_of_uris(watch_uris(wanted.resource_subscriptions), changes.source.entry_bytes)
        pushes = _Pushes()
        with ExitStack() as ends:
            agreed = await self._open_filters(call, pushes, ends) if self._registry.filters else {}
            # Release the request: it isn't read again, and the stream can be open for a day.
            client = call.client
            call.client = ClientInfo({}, client.name, client.version)
            call.params, call.token = b"", None
            release_arguments(call, services.bodies)
            if not services.streams.take(owner):
                raise too_many_streams(services.streams.count(owner))
            ends.callback(services.streams.leave, owner)
            services.client_memory.take(owner, size)
            ends.callback(services.client_memory.bytes.leave, owner, size)
            granted = self._grantable(wanted, call)
            line = call.open_reply_channel()
            mark = {SUBSCRIPTION_KEY: call.id}
            call.meta = dict(mark)
            acknowledgment = notification_message(
                ACKNOWLEDGED,
                {"notifications": {**msgspec.to_builtins(granted), **agreed}, "_meta": mark}
                if agreed
                else SubscriptionsAcknowledgedNotificationParams(granted, mark),
            )
            if granted == SubscriptionFilter() and not agreed:
                await call.send_to_caller(acknowledgment)
                return b""
            reports = partial(self._registry.reports, call)
            watched = watch_uris(await _filter_with_pauses(reports, granted.resource_subscriptions))
            uris = spellings(watched)
            lists = {
                kind: notification_message(ServerChange(kind).method, NotificationParams(mark))
                for kind in ("tools", "prompts", "resources")
                if getattr(granted, f"{kind}_list_changed")
            }
            changes.source.check_room(owner, uris)

            def watcher(change: ServerChange, message: bytes) -> None:
                if change.kind in lists:
                    pushes.push(lists[change.kind])
                for uri in filter(reports, affected_uris(change, watched)):
                    pushes.push(notification_message(UPDATED, ResourceUpdatedNotificationParams(uri, mark)))

            ends.callback(changes.watch(watcher, call.dispatcher.address.name))
            end = pushes.over.set
            endings.add(end)
            ends.callback(endings.discard, end)
            changes.source.follow(call, owner, watched)
            ends.callback(changes.source.follow, call, owner, {})
            await changes.source.wait_until_followed(uris)
            await call.send_to_caller(acknowledgment)
            del wanted, granted, uris, acknowledgment  # uncounted data must not be kept
            await line.keep_alive()  # opens the stream if a filter dropped the acknowledgment
            ends.callback(line.on_close(end))
            pushes.begin(call)
            await pushes.over.wait()
        return b""

    async def _open_filters(self, call: Call, pushes: "_Pushes", ends: ExitStack) -> Json:
        """Pass filters to the extensions that own them and return the accepted ones."""
        agreed: Json = {}
        asked = members(members(msgspec.json.decode(call.params)).get("notifications"))
        for member, serve in self._registry.filters.items():
            if member in asked:
                value, end = await serve(asked[member], call, pushes.push)
                ends.callback(end)
                if value is not None:
                    agreed[member] = value
        return agreed

    def _grantable(self, wanted: SubscriptionFilter, call: Call) -> SubscriptionFilter:
        offers, scopes = self._registry.announces, granted_scopes(call)
        uris = wanted.resource_subscriptions if offers("resources") else []
        if scopes is not None and self._registry.scopes:
            find = self._registry.find_readable
            uris = [uri for uri in uris if (item := find(uri)[0]) is None or item.scopes <= scopes]
        return SubscriptionFilter(
            wanted.tools_list_changed and offers("tools"),
            wanted.prompts_list_changed and offers("prompts"),
            wanted.resources_list_changed and offers("resources"),
            uris,
        )

    async def _complete(self, call: Call) -> bytes:
        """Return values that begin with the typed text, from the registered completer or else the parameter's type."""
        params = read_texts(CompleteRequestParams, call)
        if self._registry.completes is not None:
            return b'"completion":%b' % encode(await self._registry.completes(call, params))
        item, reference = self._find_completed(params.ref, call)
        members = await item.complete(params, call)
        if members is not None:  # an upstream knows the arguments
            return members
        if params.argument.name not in item.parameters:
            raise ProtocolError(INVALID_PARAMS, f"Unknown argument: {params.argument.name[:128]!r}")
        known = params.context.arguments if params.context is not None and call.revision.completion_context else {}
        completer = self._registry.completers.get((reference, params.argument.name))
        value = params.argument.value
        found: Any
        if completer is None:
            found = (each for each in item.choices(params.argument.name) if each.startswith(value))
        else:
            found = await completer(value, known, call)
        values = [str(each) for each in found]
        shown = values[:MAX_VALUES]
        return b'"completion":%b' % encode(Completion(shown, len(values), len(values) > len(shown)))

    def _find_completed(self, reference: Reference, call: Call) -> tuple[Prompt | Template, str]:
        if reference.type == "ref/prompt":
            noun, kind, name = "prompt", "prompts", reference.name
        elif reference.type == "ref/resource":
            noun, kind, name = "resource template", "templates", reference.uri
        else:
            raise ProtocolError(INVALID_PARAMS, "Invalid params: ref.type must be ref/prompt or ref/resource")
        registry = self._registry
        name = registry.find_equivalent(kind, name)
        item: Prompt | Template | None = registry.find(kind, name, call) or registry.find_elsewhere(kind, name)
        if item is None:
            raise ProtocolError(INVALID_PARAMS, f"Unknown {noun}: {name[:256]!r}")
        check_scopes(call, item.scopes)
        return item, name

    async def _discover(self, call: Call) -> bytes:
        """Return versions, capabilities, and instructions."""
        call.meta = self._announcement.discover_meta(call.revision)
        return self._announcement.discover(call.revision, call)

    async def _ping(self, call: Call) -> bytes:
        """Return an empty result."""
        return b""

    async def _set_level(self, call: Call) -> bytes:
        """Set the minimum severity of log messages for this session. Without a session, do nothing."""
        level = read(SetLevelRequestParams, call).level
        if level not in LOG_LEVELS:
            raise ProtocolError(
                INVALID_PARAMS, f"Unknown log level {level[:32]!r}. Use one of {', '.join(LOG_LEVELS)}."
            )
        if call.session is not None:
            await self._services.records.change(
                call.session, lambda record: None if record.log_level == level else replace(record, log_level=level)
            )
        return b""


def _take_client_id(tool: Tool, call: Call, raw: bytes) -> bytes:
    """Return the arguments without the client id of a streamed call, if the tool has no such parameter."""
    if "stream" not in tool.parameters or "client_id" in tool.parameters:
        return raw
    arguments = _object(raw)
    client_id = arguments.pop("client_id", None)
    if isinstance(client_id, str) and not call.client_id:
        call.client_id = client_id
    return encode(arguments)


def _object(raw: bytes) -> Json:
    try:
        return decode_object(raw)
    except MALFORMED as exc:
        raise ProtocolError(INVALID_PARAMS, f"Invalid params: arguments must be an object ({exc})") from exc


def _not_found(uri: str) -> ProtocolError:
    return ProtocolError(RESOURCE_NOT_FOUND, "Resource not found", {"uri": shorten(uri, MAX_URI)})


class _Pushes:
    """Messages pushed to a subscription, starting after the acknowledgment."""

    __slots__ = ("_call", "_early", "over")

    def __init__(self) -> None:
        self._early: dict[bytes, None] = {}
        """Pending messages. Each one is pushed once."""
        self._call: Call | None = None
        self.over = asyncio.Event()
        """Set when the subscription ends."""

    def push(self, message: bytes) -> bool:
        """Push a message, or queue it until the acknowledgment is sent. Return False if the subscription is over."""
        if self._call is None:
            self._early[message] = None
        elif not self._call.push_to_caller(message):
            self.over.set()
        return not self.over.is_set()

    def begin(self, call: Call) -> None:
        """Push the queued messages, and from now on push directly."""
        self._call = call
        for message in self._early:
            call.push_to_caller(message)
        self._early.clear()


_LISTS = {
    "tools/list": ("tools", "tools", "name"),
    "prompts/list": ("prompts", "prompts", "name"),
    "resources/list": ("resources", "resources", "uri"),
    "resources/templates/list": ("templates", "resourceTemplates", "uriTemplate"),
}
"""Method -> (kind, member of the result, member that identifies an item)."""
_KEYS = {kind: key for kind, _, key in _LISTS.values()}


class MiddlewareChain:
    """The hooks of a running server and of its mounted servers, around the handlers."""

    def __init__(self, hooks: Hooks, registry: Registry) -> None:
        self._hooks = hooks
        self._registry = registry

    async def __call__(self, call: Call, handler: Handler) -> bytes:
        """Return the members of a call's result."""
        if call.method in _LISTS:
            handler = self._wrap_list_handler(handler)
        params = read(Json, call)
        hooks = [(each, hook) for each in self._path(call, params) for hook in each.message]
        if not hooks:
            return await handler(call)

        async def inside(request: MessageRequest) -> Json:
            if request.params is not params or encode(params) != before:
                kept = {"arguments": decode_object(before)["arguments"]} if call.collects else {}
                call.params, call.arguments = encode({**request.params, **kept}), None
            return decode_object(b"{%b}" % await handler(call))

        before = encode(params)
        chain: Next = inside
        for each, hook in reversed(hooks):
            chain = partial(_step, hook, chain, call, each.home)
        return encode(await chain(MessageRequest(call.method, params, shared_context(call, self._hooks.home))))[1:-1]

    def _path(self, call: Call, params: Json) -> tuple[Hooks, ...]:
        """Return the hooks for a request: this server's, then the hooks of each server between it and the item."""
        item: Any = None
        method, registry, name, uri = call.method, self._registry, params.get("name"), params.get("uri")
        kind = {"tools/call": "tools", "prompts/get": "prompts"}.get(method)
        if method == "completion/complete":
            reference = members(params.get("ref"))
            is_prompt = reference.get("type") == "ref/prompt"
            kind, name = ("prompts", reference.get("name")) if is_prompt else ("templates", reference.get("uri"))
        if kind and isinstance(name, str):
            item = registry.find(kind, name, call)
        elif method in _ABOUT_URI and isinstance(uri, str):
            # Find the item as the handler does: the first match that is visible to the caller.
            item, _ = registry.find_readable(uri, partial(sees, call))
        return (self._hooks,) if item is None else item.path or (self._hooks,)

    def _wrap_list_handler(self, handler: Handler) -> Handler:
        """Return a list handler with the hooks for lists around it."""

        async def handle_list(call: Call) -> bytes:
            kind, member, _ = _LISTS[call.method]
            result = decode_object(b"{%b}" % await handler(call))
            result[member] = await self.filter_list(kind, result[member], call)
            if "cacheScope" in result:
                result["cacheScope"] = "private"  # what hooks return may depend on the caller
            return encode(result)[1:-1]

        return handle_list

    async def filter_list(self, kind: str, items: list[Json], call: Call) -> list[Json]:
        """Return a caller's items of a kind, as the hooks for lists change them.

        Args:
            kind: The kind of items.
            items: Their descriptions, which hooks may change.
            call: The caller's request.
        """

        async def inside(request: ListRequest) -> list[Json]:
            """Return the items as their mounted servers describe them."""
            left = items
            registered = self._registry.items[kind]
            shown: dict[Hooks, None] = {}
            for each in registered.values():
                shown |= dict.fromkeys(
                    hooks for hooks in reversed(each.path) if hooks.list and hooks is not self._hooks
                )
            for hooks in shown:
                own = {name for name, each in registered.items() if hooks in each.path}
                theirs = [each for each in left if each[key] in own]
                if theirs:
                    at = left.index(theirs[0])
                    changed = await chain_hooks(hooks.list, partial(_give, theirs))(
                        ListRequest(kind, shared_context(call, hooks.home))
                    )
                    left = [*left[:at], *changed, *(each for each in left[at:] if each[key] not in own)]
            return left

        key = _KEYS[kind]
        chain = chain_hooks(self._hooks.list, inside)
        found: list[Json] = await chain(ListRequest(kind, shared_context(call, self._hooks.home)))
        return found


_ABOUT_URI = frozenset(("resources/read", "resources/subscribe", "resources/unsubscribe"))


def _step(hook: Hook, inside: Next, call: Call, home: object, request: MessageRequest) -> Awaitable[Any]:
    """Run a hook with the context of its own server."""
    return hook(MessageRequest(request.method, request.params, shared_context(call, home)), inside)


async def _give(items: list[Json], request: ListRequest) -> list[Json]:
    return items


def _unknown_tool(call: Call) -> ProtocolError:
    if not call.name:
        return ProtocolError(INVALID_PARAMS, 'Invalid params: add the "name" of a tool')
    why = call.services.explain_missing(call, call.name)
    return ProtocolError(INVALID_PARAMS, f"Unknown tool: {call.name!r}" + (f". {why}" if why else ""))


async def _filter_with_pauses(keeps: Callable[[str], bool], uris: Iterable[str]) -> list[str]:
    """Return the URIs that a function keeps. Comparing each with the rules of a gateway takes time."""
    kept = list[str]()
    for uri in uris:
        kept += [uri] if keeps(uri) else []
        await asyncio.sleep(0)
    return kept
