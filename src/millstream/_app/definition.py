"""What a server is before it runs: its name and settings, what is registered, what is mounted on it.

A `Definition` is a node of the tree of mounted servers. Whatever is registered on one is registered, under a prefix,
wherever it is mounted, and whoever runs one of them hears of each change. Nothing here knows an event loop.
"""

from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import msgspec
from msgspec import Struct

from millstream._app.sign_in_methods import is_protected
from millstream._app.tree import Tree, prefixed
from millstream._config import Settings
from millstream._protocol.content import Icon
from millstream._protocol.errors import LocalError
from millstream._protocol.suggesting import Suggesting
from millstream._server.calls.changes import Change
from millstream._server.features.finding import check_argument
from millstream._server.features.hooks import hooks_of
from millstream._server.features.registry import Completer, Registry
from millstream._server.peer_messages import Removed, Switched

if TYPE_CHECKING:
    from millstream.auth._method import Given
    from millstream.hub._subscriber import Authorize

PARTS = ("hub", "rest", "web", "metrics")
"""What can run beside MCP."""
_NEEDS = {"web": ("hub", "rest", "metrics")}
"""The pages show what the others do."""
KINDS = ("tools", "resources", "templates", "prompts")


_ON_EACH_WORKER: ContextVar[bool] = ContextVar("on_each_worker", default=False)


@contextmanager
def on_each_worker() -> Generator[None]:
    """What happens inside, and in the tasks that begin there, happens on every worker alike."""
    token = _ON_EACH_WORKER.set(True)
    try:
        yield
    finally:
        _ON_EACH_WORKER.reset(token)


class Info(Struct, frozen=True, omit_defaults=True, rename="camel", metaclass=Suggesting):
    """What people read about a server: ``Server("shop", info=Info(title="The shop"))``."""

    title: str | None = None
    description: str | None = None
    website_url: str | None = None
    icons: list[Icon] | None = None


