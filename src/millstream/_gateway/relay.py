"""A server that relays its only upstream: messages are passed on unchanged if both sides speak the same revision. Lists
are requested when a client lists, names don't have to be listed, and texts, errors, and `_meta` aren't changed. A
session of a client has its own session at the upstream, which opens with it. If the eras don't match, or the upstream
is down, the items from the catalog's last lists serve the call instead.
"""

import asyncio
import json
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from typing import Any

import msgspec
from msgspec import Raw

from millstream import ProtocolError, ToolError
from millstream._gateway.calls.forward import connect, forward, forward_exactly, forward_plainly, forward_stream
from millstream._gateway.calls.items import CORE, SKILL_METHODS
from millstream._gateway.catalog.catalog import METHODS, Catalog, read_page
from millstream._gateway.log import logger
from millstream._gateway.messages.route import SESSION_METHODS, Way
from millstream._gateway.rules.results import NoResponse
from millstream._gateway.upstreams.links import Link
from millstream._gateway.upstreams.mcp import McpUpstream
from millstream._parts import PartHost
from millstream._protocol.errors import UNSUPPORTED_VERSION, CustomResult
from millstream._protocol.jsonrpc import decode_members
from millstream._protocol.metadata import decode_name
from millstream._protocol.notifications import PaginatedRequestParams
from millstream._protocol.revisions import HANDSHAKE, project_item
from millstream._protocol.revisions import tool as project_tool
from millstream._recent import Recent, RecentBytes
from millstream._server.calls.call import Call
from millstream._server.dispatch import RelayedError
from millstream._server.handlers import read
from millstream.client import ClientError, InvalidResponse, ServerError
from millstream.client.lowlevel import RawRequest
from millstream.protocol import (
    INVALID_PARAMS,
    MALFORMED,
    TASKS,
    Json,
    decode_object,
    decoder,
    encode,
    is_array,
    is_object,
    members,
)

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
        self._admitted: Recent[bytes, None] = Recent(_MAX_PAGES)
        """Hashes of pages of which the policy changes no item."""
        host.relay(self)

    @property
    def capabilities(self) -> Json:
        """See `RelayedServer`."""
        return self._upstream.catalog.announced

    def find(self, kind: str, name: str) -> Any:
        """See `RelayedServer`: find a tool or prompt that isn't listed."""
        if kind not in ("tools", "prompts") or self._upstream.policy.changes(kind, name):
            return None
        return self._upstream.item_classes[kind](self._upstream, name, name, {"inputSchema": {"type": "object"}})

    def relay(self, call: Call) -> Awaitable[bytes]:
        """See `RelayedServer`. The result is empty if the items of the upstream's lists have to serve the call."""
        return self._note(call) if call.method in SESSION_METHODS else self._relay(call)

    async def _note(self, call: Call) -> bytes:
        """Relay a request that changes the client's session at the upstream."""
        result = await self._relay(call)
        if result and call.session is not None:
            params = decode_object(call.raw_params() or b"{}")
            params.pop("_meta", None)
            self._upstream.links.note(call.session.id, call.method, encode(params))
        return result

    def _relay(self, call: Call) -> Awaitable[bytes]:
        return self._relay_unchanged(call) if self._upstream.policy.is_empty else self._relay_by_policy(call)

    def _relay_unchanged(self, call: Call) -> Awaitable[bytes]:
        link = self._upstream.find_plain_link(call, Way.VERBATIM)
        if link is None or call.method in _SERVED_HERE:
            return self._relay_exactly(call, link)
        return self._forward(call, link)

    async def _relay_by_policy(self, call: Call) -> bytes:
        """Relay a call, unless the policy changes what it's about. Changed items are served from the upstream's lists,
        and so are lists with such an item.
        """
        await self._wait_for_start()
        await self._read_lists()
        if not self._is_unchanged(call):
            return b""
        result = await self._relay_unchanged(call)
        return result if call.method not in _KINDS or await self._admit(_KINDS[call.method], result) else b""

    def _is_unchanged(self, call: Call) -> bool:
        """Return whether the policy changes nothing about a request, in whatever way the upstream reads it."""
        method, upstream = call.method, self._upstream
        if method in _KINDS:
            return _KINDS[method] not in upstream.policy.changed_kinds(upstream.catalog)
        if method == "logging/setLevel" or method.startswith("tasks/"):
            return True
        if method == "server/discover" and not upstream.catalog.taken_at:  # the upstream says why
            return True
        if method == "server/discover" or method not in CORE:
            return method not in SKILL_METHODS and upstream.policy.passes_extensions(upstream.catalog)
        try:
            found = list(_find_named(method, call.raw_params() or b"{}"))
        except MALFORMED:
            return False
        return not any(upstream.policy.changes(kind, name) or self._is_own(kind, name) for kind, name in found)

    def _is_own(self, kind: str, name: str) -> bool:
        """Return whether a name is that of a renamed item, or one for shortened results."""
        item, registry = self._upstream.offered[kind].get(name), self._host.registry
        if item is not None:
            return item.own_name != name
        if kind == "resources":
            return any(each.companion_of and each.template.match(name) for each in registry.templates.values())
        return kind == "tools" and name in registry.tools and registry.tools[name].companion_of is not None

    async def _admit(self, kind: str, page: bytes) -> bool:
        """Return whether the policy changes no item of a page. If it does, the lists are read again."""
        digest = sha256(page).digest()
        if digest in self._admitted:
            return True
        _, member, key = METHODS[kind]
        try:
            items = decode_object(page).get(member)
        except MALFORMED:
            items = None
        names = [each.get(key) if is_object(each) else None for each in items] if is_array(items) else [None]
        changes = self._upstream.policy.changes
        if any(not isinstance(name, str) or changes(kind, name) for name in names):
            await self._upstream.lists.freshen()
            return False
        self._admitted.keep(digest, None)
        return True

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
            upstream.lists.refresh_after_loss()  # another server may have taken its place
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
                if page := await self._list(call):
                    raise CustomResult(page)
        return b""

    async def _list(self, call: Call) -> Json:
        """Return a page of the upstream's list for this client, in its revision, or nothing if the policy changes
        an item of it.

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
        if not (upstream.policy.is_empty or await self._admit(kind, raw)):
            return {}
        key, pages = (kind, revision.date, sha256(raw).digest()), self._pages
        if key in pages:
            return pages[key][0]
        page = Catalog(revision=upstream.revision.date)
        items, following = read_page(page, kind, raw, [])
        if upstream.lists.is_stale and any(
            getattr(upstream.catalog, kind).get(name) != each for name, each in items.items()
        ):
            await upstream.lists.freshen()  # calls are checked and converted by these lists
        made, known = self._host.registry.items[kind], getattr(upstream.catalog, kind)
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
        ask = RawRequest(
            method=call.method, params=encode(params), name=name, rounds=False, owner=call.owner, said=call.params
        )
        if b"mcp-param-" in b" ".join(headers):
            ask.headers = {
                key.decode(): value.decode("latin-1") for key, value in headers.items() if key[:10] == b"mcp-param-"
            }
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
        """See `RelayedServer`. Open the session's own session at the upstream, if its route has one."""
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
        if link is None or not upstream.policy.is_empty:
            await self._read_lists()
        if link is None or not upstream.policy.passes_extensions(upstream.catalog):
            return b""
        if (connection := link.conversation.negotiated).revision is call.revision:
            return connection.discovered
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
        if call.method not in call.revision.notifications and not upstream.policy.passes_extensions(upstream.catalog):
            return None  # it may be about any item
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
_REFERENCES = {"ref/prompt": (("prompts", "name"),), "ref/resource": (("resources", "uri"), ("templates", "uri"))}
"""Type of a reference -> kinds of the items that it may be about, and the member that names them."""


