"""What a server offers, in order of registration, and its lists as prepared bytes.

A change clears the prepared lists and tells `changed`, at run time too. Lists are encoded once for each revision and
page; a cursor names the last item of a page, so any worker can continue any listing.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, cast

from msgspec import Struct

from millstream._protocol import projection
from millstream._protocol.messages import CompleteRequestParams, Completion
from millstream._protocol.notifications import NOTIFICATIONS
from millstream._protocol.principal import Principal
from millstream._protocol.revisions import ALL, Revision
from millstream._server.calls.call import Call
from millstream._server.features.completers import CompleterFunction
from millstream._server.features.pages import page_of
from millstream._server.features.prepared_call import PreparedCall
from millstream._server.features.prompts import Prompt
from millstream._server.features.resources import Resource, Template
from millstream._server.features.tools import Tool

Completer = Callable[..., Any] | CompleterFunction
CompleteAny = Callable[[Call, CompleteRequestParams], Awaitable[Completion]]


ListenFilter = Callable[[Any, Call, Callable[[bytes], bool]], Awaitable[tuple[Any, Callable[[], None]]]]
"""``filter(wanted, call, push)`` returns what the server agrees to, and what ends it. ``push(message)`` sends."""


class RegisteredExtension(Struct, frozen=True):
    """Methods and a capability that the revisions themselves don't have, added by `Registry.extend`."""

    capability: str
    """The member of the server's capabilities; several extensions may share one (``extensions``, ``experimental``)."""
    announced: Mapping[str, Any]
    """What stands there."""
    methods: Mapping[str, Callable[[Call], Awaitable[bytes]]]
    """Handlers, as those of the revisions' own methods: each gives the members of a result."""
    revisions: frozenset[str]
    """Dates of the revisions that have it."""
    notifications: Mapping[str, Callable[[Call], Awaitable[None]]] = {}
    """Handlers of notifications that clients send."""
    named: Mapping[str, str] = {}
    """Method -> the member of its params that `Mcp-Name` repeats."""
    filters: "Mapping[str, ListenFilter]" = {}
    """Member of the filter of `subscriptions/listen` -> what serves it."""


_KINDS = {"tools": "tools", "resources": "resources", "templates": "resources", "prompts": "prompts"}
"""Kind -> kind of the change notification."""
_NONE = frozenset[str]()
_MAPS = frozenset({"extensions", "experimental"})
"""Capabilities that are maps of others."""
_NOUNS = {"tools": "tool", "resources": "resource", "templates": "resource", "prompts": "prompt"}
_MAX_PAGES = 1024
"""Prepared pages, of all callers. Where they are more, they are made again."""
_COMPLETED = frozenset(("prompts", "templates"))
"""The kinds whose arguments clients complete."""


