"""A server that relays its only upstream: messages are passed on unchanged if both sides speak the same revision. Lists
are requested when a client lists, names don't have to be listed, and texts, errors, and `_meta` aren't changed. A
session of a client has its own session at the upstream, which opens with it. If the eras don't match, or the upstream
is down, the items from the catalog's last lists serve the call instead.
"""

import asyncio
import json
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Any

from msgspec import Raw

from millstream import ProtocolError, ToolError
from millstream._parts import PartHost
from millstream._protocol.errors import UNSUPPORTED_VERSION, CustomResult
from millstream._protocol.jsonrpc import decode_members
from millstream._protocol.metadata import decode_name
from millstream._protocol.notifications import PaginatedRequestParams
from millstream._protocol.revisions import HANDSHAKE, project_item
from millstream._protocol.revisions import tool as project_tool
from millstream._recent import RecentBytes
from millstream._server.calls.call import Call
from millstream._server.dispatch import RelayedError
from millstream._server.handlers import read
from millstream.client import ClientError, InvalidResponse, ServerError
from millstream.client.lowlevel import RawRequest
from millstream.gateway._bridge import connect, forward, forward_exactly, forward_plainly, forward_stream
from millstream.gateway._catalog import METHODS, Catalog, read_page
from millstream.gateway._items import CORE
from millstream.gateway._links import Link
from millstream.gateway._mcp_upstream import McpUpstream
from millstream.gateway._messages import logger
from millstream.gateway._results import NoResponse
from millstream.gateway._route import Way
from millstream.gateway._upstream import Upstream
from millstream.protocol import INVALID_PARAMS, MALFORMED, TASKS, Json, encode

_LISTEN = "subscriptions/listen"
_KINDS = {method: kind for kind, (method, *_) in METHODS.items()}
"""Method that lists items -> their kind."""
_SERVED_HERE = frozenset({*_KINDS, "server/discover", _LISTEN})
"""Methods that can be served here although the upstream speaks the client's revision."""
_MAX_PAGES, _MAX_PAGES_BYTES = 256, 32 * 1024 * 1024
"""Maximum number and size of the converted pages that are kept, because converting takes ten times as long as passing
them on.
"""