def _find_named(method: str, params: bytes) -> Iterator[tuple[str, str]]:
    """Yield the kinds and the upstream's names of the items that a request is about.

    Raises:
        ValueError: They aren't certain, because other programs could read the parameters in another way.
    """
    found = decode_members(params)
    if any(name.casefold() in _NAMING and name not in _NAMING for name in found):  # many programs ignore case
        raise ValueError("a name is ambiguous")
    if method == _LISTEN:
        filters = members(_decode_strictly(found.get("notifications", b"{}")))
        for uri in _decode_uris(encode(filters.get("resourceSubscriptions", []))):
            yield "resources", uri
    elif method == "completion/complete":
        reference = members(_decode_strictly(found.get("ref", b"")))
        for kind, member in _REFERENCES.get(str(reference.get("type")), ()):
            yield kind, msgspec.convert(reference.get(member), str)
    else:
        kind = {"tools/call": "tools", "prompts/get": "prompts"}.get(method, "resources")
        yield kind, _decode_text(found.get("uri" if kind == "resources" else "name", b""))


_decode_text, _decode_uris = decoder(str), decoder(list[str])
_NAMING = frozenset({"name", "notifications", "ref", "uri"})


def _decode_strictly(value: bytes) -> Any:
    """Decode a value that every program reads in the same way: no member is there twice, or in two cases.

    Raises:
        ValueError: It's another value.
    """
    decoded = msgspec.json.decode(value)
    names = [name.casefold() for name in members(decoded)]
    if len(set(names)) < len(names) or msgspec.json.format(value, indent=-1) != encode(decoded):
        raise ValueError("a value is ambiguous")
    return decoded
