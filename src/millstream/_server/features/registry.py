"""The items of a server, in order of registration, and its lists as encoded bytes.

A change, even at run time, clears the kind's encoded lists. A change of a single item also calls `on_change`. A list is
encoded once per revision, page, and audience. A cursor contains the last item of a page, so any worker can continue a
listing.
"""

import base64
import binascii
from collections import ChainMap
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from functools import partial
from itertools import count
from typing import Any, Protocol, cast

from msgspec import Struct

from millstream._http.message import HttpRequest
from millstream._protocol import revisions
from millstream._protocol.admission import HeaderParam
from millstream._protocol.errors import INVALID_PARAMS, ProtocolError
from millstream._protocol.jsonrpc import Json, encode
from millstream._protocol.notifications import NOTIFICATIONS, CompleteRequestParams, Completion
from millstream._protocol.principal import Principal
from millstream._protocol.revisions import ALL, Revision
from millstream._protocol.uri import normalize_uri
from millstream._protocol.uri_template import normalize_template
from millstream._recent import RecentBytes
from millstream._server.calls.call import Call, granted_scopes
from millstream._server.features.resources import Prompt, Resource, Template
from millstream._server.features.sources import Completer
from millstream._server.features.tools import Tool


def sees(call: Call | HttpRequest, item: Any) -> bool:
    """Return whether a caller sees an item: ``sees(call, tool)``. A hidden item looks like a missing one.

    Args:
        call: Any call or request of the caller.
        item: The tool, prompt, resource, or template.
    """
    return item.visible is None or bool(item.visible(call.principal))


def _noun(kind: str) -> str:
    return _KINDS[kind].removesuffix("s")


def _start(kind: str, names: list[str], cursor: str) -> int:
    try:
        text = base64.b64decode(cursor, b"-_", validate=True).decode()
        found, _, name = text.partition(":")
        if found == kind and _cursor(text) == cursor:  # the decoder ignores trailing bits
            return names.index(name) + 1
    except (ValueError, binascii.Error):
        pass
    raise ProtocolError(INVALID_PARAMS, "Invalid cursor. List again from the start.")


def _cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


Handler = Callable[[Call], Awaitable[bytes]]
"""Returns the members of the result without the enclosing braces, or empty bytes."""
NotificationHandler = Callable[[Call], Awaitable[None]]
CompleteAny = Callable[[Call, CompleteRequestParams], Awaitable[Completion]]


ListenFilter = Callable[[Any, Call, Callable[[bytes], bool]], Awaitable[tuple[Any, Callable[[], None]]]]
"""``filter(wanted, call, push)`` returns the accepted filter and a function that ends it. ``push(message)`` sends."""


class RegisteredExtension(Struct, frozen=True):
    """Methods and a capability that aren't part of any revision, added with `Registry.extend`.

    Example:
        ``host.extend(RegisteredExtension("extensions", {"example.com/stock": {}}, {}, frozenset(REVISIONS)))``
    """

    capability: str
    """The member of the server's capabilities. Extensions can share one (``extensions``, ``experimental``)."""
    settings: Mapping[str, Any]
    """The value of that member."""
    methods: Mapping[str, Handler]
    """Handlers by method. Each returns the members of a result."""
    revisions: frozenset[str]
    """Dates of the revisions with the extension."""
    notifications: Mapping[str, NotificationHandler] = {}
    """Handlers of client notifications."""
    header_params: Mapping[str, HeaderParam] = {}
    """Method -> the member of its params that `Mcp-Name` repeats."""
    filters: "Mapping[str, ListenFilter]" = {}
    """Member of the `subscriptions/listen` filter -> its implementation."""