class Passthrough:
    """Serves a server's methods by forwarding them.

    Args:
        host: The running server.
        upstream: Its only upstream.
    """

    def __init__(self, host: PartHost, upstream: McpUpstream) -> None:
        self._host = host
        self._upstream = upstream
        self._reading = asyncio.Lock()
        self._pages = RecentBytes[tuple[str, str, bytes], tuple[Json, int]](
            _MAX_PAGES, max_bytes=_MAX_PAGES_BYTES, size_of=lambda page: page[1]
        )
        """Kind, clients' revision, and hash of the upstream's page -> result, and size of the result's items in bytes.
        """
        self._converted = upstream.catalog
        """The lists with the items of `_pages`."""
        host.relay(self)

    @property
    def capabilities(self) -> Json:
        """See `RelayedServer`."""
        return self._upstream.catalog.announced

    def find(self, kind: str, name: str) -> Any:
        """See `RelayedServer`: find a tool or prompt that isn't listed."""
        if kind not in ("tools", "prompts"):
            return None
        return self._upstream.item_classes[kind](self._upstream, name, name, {"inputSchema": {"type": "object"}})

    def relay(self, call: Call) -> Awaitable[bytes]:
        """See `RelayedServer`. The result is empty if the items of the upstream's lists have to serve the call."""
        link = self._upstream.find_plain_link(call, Way.VERBATIM)
        if link is None or call.method in _SERVED_HERE:
            return self._relay_exactly(call, link)
        return self._forward(call, link)

    def _check_revision(self, call: Call) -> None:
        """Offer the handshake to a client without sign-in, if the upstream keeps sessions: only one of its own keeps
        the client's state apart.

        Raises:
            ProtocolError: The client uses the per-request era.
        """
        upstream, revision = self._upstream, call.revision
        if (
            not revision.handshake
            and upstream.keeps_sessions
            and call.transport != "rest"
            and upstream.route(call).once
        ):
            text = f"Unsupported protocol version: {upstream.name} keeps a session for each client"
            raise ProtocolError(UNSUPPORTED_VERSION, text, {"supported": [*HANDSHAKE], "requested": revision.date})

    async def _relay_exactly(self, call: Call, link: Link | None) -> bytes:
        if link is None:
            await self._wait_for_start()
        self._check_revision(call)
        if link is not None or self._meets(call):
            try:
                if result := await self._forward(call, link):
                    return result
            except NoResponse:
                if call.method == _LISTEN or call.method not in _SERVED_HERE:
                    raise
                return b""
        await self._read_lists()
        self._check_revision(call)
        upstream = self._upstream
        ready = upstream.lists.state == "ready" or (upstream.has_replied and not upstream.catalog.taken_at)
        if ready and call.method in _KINDS and self._host.registry.serves(call.method, call.revision):
            with suppress(NoResponse, InvalidResponse):
                raise CustomResult(await self._list(call))
        return b""

    async def _list(self, call: Call) -> Json:
        """Return a page of the upstream's list for this client, in the client's revision.

        Raises:
            ProtocolError, InvalidResponse: The upstream refuses, or there's no usable response.
        """
        upstream, kind, revision = self._upstream, _KINDS[call.method], call.revision
        cursor = read(PaginatedRequestParams, call).cursor
        raw = await forward(call, upstream, call.method, encode({} if cursor is None else {"cursor": cursor}), "")
        if len(raw) > upstream.config.max_catalog_bytes:
            raise InvalidResponse("The list is too large.")
        if self._converted is not upstream.catalog:
            self._converted = upstream.catalog
            self._pages.clear()
        key, pages = (kind, revision.date, sha256(raw).digest()), self._pages
        if key in pages:
            return pages[key][0]
        page = Catalog(revision=upstream.revision.date)
        items, following = read_page(page, kind, raw, [])
        if upstream.lists.is_stale and any(
            getattr(upstream.catalog, kind).get(name) != each for name, each in items.items()
        ):
            await upstream.lists.freshen()  # calls are checked and converted by these lists
        made, known = getattr(self._host.registry, kind), getattr(upstream.catalog, kind)
        describe = project_tool if kind == "tools" else project_item
        same = {name for name, each in items.items() if name in made and known.get(name) == each}
        listed = encode(
            [describe(made[name].describe() if name in same else each, revision) for name, each in items.items()]
        )
        result: Json = {METHODS[kind][1]: Raw(listed), **({} if following is None else {"nextCursor": following})}
        if revision.result_type:
            ttl_ms, private = page.hints.get(kind, (0, True))
            private = private or self._host.registry.private
            result |= {"resultType": "complete", "ttlMs": ttl_ms, "cacheScope": "private" if private else "public"}
        if len(same) == len(items):
            pages.keep(key, (result, len(listed)))
        return result

    def _forward(self, call: Call, link: Link | None) -> Awaitable[bytes]:
        try:
            params = decode_members(call.raw_params() or b"{}")
        except MALFORMED as exc:
            raise ProtocolError(INVALID_PARAMS, f"Invalid params: {exc}") from exc
        meta = bytes(params.pop("_meta", b""))
        if call.method == _LISTEN:
            return forward_stream(call, self._upstream, encode(params))
        headers: Mapping[bytes, bytes] = call.headers or {}
        if call.method in CORE:
            name = call.name
            if not name and (raw := bytes(params.get("name") or params.get("uri") or b""))[:1] == b'"':
                name = json.loads(raw) if b"\\" in raw else raw[1:-1].decode()
            call.name = name[:_MAX_NAME]
        else:
            name = decode_name(headers.get(b"mcp-name", b"").strip(b" \t"))
        ask = RawRequest(method=call.method, params=encode(params), name=name, rounds=False, owner=call.owner)
        for key in headers:
            if key[:10] == b"mcp-param-":
                ask.headers = {**ask.headers, key.decode(): headers[key].decode("latin-1")}
        if link is None:
            return forward_exactly(call, self._upstream, ask, verbatim=True)
        return forward_plainly(call, self._upstream, link, ask, meta, verbatim=True)

    async def _wait_for_start(self) -> None:
        """Wait until an upstream that's starting has described itself, for a limited time."""
        lists = self._upstream.lists
        if not (self._upstream.has_replied or lists.responded.is_set()):
            with suppress(TimeoutError):
                async with asyncio.timeout(self._upstream.config.start_timeout):
                    await lists.responded.wait()

    async def _read_lists(self) -> None:
        """Read the upstream's lists once the first client needs them."""
        upstream = self._upstream
        if not upstream.lists.wanted.is_set() or self._reading.locked():
            async with self._reading:
                if not upstream.lists.wanted.is_set():
                    upstream.lists.wanted.set()
                    await upstream.lists.freshen()

    def _meets(self, call: Call) -> bool:
        """Return whether the upstream serves a call unchanged, if its connection has the client's revision."""
        upstream, route = self._upstream, self._upstream.route(call)
        # Tasks belong to their caller here. A call whose client doesn't support tasks can't become one.
        tasks = ("tools/call", "tasks/") if TASKS in call.client.extensions else "tasks/"
        is_task = upstream.has_tasks and not route.own and call.method.startswith(tasks)
        return route.passes(call.method) and upstream.has_replied and not is_task

    async def open_session(self, call: Call) -> bytes:
        """See `RelayedServer`. The session of the client gets a dedicated session at the upstream."""
        upstream, call.services = self._upstream, self._host.services
        await self._wait_for_start()
        if not upstream.has_replied or not upstream.route(call).own:
            return b""
        try:
            if upstream.credentials is not None:
                await upstream.credentials.prepare(call)
            link = await upstream.open_own(call, upstream.key(call, b"", ""))
        except ServerError as exc:
            raise RelayedError(exc.code, exc.message, exc.data) from None
        except (ClientError, ToolError) as exc:  # the client's first call tries again
            logger.warning("%s: a client's session couldn't be opened: %s", upstream.name, exc)
            return b""
        if link is None:
            await self._read_lists()
            return b""
        if (connection := link.conversation.negotiated).revision is call.revision:
            return connection.offer
        await upstream.lists.describe(link.conversation)
        return b""

    async def notify(self, call: Call) -> None:
        """See `RelayedServer`."""
        try:
            link = await self._find_notified(call)
            if link is not None and link.open_task is None:
                conversation, params = link.conversation, Raw(call.params or b"{}")
                async with link.notifying:
                    await conversation.requests.notify(conversation.transport, call.method, params)
        except (ClientError, ProtocolError) as exc:
            logger.debug("%s: a client's %s couldn't be passed on: %s", self._upstream.name, call.method, exc)

    async def _find_notified(self, call: Call) -> Link | None:
        """Return the connection for a client's notification: its own, or one for its calls if the upstream keeps no
        sessions. In a session that callers share, a notification of one could change the state of another.
        """
        upstream = self._upstream
        route = upstream.route(call)
        if route.own:
            return None if call.session is None else upstream.links.own.get(call.session.id)
        if upstream.keeps_sessions is not False or not route.is_verbatim or upstream.breaker.is_open:
            return None
        if upstream.credentials is not None:
            await upstream.credentials.prepare(call)
        return await connect(call, upstream, b"", "")


_MAX_NAME = 128
"""Maximum characters of a name for the log."""


def find_obstacle(
    upstreams: Sequence[Upstream], *, is_api: bool, has_items: bool, has_hooks: bool, has_search: bool, extends: bool
) -> str:
    """Return why a server creates items from its upstreams' lists instead of relaying one, or an empty string if it
    relays.

    Args:
        upstreams: The upstreams.
        is_api: Whether the first one is an OpenAPI document.
        has_items: Whether the server has items of its own.
        has_hooks: Whether it has middleware.
        has_search: Whether models search its tools.
        extends: Whether it has extensions.
    """
    config = upstreams[0].config
    obstacles = {
        "there are several upstreams": len(upstreams) > 1,
        "the upstream is an OpenAPI document": is_api,
        "the upstream has a prefix": bool(config.names.prefix),
        "the upstream has a policy": config.policy is not None,
        "the upstream's definitions are pinned": config.trust == "pin",
        "the upstream's revision is fixed": config.revision is not None,
        "this server has items of its own": has_items,
        "this server has middleware": has_hooks,
        "this server has tool search": has_search,
        "this server has extensions": extends,
    }
    return next((why for why, applies in obstacles.items() if applies), "")
