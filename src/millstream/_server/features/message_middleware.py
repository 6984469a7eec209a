"""Middleware for whole messages and lists, around the handlers.

A mounted server keeps its own middleware, which wraps requests for its items, inside that of the server it's mounted
on.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from millstream._protocol.errors import INVALID_PARAMS, ProtocolError
from millstream._protocol.json_schema import is_object
from millstream._protocol.jsonrpc import MALFORMED, encode
from millstream._server.calls.call import Call
from millstream._server.calls.context import shared_context
from millstream._server.features.hooks import Hook, Hooks, ListRequest, MessageRequest, Next, chain_hooks
from millstream._server.features.registry import Registry

Handler = Callable[[Call], Awaitable[bytes]]

_LISTS = {
    "tools/list": ("tools", "tools", "name"),
    "prompts/list": ("prompts", "prompts", "name"),
    "resources/list": ("resources", "resources", "uri"),
    "resources/templates/list": ("templates", "resourceTemplates", "uriTemplate"),
}
"""Method -> (kind, member of the result, member that identifies an item)."""


class MiddlewareChain:
    """The hooks of a running server and of its mounted servers, around the handlers."""

    def __init__(self, hooks: Hooks, registry: Registry) -> None:
        self._hooks = hooks
        self._registry = registry

    async def __call__(self, call: Call, handler: Handler) -> bytes:
        """Return the members of the result of a call."""
        if call.method in _LISTS:
            handler = self._wrap_list_handler(handler)
        params = _object(call.params)
        hooks = [(each, hook) for each in self._path(call, params) for hook in each.message]
        if not hooks:
            return await handler(call)

        async def inside(request: MessageRequest) -> dict[str, Any]:
            if request.params is not params or encode(params) != before:
                call.params, call.arguments = encode(request.params), None
            return _members(await handler(call))

        before = encode(params)
        chain: Next = inside
        for each, hook in reversed(hooks):
            chain = _with(hook, chain, call, each.home)
        return _encode_result(await chain(MessageRequest(call.method, params, shared_context(call, self._hooks.home))))

    def _path(self, call: Call, params: dict[str, Any]) -> tuple[Hooks, ...]:
        """Return the hooks for a request: this server's, then those of each server that its item is mounted through."""
        item: Any = None
        method, registry, name = call.method, self._registry, params.get("name")
        if method == "tools/call" and isinstance(name, str):
            item = registry.tools.get(name)
        elif method == "prompts/get" and isinstance(name, str):
            item = registry.prompts.get(name)
        elif method == "completion/complete":
            item = _completion_target(registry, params.get("ref"))
        elif method in _ABOUT_URI and isinstance(uri := params.get("uri"), str):
            # Find the item like the handler does: the first matching one that is visible to the caller.
            item, _ = registry.find_readable(uri, lambda each: each.visible is None or each.visible(call.principal))
        return (self._hooks,) if item is None else item.path or (self._hooks,)

    def _wrap_list_handler(self, handler: Handler) -> Handler:
        """Return a list handler with the hooks for lists around it."""

        async def handle_list(call: Call) -> bytes:
            kind, member, key = _LISTS[call.method]
            result = _members(await handler(call))

            async def inside(request: ListRequest) -> list[dict[str, Any]]:
                return await self._project_mounted(result[member], kind, key, call)

            chain = chain_hooks(self._hooks.list, inside)
            result[member] = await chain(ListRequest(kind, shared_context(call, self._hooks.home)))
            return _encode_result(result)

        return handle_list

    async def _project_mounted(
        self, items: list[dict[str, Any]], kind: str, key: str, call: Call
    ) -> list[dict[str, Any]]:
        """Return the items as their mounted servers describe them."""
        registered: dict[str, Any] = getattr(self._registry, kind)
        shown: dict[Hooks, None] = {}
        for each in registered.values():
            shown |= dict.fromkeys(hooks for hooks in reversed(each.path) if hooks.list and hooks is not self._hooks)
        for hooks in shown:
            own = {name for name, each in registered.items() if hooks in each.path}
            theirs = [each for each in items if each[key] in own]
            if theirs:
                at = items.index(theirs[0])
                chain = chain_hooks(hooks.list, _next_of(theirs))
                left = await chain(ListRequest(kind, shared_context(call, hooks.home)))
                items = [*items[:at], *left, *(each for each in items[at:] if each not in theirs)]
        return items


_ABOUT_URI = frozenset(("resources/read", "resources/subscribe", "resources/unsubscribe"))


def _completion_target(registry: Registry, reference: Any) -> Any:
    """Return the prompt or template whose argument a request completes."""
    if not is_object(reference):
        return None
    if reference.get("type") == "ref/prompt":
        return registry.prompts.get(str(reference.get("name")))
    return registry.templates.get(str(reference.get("uri")))


def _with(hook: Hook, inside: Next, call: Call, home: object) -> Next:
    """Return a link of the chain, with the context of its own server."""

    def step(request: MessageRequest) -> Awaitable[Any]:
        return hook(MessageRequest(request.method, request.params, shared_context(call, home)), inside)

    return step


def _next_of(items: list[dict[str, Any]]) -> Next:
    async def give(request: ListRequest) -> list[dict[str, Any]]:
        return items

    return give


def _object(raw: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(raw or b"{}", type=dict[str, Any])
    except MALFORMED as exc:
        raise ProtocolError(INVALID_PARAMS, f"Invalid params: {exc}") from exc


def _members(members: bytes) -> dict[str, Any]:
    return msgspec.json.decode(b"{%b}" % members, type=dict[str, Any])


def _encode_result(result: dict[str, Any]) -> bytes:
    return encode(result)[1:-1]