@dataclass(eq=False)
class Definition(Tree):
    """One server, before and while it runs."""

    # Configuration
    name: str
    version: str
    instructions: str
    info: Info
    store: str
    lifespan: Callable[[], AbstractAsyncContextManager[Any]] | None
    parts: frozenset[str]
    authorize_channel: "Authorize | None"
    settings: Settings
    auth: "tuple[Given, ...]" = ()
    middleware: Sequence[object] = ()

    def __post_init__(self) -> None:
        self.store = self.store or self.settings.store or "memory://"
        self.registry: Registry = Registry(page_size=self.settings.page_size, list_ttl_ms=self.settings.list_ttl_ms)
        self.registry.private = self.protected
        self.registry.changed = lambda kind: self.emit(Change(kind))
        self._stand_alone(hooks_of(self.middleware, self) if self.middleware else None)
        self.removed: dict[Removed, None] = {}
        self.switched: dict[tuple[str, str], Switched] = {}
        """What happened while it ran. A worker that begins later hears of it."""
        self._passed_over: set[tuple[int, str, str]] = set()
        """Items of mounted servers whose names were taken here: (server, kind, key)."""

    def configure(self, *, serve: str | Collection[str] = (), **changes: object) -> None:
        """Put what was said on the command line over what the program says; before the server runs.

        Args:
            serve: the parts to serve instead; empty leaves them.
            changes: settings by name.

        Raises:
            ValueError: an unknown part, or a setting that cannot be.
        """
        if serve:
            self.parts = chosen(serve)
        values: dict[str, Any] = {**msgspec.structs.asdict(self.settings), **changes}
        self.settings = Settings(**values)
        self.registry.private = self.protected

    @property
    def title(self) -> str:
        """What people know it by."""
        return self.info.title or self.name

    @property
    def protected(self) -> bool:
        """Whether callers have to sign in."""
        return is_protected(self.auth, self.settings)

    @property
    def limited(self) -> bool:
        """Whether there are limits on how often somebody may ask."""
        settings = self.settings
        given = (
            settings.limit_requests, settings.limit_calls, settings.limit_address, settings.limit_quota,
            settings.limit_concurrency,
        )  # fmt: skip
        return any(given) or any(tool.limit or tool.concurrency for tool in self.registry.tools.values())

    def describe(self) -> dict[str, Any]:
        """Name, version and information as the newest revision has them."""
        return {"name": self.name, "version": self.version or "0", **msgspec.to_builtins(self.info)}

    # Registration

    def add(self, kind: str, key: str, item: Any) -> None:
        """Register an item here and wherever this is mounted.

        Raises:
            ValueError: its name is taken in one of these places; it is registered in none then.
            LocalError: the server runs in several workers, and only this one would have it.
        """
        self._check_everywhere(key)
        self._check_free(kind, key)
        if kind == "tools":
            self._warn_of_name(item)
        self._put(kind, key, item, on=item.enabled)
        if not _ON_EACH_WORKER.get():
            for listener in list(self.listeners):
                listener.altered(kind, key, "added")

    def remove(self, kind: str, key: str) -> None:
        """Take an item away, here and wherever this is mounted, on every worker. Raises KeyError when there is none."""
        self.registry.remove(kind, key)
        for listener in list(self.listeners):
            listener.altered(kind, key, "removed")
        for parent, prefix in self._mounted_on:
            if (id(self), kind, key) in parent._passed_over:
                parent._passed_over.discard((id(self), kind, key))
            else:
                parent.remove(kind, prefixed(kind, key, prefix))

    def switch(self, kind: str, key: str, *, on: bool) -> None:
        """Offer an item or not, here and wherever this is mounted, on every worker.

        Raises:
            KeyError: there is none of that name.
        """
        registry = self.registry
        offered, disabled = getattr(registry, kind), registry.disabled[kind]
        if key not in offered and key not in disabled:
            raise KeyError(key)
        if on == (key in disabled):
            (registry.enable if on else registry.disable)(kind, key)
        for listener in list(self.listeners):
            listener.altered(kind, key, "on" if on else "off")
        for parent, prefix in self._mounted_on:
            parent.switch(kind, prefixed(kind, key, prefix), on=on)

    def kind_of(self, noun: str, key: str) -> str:
        """The kind of the registry that a tool, prompt or resource of a name belongs to.

        Raises:
            TypeError: no such noun.
        """
        if noun == "resource":
            registry = self.registry
            return "templates" if key in registry.templates or key in registry.disabled["templates"] else "resources"
        if noun not in ("tool", "prompt"):
            raise TypeError(f"{noun!r} isn't a kind: use 'tool', 'resource' or 'prompt'")
        return f"{noun}s"

    def tagged(self, tag: str) -> "list[tuple[str, str]]":
        """Kind and name of each item with a tag, offered or not."""
        return [
            (kind, key)
            for kind in KINDS
            for items in (getattr(self.registry, kind), self.registry.disabled[kind])
            for key, item in items.items()
            if tag in item.tags
        ]

    def complete(self, reference: str, argument: str, function: Completer) -> None:
        """Register what completes an argument of a prompt or template.

        Raises:
            ValueError: the prompt or template has no such argument.
        """
        check_argument(self.registry, reference, argument)
        self.registry.completers[(reference, argument)] = function
        self.registry.offer("completions")
        kind = "templates" if "{" in reference else "prompts"
        for parent, prefix in self._mounted_on:
            parent.complete(prefixed(kind, reference, prefix), argument, function)

    def _check_everywhere(self, what: str) -> None:
        if self._runs_in_several() and not _ON_EACH_WORKER.get():
            raise LocalError(
                f"{what!r} would be on one worker only: this server runs, and it shares its store with other workers. "
                "Register it before the server runs, or in its lifespan, which every worker enters (a task that begins "
                "there may register, too)"
            )

    def _check_free(self, kind: str, key: str) -> None:
        self.registry.check_free(kind, key)
        for parent, prefix in self._mounted_on:
            parent._check_free(kind, prefixed(kind, key, prefix))

    def _put(self, kind: str, key: str, item: Any, *, on: bool) -> None:
        if self.hooks is not None:
            item = item.within(self.hooks)
        self.registry.add(kind, key, item)
        if not on:
            self.registry.disable(kind, key)
        for parent, prefix in self._mounted_on:
            parent._take(kind, key, item, prefix, on=on)

    def _take(self, kind: str, key: str, item: Any, prefix: str, *, on: bool) -> None:
        name = prefixed(kind, key, prefix)
        self._put(kind, name, item.named(name) if prefix else item, on=on)

    # The tree

    def mount(self, other: Self, prefix: str, *, first_wins: bool = False) -> None:
        """Offer what another server has as part of this one, now and later.

        Args:
            other: the other server.
            prefix: of the names that its items have here.
            first_wins: pass over what has a name that is taken here, instead of refusing it.

        Raises:
            ValueError: the other is this server or has it mounted, has a name that is taken here, or has a lifespan
                while this server runs already.
            LocalError: the server runs in several workers, and only this one would have it.
        """
        self._check_mounted(other)
        items = [
            (kind, key, item, on)
            for kind in KINDS
            for on, named in ((True, getattr(other.registry, kind)), (False, other.registry.disabled[kind]))
            for key, item in named.items()
        ]
        if first_wins:
            taken = [each for each in items if self.registry.has(each[0], prefixed(each[0], each[1], prefix))]
            items = [each for each in items if each not in taken]
            self._passed_over.update((id(other), each[0], each[1]) for each in taken)
        for kind, key, *_ in items:
            self._check_free(kind, prefixed(kind, key, prefix))
        self._warn_of_names(prefix, (key for kind, key, *_ in items if kind == "tools"))
        self._join(other, prefix)
        for kind, key, item, on in items:
            self._take(kind, key, item, prefix, on=on)
        for (reference, argument), completer in other.registry.completers.items():
            kind = "templates" if "{" in reference else "prompts"
            self.complete(prefixed(kind, reference, prefix), argument, completer)

    def _check_mounted(self, other: Self) -> None:
        if self._is_part_of(other):
            raise ValueError(f"{other.name!r} cannot be mounted on {self.name!r}: it would be a part of itself")
        self._check_everywhere(other.name)
        if self._runs() and (other.has_lifespan() or other.has_wide_hooks()):
            what = "a lifespan" if other.has_lifespan() else "middleware for messages or lists"
            raise ValueError(
                f"{other.name!r} has {what}, and {self.name!r} runs already: mount it before, or in a lifespan"
            )

    def _join(self, other: Self, prefix: str) -> None:
        """Know each other, unless their paths don't go together."""
        self.mounted.append(other)
        other._mounted_on.append((self, prefix))
        if any(other.paths()):
            try:
                if self._runs():
                    raise ValueError(f"{other.name!r} has routes, and {self.name!r} runs already: mount it before")
                self._check_paths()
            except ValueError:
                self.mounted.remove(other)
                other._mounted_on.remove((self, prefix))
                raise

    # Changes

    def emit(self, change: Change) -> None:
        """Tell a change to the runtimes of this server, and a change of a resource to those it is mounted on: what is
        registered there changes by itself.
        """
        change.uri.encode()  # one that nobody can be told is the caller's error
        for listener in list(self.listeners):
            listener.emit(change)
        if change.uri:
            for parent, prefix in self._mounted_on:
                parent.emit(Change(change.kind, prefixed("resources", change.uri, prefix)))


def chosen(serve: str | Collection[str]) -> frozenset[str]:
    """The parts that a ``serve`` value names, with what they need.

    Raises:
        ValueError: an unknown part.
    """
    names = serve.replace(",", " ").split() if isinstance(serve, str) else list(serve)
    if "all" in names:
        return frozenset(PARTS)
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise ValueError(f"Unknown part {unknown[0]!r} in serve: use {', '.join(PARTS)} or all")
    return frozenset(names).union(*(_NEEDS.get(name, ()) for name in names))