class Registry:
    """Tools, resources, templates, prompts and completers of one server."""

    def __init__(self, *, page_size: int, list_ttl_ms: int) -> None:
        # Configuration
        self._page_size = page_size
        self._list_ttl_ms = list_ttl_ms
        self.private = False
        """Callers sign in: nothing may be kept for others than the one who asked."""
        # What is registered
        self.tools: dict[str, Tool] = {}
        self.resources: dict[str, Resource] = {}
        self.templates: dict[str, Template] = {}
        self.prompts: dict[str, Prompt] = {}
        self.completers: dict[tuple[str, str], Completer] = {}
        """(prompt name or URI template, argument name) -> function."""
        self.disabled: dict[str, dict[str, Any]] = {kind: {} for kind in _KINDS}
        """Kind -> what is registered and not offered now."""
        self._places: dict[tuple[str, str], int] = {}
        """(kind, name) -> its place in the order of registration."""
        # Prepared
        self.fast: dict[bytes, PreparedCall] = {}
        """Value of `Mcp-Name` -> one typed pass over a whole 2026-07-28 call of that tool."""
        self._pages: dict[tuple[str, str, str, frozenset[str] | None, frozenset[str]], bytes] = {}
        """(kind, revision, cursor, the scopes of the caller that make a difference, what is hidden from the caller) ->
        members of the result."""
        self._scopes: dict[str, frozenset[str]] = {}
        """Kind -> all scopes that items of it need."""
        self.scoped: bool = False
        """Something here needs a scope: else nobody has to be asked for theirs."""
        self.conditional: dict[str, tuple[str, ...]] = {}
        """Kind -> the names of those that not everybody sees."""
        self.completes_choices: bool = True
        """Prompts and templates alone are a reason to offer completion: their parameters may have choices."""
        self.completes: CompleteAny | None = None
        """Completes every argument, of what is registered here or not, instead of `completers`."""
        self.unlisted: Callable[[str], Resource | None] | None = None
        """Finds the resource of a URI that no item has."""
        self.hints: dict[str, tuple[int, bool]] = {}
        """Kind -> the most milliseconds for which its lists may be kept, and whether only by the caller."""
        self._offered: set[str] = {"", "logging"}
        self.extensions: list[RegisteredExtension] = []
        self.find_method: Callable[[str, Revision], Callable[[Call], Awaitable[bytes]] | None] | None = None
        """Finds the handler of a method that no extension here has."""
        self.named: dict[str, str] = {}
        """Method of an extension -> the member of its params that `Mcp-Name` repeats."""
        self.filters: dict[str, ListenFilter] = {}
        """Member of the filter of `subscriptions/listen` -> what serves it, of extensions."""
        self.heard: dict[str, Callable[[Call], Awaitable[None]]] = {}
        """Notification of an extension -> its handler."""
        self.changed: Callable[[str], None] = lambda kind: None
        self.listed: Callable[[str, Mapping[str, Any]], Mapping[str, Any]] | None = None
        """``listed(kind, items)`` returns those items that lists have, where they don't have all."""

    def add(self, kind: str, key: str, item: Any) -> None:
        """Register an item of a kind (tools, resources, templates, prompts).

        Raises:
            ValueError: there is one of that name already.
        """
        self.check_free(kind, key)
        self._places[kind, key] = len(self._places)
        self._offer(kind, key, item)

    def _offer(self, kind: str, key: str, item: Any) -> None:
        getattr(self, kind)[key] = item
        if kind == "tools" and (fast := PreparedCall.of(item)) is not None:
            self.fast[key.encode()] = fast
        if item.scopes:
            self._scopes[kind] = self._scopes.get(kind, frozenset()) | item.scopes
            self.scoped = True
        if item.visible is not None:
            self.conditional = {**self.conditional, kind: (*self.conditional.get(kind, ()), key)}
        self._touch(kind)

    def has(self, kind: str, key: str) -> bool:
        """Whether a name is taken, by something that is offered or not."""
        return key in getattr(self, kind) or key in self.disabled[kind]

    def check_free(self, kind: str, key: str) -> None:
        """Make sure that a name can be given.

        Raises:
            ValueError: it is taken.
        """
        if self.has(kind, key):
            noun = _NOUNS[kind]
            raise ValueError(
                f"There is a {noun} {key!r} already. Give this one another name, or call "
                f"remove_{'resource' if kind == 'templates' else noun}({key!r}) first"
            )

    def remove(self, kind: str, key: str) -> None:
        """Take an item away, and what completes its arguments.

        Raises:
            KeyError: there is none of that name.
        """
        if key not in self.disabled[kind]:
            if key not in getattr(self, kind):
                raise KeyError(f"There is no {_NOUNS[kind]} {key!r}")
            self.disable(kind, key)
        del self.disabled[kind][key]
        if kind in _COMPLETED:
            self.completers = {at: completer for at, completer in self.completers.items() if at[0] != key}

    def disable(self, kind: str, key: str) -> None:
        """Offer an item no more, until it is enabled. Raises KeyError when it is not offered."""
        self.disabled[kind][key] = getattr(self, kind).pop(key)
        if kind == "tools":
            self.fast.pop(key.encode(), None)
        rest: dict[str, Any] = getattr(self, kind)
        self._scopes[kind] = frozenset().union(*(item.scopes for item in rest.values()))
        self.scoped = any(self._scopes.values())
        conditional = tuple(name for name, item in rest.items() if item.visible is not None)
        self.conditional = {**self.conditional, kind: conditional} if conditional else _without(self.conditional, kind)
        self._touch(kind)

    def enable(self, kind: str, key: str) -> None:
        """Offer an item again, in its place. Raises KeyError when it is not disabled."""
        self._offer(kind, key, self.disabled[kind].pop(key))
        items: dict[str, Any] = getattr(self, kind)
        ordered = sorted(items.items(), key=lambda each: self._places[kind, each[0]])
        items.clear()
        items.update(ordered)

    def exchange(self, kind: str, removed: Collection[str], added: Mapping[str, Any]) -> None:
        """Replace many items of a kind in one step, without calling `changed`.

        An item of `added` whose name is in `removed` keeps its place in the order of registration.

        Args:
            kind: of the items.
            removed: names of items that are registered, offered or not.
            added: name -> item. Other items don't have these names.
        """
        items, disabled = getattr(self, kind), self.disabled[kind]
        replaced = {name: item for name, item in added.items() if name in removed and name in items}
        for name in removed:
            if kind == "tools":
                self.fast.pop(name.encode(), None)
            if name not in replaced:
                items.pop(name, None)
                disabled.pop(name, None)
        if kind in _COMPLETED and removed:
            self.completers = {at: completer for at, completer in self.completers.items() if at[0] not in removed}
        for name, item in added.items():
            self._places.setdefault((kind, name), len(self._places))
            items[name] = item
            if kind == "tools" and (fast := PreparedCall.of(item)) is not None:
                self.fast[name.encode()] = fast
        self._scopes[kind] = frozenset[str]().union(*(item.scopes for item in items.values()))
        self.scoped = any(self._scopes.values())
        conditional = tuple(name for name, item in items.items() if item.visible is not None)
        self.conditional = {**self.conditional, kind: conditional} if conditional else _without(self.conditional, kind)
        self._forget_pages(kind)

    def _touch(self, kind: str) -> None:
        self.changed(self._forget_pages(kind))

    def _forget_pages(self, kind: str) -> str:
        """Make the lists of a kind again. Returns the kind of the change notification."""
        change = _KINDS[kind]
        self._offered.add(change)
        if kind in _COMPLETED and self.completes_choices:
            self._offered.add("completions")
        self._pages = {page: made for page, made in self._pages.items() if page[0] != kind}
        return change

    def extend(self, extension: RegisteredExtension) -> None:
        """Add methods and a capability, now and for clients that ask from now on.

        Raises:
            ValueError: there is a method of that name already.
        """
        taken = {method for each in ALL for method in (*each.requests, *each.notifications, *each.asks)}
        taken.update(NOTIFICATIONS)
        for each in self.extensions:
            taken.update(each.methods, each.notifications)
        for method in (*extension.methods, *extension.notifications):
            if method in taken:
                raise ValueError(f"There is a method {method!r} already")
        for member in extension.filters:
            if member in self.filters:
                raise ValueError(f"There is a filter {member!r} of subscriptions/listen already")
        self.extensions.append(extension)
        self._collect()

    def retract(self, extension: RegisteredExtension) -> None:
        """Take away what an extension added."""
        self.extensions.remove(extension)
        self._collect()

    def _collect(self) -> None:
        # In place: transports hold the dictionaries.
        for mine, theirs in (
            (self.named, "named"),
            (self.filters, "filters"),
            (self.heard, "notifications"),
        ):
            collected: dict[str, Any] = cast("dict[str, Any]", mine)
            collected.clear()
            for each in self.extensions:
                collected.update(getattr(each, theirs))

    def extension_handler(self, method: str, revision: Revision) -> Callable[[Call], Awaitable[bytes]] | None:
        """The handler that an extension has for a method in a revision."""
        for extension in self.extensions:
            if method in extension.methods and revision.date in extension.revisions:
                return extension.methods[method]
        return None if self.find_method is None else self.find_method(method, revision)

    def serves(self, method: str, revision: Revision) -> bool:
        """Whether a client of a revision may call a method."""
        capability = revision.requests.get(method)
        if capability is None:
            return self.extension_handler(method, revision) is not None
        return capability in self._offered

    def offer(self, capability: str) -> None:
        """Announce a capability from now on."""
        self._offered.add(capability)

    def offers(self, capability: str) -> bool:
        """Whether the server offers a capability: one that it had something for at any time."""
        return capability in self._offered

    @property
    def capability_count(self) -> int:
        """How many capabilities there are; they only become more."""
        return len(self._offered) + len(self.extensions)

    def requires(self, method: str, name: str) -> Mapping[str, Any]:
        """The client capabilities that a method of a name cannot do without."""
        tool = self.tools.get(name) if method == "tools/call" else None
        # Whether a caller sees one that not everybody sees is known when it is called.
        return tool.requires if tool is not None and tool.visible is None else {}

    def capabilities(self, revision: Revision, *, streams: bool = True) -> dict[str, Any]:
        """Server capabilities as a revision announces them.

        Args:
            revision: the revision.
            streams: the client can hear what it did not ask for; without, changes are not promised.
        """
        offered: dict[str, Any] = {}
        for name in ("tools", "prompts", "resources"):
            if self.offers(name):
                offered[name] = {"listChanged": True} if streams else {}
        if "resources" in offered and streams:
            offered["resources"]["subscribe"] = True
        if self.offers("completions"):
            offered["completions"] = {}
        offered["logging"] = {}
        offered = projection.capabilities(offered, revision)
        for extension in self.extensions:
            if extension.capability and revision.date in extension.revisions:
                if not extension.announced and extension.capability in _MAPS:
                    continue
                offered[extension.capability] = {**offered.get(extension.capability, {}), **extension.announced}
        return offered

    @property
    def scopes(self) -> frozenset[str]:
        """All scopes that something here needs."""
        return frozenset[str]().union(*self._scopes.values())

    def page(
        self,
        kind: str,
        revision: Revision,
        cursor: str | None,
        granted: frozenset[str] | None = None,
        hidden: frozenset[str] = _NONE,
    ) -> bytes:
        """The members of one page of a list.

        Args:
            kind: of the items.
            revision: whose shapes they have.
            cursor: where the last page ended.
            granted: the scopes of the caller, who sees what they cover; None for one who sees everything.
            hidden: the names of those that the caller doesn't see.

        Raises:
            ProtocolError: INVALID_PARAMS for a cursor that is not ours.
        """
        seen = None if granted is None else self.distinct(kind, granted)
        key = (kind, revision.date, cursor if cursor is not None else "", seen, hidden)
        made = self._pages.get(key)
        if made is None or cursor == "":
            private = self.private or kind in self.conditional or bool(self._scopes.get(kind))
            items = self.visible(kind, seen, hidden)
            if self.listed is not None:
                items = dict(self.listed(kind, items))
            ttl_ms = self._list_ttl_ms
            if kind in self.hints:
                most, own = self.hints[kind]
                ttl_ms, private = min(ttl_ms, most), private or own
            made = page_of(kind, items, revision, cursor, size=self._page_size, ttl_ms=ttl_ms, private=private)
            if cursor != "":
                if len(self._pages) >= _MAX_PAGES:
                    self._pages.clear()
                self._pages[key] = made
        return made

    def distinct(self, kind: str, granted: frozenset[str] | None) -> frozenset[str] | None:
        """Those scopes that tell what one caller sees of a kind from what another one sees."""
        needed = self._scopes.get(kind)
        return None if granted is None or not needed else granted & needed

    def visible(self, kind: str, granted: frozenset[str] | None, hidden: frozenset[str] = _NONE) -> dict[str, Any]:
        """The items of a kind that these scopes cover, without those that are hidden from the caller."""
        items: dict[str, Any] = getattr(self, kind)
        if granted is not None and self._scopes.get(kind):
            items = {name: item for name, item in items.items() if item.scopes <= granted}
        return {name: item for name, item in items.items() if name not in hidden} if hidden else items

    def hidden(self, kind: str, principal: Principal | None) -> frozenset[str]:
        """The names of those of a kind that a caller doesn't see: nothing has to be asked where everybody sees all."""
        items: dict[str, Any] = getattr(self, kind)
        return frozenset(name for name in self.conditional[kind] if not items[name].visible(principal))

    def complete_from(self, reference: str, argument: str) -> Completer | None:
        """The completer of a prompt or template argument, if there is one."""
        return self.completers.get((reference, argument))


def _without(conditional: dict[str, tuple[str, ...]], kind: str) -> dict[str, tuple[str, ...]]:
    return {each: names for each, names in conditional.items() if each != kind} if kind in conditional else conditional