class RelayedServer(Protocol):
    """Another server that serves this server's clients. See `PartHost.relay`."""

    @property
    def capabilities(self) -> Json:
        """Its capabilities, which clients see instead of this server's."""
        ...

    def relay(self, call: Call) -> Awaitable[bytes]:
        """Pass on a call. Return the complete result, or empty bytes to serve the call here."""
        ...

    async def open_session(self, call: Call) -> bytes:
        """Handle `initialize`. Return the result, or empty bytes to use this server's own.

        Raises:
            ProtocolError: The other server rejects the client, or there are too many sessions.
        """
        ...

    async def notify(self, call: Call) -> None:
        """Pass on a client's notification."""
        ...

    def find(self, kind: str, name: str) -> Any:  # an item of the kind
        """Return an item for a name that isn't listed but that the other server may know, or None."""
        ...


DISCOVER = "discover"
"""Kind of the cache hints for `server/discover`."""
SUBSCRIBE = "subscribe"
"""The setting that announces subscriptions to resources, in the capability `resources`."""
_KINDS = {"tools": "tools", "resources": "resources", "templates": "resources", "prompts": "prompts"}
"""Kind -> kind of the change notification."""
_CONNECTION_NOTIFICATIONS = frozenset({"notifications/initialized", "notifications/cancelled"})
"""Notifications about the client's own connection, which aren't passed on."""
_ABOUT_CHANGES = frozenset({"listChanged", SUBSCRIBE})
"""Settings of capabilities that are announced only with a stream."""
_MAPS = frozenset({"extensions", "experimental"})
"""Capabilities that are maps of other capabilities."""
Audience = tuple[frozenset[str] | None, frozenset[str]]
"""The values that decide which items of a kind a caller sees: the caller's relevant scopes, or None for full access,
and the names of the items that are hidden from the caller.
"""
_EVERYTHING: Audience = (None, frozenset())
MAX_URI = 8 * 1024
"""Maximum length of a URI that is compared with templates, in characters."""
_MAX_PAGES = 1024
_MAX_PAGE_BYTES = 32 * 1024 * 1024
"""Maximum number of cached pages, for all callers."""
_NORMAL_FORMS: Mapping[str, Callable[[str], str]] = {"resources": normalize_uri, "templates": normalize_template}
"""Kind -> function that returns the normal form of an item's URI."""
_KINDS_WITH_ARGUMENTS = frozenset(("prompts", "templates"))
"""Kinds with arguments that clients can complete."""


def normal_form(kind: str, key: str) -> str:
    """Return the normal form of a URI, or a name as it is.

    Args:
        kind: Kind of the item.
        key: Its name or URI.
    """
    normalize = _NORMAL_FORMS.get(kind)
    return key if normalize is None or len(key) > MAX_URI else normalize(key)


class Registry:
    """The tools, resources, templates, prompts, and completers of one server."""

    private = False
    """Whether callers sign in. Results must then be cached only for the caller."""

    def __init__(self, *, page_size: int, list_ttl_ms: int) -> None:
        self.long_names: dict[tuple[str, str], str] = {}
        """(kind, another name that callers can use) -> name of the item. See `Item.long_name`."""
        self._page_size = page_size
        self._list_ttl_ms = list_ttl_ms
        # Registered items
        self.items: dict[str, dict[str, Any]] = {kind: {} for kind in _KINDS}
        """Kind -> name -> item."""
        self.tools: dict[str, Tool] = self.items["tools"]
        self.resources: dict[str, Resource] = self.items["resources"]
        self.templates: dict[str, Template] = self.items["templates"]
        self.prompts: dict[str, Prompt] = self.items["prompts"]
        self.completers: dict[tuple[str, str], Completer] = {}
        """(prompt name or URI template, argument name) -> function."""
        self.disabled: dict[str, dict[str, Any]] = {kind: {} for kind in _KINDS}
        """Kind -> registered items that are disabled."""
        self._places: dict[tuple[str, str], tuple[int, int]] = {}
        """(kind, name) -> group of the item, and its position in the order of registration."""
        self._numbers = count()
        # Caches
        self._equivalents: dict[str, dict[str, str]] = {kind: {} for kind in _NORMAL_FORMS}
        """Kind -> normal form of an item's URI -> the URI as registered. Disabled items are included."""
        self._pages: RecentBytes[tuple[str, str, str | None, Audience], bytes] = RecentBytes(
            _MAX_PAGES, max_bytes=_MAX_PAGE_BYTES, size_of=len
        )
        """(kind, revision, cursor, audience) -> members of the result."""
        self._scopes: dict[str, frozenset[str]] = {}
        """Kind -> all scopes that its items need."""
        self.conditional: dict[str, tuple[str, ...]] = {}
        """Kind -> names of items that only some callers see."""
        self.completes_choices: bool = True
        """Whether prompts and templates alone enable completion. Their parameters can have choices."""
        self.completes: CompleteAny | None = None
        """Completes every argument, instead of `completers`."""
        self.resource_finders: list[Callable[[str], Resource | None]] = []
        """Each returns the resource for a URI that no item has, or None. The first match is used."""
        self._hints: Mapping[str, tuple[int, bool]] = {}
        self._announced_capabilities: set[str] = {"logging"}
        self.extensions: list[RegisteredExtension] = []
        self.method_finders: list[Callable[[str, Revision], Handler | None]] = []
        """Each returns the handler of a method that no extension here has, or None. The first match is used."""
        self.whole: Registry | None = None
        """The registry of all of the server's items, if this one has a set of them."""
        self.relayed: RelayedServer | None = None
        """The relayed server, which decides which items exist."""
        self.header_params: dict[str, HeaderParam] = {}
        """Method of an extension -> the member of its params that `Mcp-Name` repeats."""
        self.filters: dict[str, ListenFilter] = {}
        """Member of the `subscriptions/listen` filter -> its implementation in an extension."""
        self.notification_handlers: dict[str, NotificationHandler] = {}
        """Notification of an extension -> its handler."""
        self.on_change: Callable[[str], None] = lambda kind: None
        self.list_selectors: list[Callable[[str, Mapping[str, Any]], Mapping[str, Any]]] = []
        """``select(kind, items)`` returns the items to list. Each receives what the previous one returned."""

    def add(self, kind: str, key: str, item: Any) -> None:
        """Register an item of a kind (tools, resources, templates, prompts).

        Raises:
            ValueError: The name is taken.
        """
        self.check_free(kind, key)
        self._places[kind, key] = 0, next(self._numbers)
        self._enable(kind, key, item)

    def _enable(self, kind: str, key: str, item: Any) -> None:
        self.items[kind][key] = item
        if kind in _NORMAL_FORMS:
            self._equivalents[kind].setdefault(_NORMAL_FORMS[kind](key), key)
        if item.scopes:
            self._scopes[kind] = self._scopes.get(kind, frozenset()) | item.scopes
        if item.visible is not None:
            self.conditional[kind] = (*self.conditional.get(kind, ()), key)
        if item.long_name:
            self.long_names[kind, item.long_name] = key
        self._touch(kind)

    def has(self, kind: str, key: str) -> bool:
        """Return whether a name is taken, by an enabled or disabled item."""
        return key in self.items[kind] or key in self.disabled[kind]

    def find_equivalent(self, kind: str, key: str) -> str:
        """Return the name or URI of the item, enabled or not, for a key in any spelling. Without one, return the key.
        An exact match takes precedence.
        """
        if kind not in _NORMAL_FORMS or len(key) > MAX_URI or self.has(kind, key):
            return key
        return self._equivalents[kind].get(normal_form(kind, key), key)

    def has_any(self, kind: str) -> bool:
        """Return whether there are items of a kind, enabled or disabled."""
        return bool(self.items[kind] or self.disabled[kind])

    def check_free(self, kind: str, key: str) -> None:
        """Check that a name is free and that a URI isn't another spelling of an existing one.

        Raises:
            ValueError: The name is taken.
        """
        taken = self.find_equivalent(kind, key)
        if self.has(kind, taken):
            noun = _noun(kind)
            same = "" if taken == key else f", and {key!r} is the same URI in another spelling"
            raise ValueError(
                f"The {noun} {taken!r} already exists{same}. Give this one another name, or call "
                f"remove_{noun}({taken!r}) first."
            )

    def remove(self, kind: str, key: str) -> None:
        """Remove an item and its completers.

        Raises:
            KeyError: No item has that name.
        """
        if not self.has(kind, key):
            raise KeyError(f"There is no {_noun(kind)} {key!r}.")
        enabled = key not in self.disabled[kind]
        self.exchange(kind, (key,), {})
        if enabled:
            self._touch(kind)

    def disable(self, kind: str, key: str) -> None:
        """Disable an item until `enable`. Raises KeyError if it isn't enabled."""
        self.disabled[kind][key] = self.items[kind].pop(key)
        self._recount(kind)
        self._touch(kind)

    def enable(self, kind: str, key: str) -> None:
        """Enable an item again, in its original position. Raises KeyError if it isn't disabled."""
        self._enable(kind, key, self.disabled[kind].pop(key))
        self._sort(kind)

    def _sort(self, kind: str) -> None:
        items = self.items[kind]
        ordered = sorted(items.items(), key=lambda each: self._places[kind, each[0]])
        items.clear()
        items.update(ordered)

    def exchange(self, kind: str, removed: Collection[str], added: Mapping[str, Any], *, group: int = 0) -> None:
        """Replace many items of a kind in one step, without calling `on_change` and without announcing capabilities.

        An item of `added` whose name is in `removed` keeps its position in the order of registration, and stays
        disabled.

        Args:
            kind: The kind of items.
            removed: Names of registered items, enabled or disabled.
            added: Name -> item. No other item can have these names.
            group: Items of a lower group are listed first. Items from `add` are in group 0.
        """
        removed = frozenset(removed)
        items, disabled = self.items[kind], self.disabled[kind]
        for name in removed:
            if name not in added:  # other items are replaced in place
                items.pop(name, None)
                disabled.pop(name, None)
                self._places.pop((kind, name), None)
        if kind in _KINDS_WITH_ARGUMENTS and removed:
            self.completers = {at: completer for at, completer in self.completers.items() if at[0] not in removed}
        for name, item in added.items():
            self._places.setdefault((kind, name), (group, next(self._numbers)))
            (disabled if name in disabled else items)[name] = item
        self._sort(kind)
        if kind in _NORMAL_FORMS:
            kept = (*reversed(items), *disabled)
            self._equivalents[kind] = {_NORMAL_FORMS[kind](name): name for name in kept}
        self._recount(kind)
        self._forget_pages(kind)

    def move(self, kind: str, names: Iterable[str], group: int) -> None:
        """Move registered items to another group of `exchange`."""
        for key in [(kind, name) for name in names if (kind, name) in self._places]:
            self._places[key] = group, self._places[key][1]
        self._sort(kind)
        self._forget_pages(kind)

    def _recount(self, kind: str) -> None:
        """Collect the scopes and conditions of a kind's items. `_enable` adds those of one item, so many registrations
        don't take quadratic time.
        """
        items = self.items[kind]
        self.long_names = {
            **{key: name for key, name in self.long_names.items() if key[0] != kind},
            **{(kind, item.long_name): name for name, item in items.items() if item.long_name},
        }
        self._scopes[kind] = frozenset[str]().union(*(item.scopes for item in items.values()))
        self.conditional.pop(kind, None)
        if conditional := tuple(name for name, item in items.items() if item.visible is not None):
            self.conditional[kind] = conditional

    def _touch(self, kind: str) -> None:
        change = _KINDS[kind]
        self._announced_capabilities |= {change, SUBSCRIBE} if change == "resources" else {change}
        if kind in _KINDS_WITH_ARGUMENTS and self.completes_choices:
            self._announced_capabilities.add("completions")
        self._forget_pages(kind)
        self.on_change(change)

    def _forget_pages(self, kind: str) -> None:
        for page in [each for each in self._pages if each[0] == kind]:
            del self._pages[page]

    def mirror(self, whole: "Registry", kind: str, items: Mapping[str, Any]) -> bool:
        """Replace all items of a kind by a set of another registry's items. Return whether anything has changed.

        Args:
            whole: The other registry, whose capabilities and cache hints apply.
            kind: The kind of items.
            items: Name -> item, in the order of the list.
        """
        own = self.items[kind]
        self.set_hints(whole._hints)
        self._announced_capabilities |= whole._announced_capabilities
        if list(own) == list(items) and all(own[name] is item for name, item in items.items()):
            return False
        self._places.update(((kind, name), (0, place)) for place, name in enumerate(items))
        self.exchange(kind, own, items)
        return True

    def forget_lists(self) -> None:
        """Forget all encoded lists."""
        self._pages.clear()

    def set_hints(self, hints: Mapping[str, tuple[int, bool]]) -> bool:
        """Limit how lists and `server/discover` can be cached. Return whether the limits have changed.

        Args:
            hints: Kind, or ``discover`` -> maximum cache time in milliseconds, and whether only the caller can
                cache it.
        """
        changed = hints != self._hints
        if changed:
            self._hints = hints
            self.forget_lists()
        return changed

    def cache_hint(self, kind: str, ttl_ms: int, *, private: bool) -> tuple[int, bool]:
        """Return the cache time of a result in milliseconds, and whether only the caller can cache it."""
        most, own = self._hints.get(kind, (ttl_ms, False))
        return min(ttl_ms, most), private or own

    def extend(self, extension: RegisteredExtension) -> None:
        """Add methods and a capability, for running and new clients.

        Raises:
            ValueError: A method of that name exists.
        """
        taken = {method for each in ALL for method in (*each.requests, *each.notifications, *each.asks)}
        taken.update(NOTIFICATIONS)
        for each in self.extensions:
            taken.update(each.methods, each.notifications)
        for method in (*extension.methods, *extension.notifications):
            if method in taken:
                raise ValueError(f"The method {method!r} already exists.")
        for member in extension.filters:
            if member in self.filters:
                raise ValueError(f"The filter {member!r} of subscriptions/listen already exists.")
        self.extensions.append(extension)
        self._collect()

    def retract(self, extension: RegisteredExtension) -> None:
        """Remove an extension and what it registered."""
        self.extensions.remove(extension)
        self._collect()

    def _collect(self) -> None:
        # Change the dictionaries in place, because transports hold references to them.
        for mine, theirs in (
            (self.header_params, "header_params"),
            (self.filters, "filters"),
            (self.notification_handlers, "notifications"),
        ):
            collected: dict[str, Any] = cast("dict[str, Any]", mine)
            collected.clear()
            for each in self.extensions:
                collected.update(getattr(each, theirs))

    def notification_handler(self, method: str) -> NotificationHandler | None:
        """Return the handler of a client's notification, or None if it has none."""
        handler = self.notification_handlers.get(method)
        if handler is None and self.relayed is not None and method not in _CONNECTION_NOTIFICATIONS:
            return self.relayed.notify
        return handler

    def extension_handler(self, method: str, revision: Revision) -> Handler | None:
        """Return an extension's handler for a method in a revision."""
        for extension in self.extensions:
            if method in extension.methods and revision.date in extension.revisions:
                return extension.methods[method]
        return next((match for find in self.method_finders if (match := find(method, revision))), None)

    def admits(self, method: str, revision: Revision) -> bool:
        """Return whether to admit a call of a method: because it's served here, or because the relayed server should
        reject it. A handshake would change the connection that all clients share there."""
        return (self.relayed is not None and method != "initialize") or self.serves(method, revision)

    def serves(self, method: str, revision: Revision) -> bool:
        """Return whether a client of a revision can call a method here."""
        capability = revision.requests.get(method)
        if capability is None:
            return self.extension_handler(method, revision) is not None
        if self.relayed is None:  # without another call, for each list
            if not capability or capability in self._announced_capabilities:
                return True
            # Clients of these revisions request every list, and some give up at an error.
            return revision.handshake and method.endswith("/list")
        # The relayed server decides which names exist.
        return not capability or self.announces(capability) or method in ("tools/call", "prompts/get", "resources/read")

    def announce(self, capability: str) -> None:
        """Announce a capability."""
        self._announced_capabilities.add(capability)

    def announces(self, capability: str) -> bool:
        """Return whether the server offers a capability. Once announced, one of its own is never withdrawn."""
        return capability in (self._announced_capabilities if self.relayed is None else self.relayed.capabilities)

    @property
    def capability_count(self) -> int:
        """The number of the server's own capabilities, which doesn't decrease before the server closes."""
        return len(self._announced_capabilities) + len(self.extensions)

    def requires(self, method: str, name: str) -> Mapping[str, Any]:
        """Return the client capabilities that a method and name require."""
        tool = self.tools.get(name) if method == "tools/call" else None
        # An item that only some callers see is checked when it's called.
        return tool.requires if tool is not None and tool.visible is None else {}

    def capabilities(self, revision: Revision, *, streams: bool = True) -> Json:
        """Return the server capabilities for a revision.

        Args:
            streams: Whether the client can receive unsolicited messages. If not, changes aren't announced.
        """
        if self.relayed is not None:
            offered = self.relayed.capabilities
        else:
            offered = {
                name: {"listChanged": True} for name in ("tools", "prompts", "resources") if self.announces(name)
            }
            if "resources" in offered and self.announces(SUBSCRIBE):
                offered["resources"]["subscribe"] = True
            if self.announces("completions"):
                offered["completions"] = {}
            offered["logging"] = {}
        if not streams:
            offered = {
                name: {each: value for each, value in settings.items() if each not in _ABOUT_CHANGES}
                for name, settings in offered.items()
            }
        offered = revisions.capabilities(offered, revision)
        for extension in self.extensions:
            if extension.capability and revision.date in extension.revisions:
                if not extension.settings and extension.capability in _MAPS:
                    continue
                offered[extension.capability] = {**offered.get(extension.capability, {}), **extension.settings}
        return offered

    @property
    def scopes(self) -> frozenset[str]:
        """Return all scopes that items need."""
        return frozenset[str]().union(*self._scopes.values())

    def page(
        self,
        kind: str,
        revision: Revision,
        cursor: str | None,
        audience: Audience = _EVERYTHING,
    ) -> bytes:
        """Return the members of one page of a list.

        Args:
            kind: The kind of items.
            revision: The client's revision.
            cursor: The end of the last page.
            audience: See `audience`.

        Raises:
            ProtocolError: INVALID_PARAMS, for an unknown cursor.
        """
        key = (kind, revision.date, cursor, audience)
        made = self._pages.get(key)
        if made is None:
            private = self.private or kind in self.conditional or bool(self._scopes.get(kind))
            items = self.visible(kind, audience)
            for select in self.list_selectors:
                items = dict(select(kind, items))
            names = list(items)
            start = 0 if cursor is None else _start(kind, names, cursor)
            end = start + self._page_size
            describe = revisions.tool if kind == "tools" else revisions.project_item
            member = "resourceTemplates" if kind == "templates" else kind
            result: Json = {member: [describe(items[name].describe(), revision) for name in names[start:end]]}
            if end < len(names):
                result["nextCursor"] = _cursor(f"{kind}:{names[end - 1]}")
            if revision.result_type:
                ttl_ms, private = self.cache_hint(kind, self._list_ttl_ms, private=private)
                result |= {"ttlMs": ttl_ms, "cacheScope": "private" if private else "public"}
            made = encode(result)[1:-1]
            if start % self._page_size == 0:  # cache only our own pages, not cursors that a caller made up
                self._pages.keep(key, made)
        return made

    def audience(
        self, kind: str, principal: Principal | None, granted: Callable[[], frozenset[str] | None]
    ) -> Audience:
        """Return a key for the items of a kind that a caller sees. Callers with equal keys share cached pages.

        Args:
            kind: The kind of items.
            principal: The caller.
            granted: Returns the caller's scopes, or None for full access.
        """
        needed, names = self._scopes.get(kind), self.conditional.get(kind, ())
        if not (needed or names):
            return _EVERYTHING
        items, scopes = self.items[kind], granted()
        hidden = frozenset(name for name in names if not items[name].visible(principal))
        return None if scopes is None or not needed else scopes & needed, hidden

    def visible(self, kind: str, audience: Audience) -> dict[str, Any]:
        """Return the items of a kind that a caller sees in lists (see `audience`)."""
        scopes, hidden = audience
        items = self.items[kind]
        return {
            name: item
            for name, item in items.items()
            if name not in hidden and (scopes is None or item.scopes <= scopes)
        }

    def find(self, kind: str, name: str, caller: Call | HttpRequest) -> Any:  # an item of the kind
        """Return the registered item that a caller names, or None if it's unknown or hidden from the caller.

        The caller may lack its scopes: see `check_scopes`.
        """
        item = self.items[kind].get(self.listed_name(kind, name))
        return item if item is not None and sees(caller, item) else None

    def listed_name(self, kind: str, name: str) -> str:
        """Return the name in the list of an item that a caller names, or an unknown name unchanged."""
        return name if name in self.items[kind] else self.long_names.get((kind, name), name)

    def find_elsewhere(self, kind: str, name: str) -> Any:  # an item of the kind
        """Return an item that isn't registered, if the relayed server may have it, or None."""
        return None if self.relayed is None else self.relayed.find(kind, name)

    def find_readable(
        self, uri: str, seen: Callable[[Resource | Template], bool] = lambda item: True
    ) -> tuple[Resource | Template | None, Mapping[str, Any]]:
        """Return the resource or template for a URI, if visible to the caller, and the values of the template's
        variables.

        The given spelling is tried first, then the normal form.
        """
        resource = self.resources.get(uri)
        if resource is not None and seen(resource):
            return resource, {}
        if len(uri) > MAX_URI:
            return None, {}
        resource = self.resources.get(self.find_equivalent("resources", uri))
        if resource is not None and seen(resource):
            return resource, {}
        normal = normalize_uri(uri)
        spellings = (uri,) if normal == uri else (uri, normal)
        for template in self.templates.values():
            for spelling in spellings:
                variables = template.template.match(spelling)
                if variables is not None and seen(found := template.at(spelling)):
                    return found, variables
        other = next((match for each in spellings for find in self.resource_finders if (match := find(each))), None)
        return (other if other is not None and seen(other) else None), {}

    def reports(self, caller: Any, uri: str) -> bool:
        """Return whether a caller may learn that a resource was updated. Updates to a hidden one would reveal it.

        Args:
            caller: A call, request, or connection.
            uri: The resource, which may not exist.
        """
        item, scopes = self.find_readable(uri)[0], granted_scopes(caller)
        if item is None:
            return self.whole is None or self.whole.find_readable(uri)[0] is None
        if not sees(caller, item):  # as for reading, another item may have it
            item = self.find_readable(uri, partial(sees, caller))[0]
        return item is not None and (scopes is None or item.scopes <= scopes)

    def check_completers(self) -> None:
        """Check that every completer has a target.

        Raises:
            ValueError: The prompt, template, or argument of a completer doesn't exist.
        """
        for reference, argument in self.completers:
            if not self.check_argument(reference, argument):
                raise ValueError(f"complete({reference!r}, {argument!r}): no such prompt or resource template.")

    def check_argument(self, reference: str, argument: str) -> bool:
        """Check that a prompt or template, enabled or not, has an argument. Return False if it isn't registered yet.

        Raises:
            ValueError: The argument doesn't exist. The text lists the existing ones.
        """
        items = ChainMap[str, Any](self.prompts, self.templates, self.disabled["prompts"], self.disabled["templates"])
        item: Prompt | Template | None = items.get(reference)
        if item is not None and argument not in item.parameters:
            known = ", ".join(map(repr, item.parameters)) or "none"
            raise ValueError(f"complete({reference!r}, {argument!r}): there is no such argument. Use one of {known}.")
        return item is not None
