"""What a server is before it runs: its name and settings, what is registered, what is mounted on it.

A `Definition` is a node of the tree of mounted servers. Whatever is registered on one is registered, under a prefix,
wherever it is mounted, and what changes is told to whoever runs one of them. Nothing here knows an event loop.
"""

from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from millstream.app.given import check_completer
from millstream.app.info import Info
from millstream.app.sign_in_methods import is_protected
from millstream.config import Settings
from millstream.protocol.errors import LocalError
from millstream.server.calls.changes import Change
from millstream.server.features.registry import Registry

if TYPE_CHECKING:
    from millstream.auth.method import Given
    from millstream.hub.subscriber import Authorize

PARTS = ("hub", "rest", "web", "metrics")
"""What can run beside MCP."""
_NEEDS = {"web": ("hub", "rest", "metrics")}
"""The pages show what the others do."""
_KINDS = ("tools", "resources", "templates", "prompts")


_ON_EACH_WORKER: ContextVar[bool] = ContextVar("on_each_worker", default=False)


class Listener(Protocol):
    """Whoever runs a server."""

    @property
    def shared(self) -> bool:
        """Other workers run it, too."""
        ...

    def emit(self, change: Change) -> None:
        """Something changed."""

    def removed(self, kind: str, key: str) -> None:
        """An item was removed by the program of this worker."""


@contextmanager
def on_each_worker() -> Generator[None]:
    """What happens inside, and in the tasks that begin there, happens on every worker alike."""
    token = _ON_EACH_WORKER.set(True)
    try:
        yield
    finally:
        _ON_EACH_WORKER.reset(token)


@dataclass(eq=False)
class Definition:
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

    def __post_init__(self) -> None:
        self.store = self.store or self.settings.store or "memory://"
        self.registry: Registry = Registry(page_size=self.settings.page_size, list_ttl_ms=self.settings.list_ttl_ms)
        self.registry.private = self.protected
        self.registry.changed = lambda kind: self.emit(Change(kind))
        self.mounted: list[Definition] = []
        self._mounted_on: list[tuple[Definition, str]] = []
        self.listeners: set[Listener] = set()
        """Told of every change: one for each runtime that is open."""

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
        return bool(settings.limit_requests or settings.limit_calls or settings.limit_address) or any(
            tool.limit for tool in self.registry.tools.values()
        )

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
        self._put(kind, key, item)

    def remove(self, kind: str, key: str) -> None:
        """Take an item away, here and wherever this is mounted, on every worker. Raises KeyError when there is none."""
        self.registry.remove(kind, key)
        for listener in list(self.listeners):
            listener.removed(kind, key)
        for parent, prefix in self._mounted_on:
            parent.remove(kind, prefixed(kind, key, prefix))

    def complete(self, reference: str, argument: str, function: Callable[..., Any]) -> None:
        """Register what completes an argument of a prompt or template.

        Raises:
            ValueError: the prompt or template has no such argument.
        """
        check_completer(f"complete({reference!r}, {argument!r})", function)
        self.registry.check_argument(reference, argument)
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

    def _runs_in_several(self) -> bool:
        return any(each.shared for each in self.listeners) or any(
            parent._runs_in_several() for parent, _ in self._mounted_on
        )

    def _check_free(self, kind: str, key: str) -> None:
        self.registry.check_free(kind, key)
        for parent, prefix in self._mounted_on:
            parent._check_free(kind, prefixed(kind, key, prefix))

    def _put(self, kind: str, key: str, item: Any) -> None:
        self.registry.add(kind, key, item)
        for parent, prefix in self._mounted_on:
            parent._take(kind, key, item, prefix)

    def _take(self, kind: str, key: str, item: Any, prefix: str) -> None:
        name = prefixed(kind, key, prefix)
        self._put(kind, name, item.named(name) if prefix else item)

    # The tree

    def mount(self, other: "Definition", prefix: str) -> None:
        """Offer what another server has as part of this one, now and later.

        Raises:
            ValueError: the other is this server or has it mounted, has a name that is taken here, or has a lifespan
                while this server runs already.
            LocalError: the server runs in several workers, and only this one would have it.
        """
        if self._is_part_of(other):
            raise ValueError(f"{other.name!r} cannot be mounted on {self.name!r}: it would be a part of itself")
        self._check_everywhere(other.name)
        if self._runs() and other.has_lifespan():
            raise ValueError(
                f"{other.name!r} has a lifespan, and {self.name!r} runs already: mount it before, or in a lifespan"
            )
        items = [(kind, key, item) for kind in _KINDS for key, item in getattr(other.registry, kind).items()]
        for kind, key, _ in items:
            self._check_free(kind, prefixed(kind, key, prefix))
        self.mounted.append(other)
        other._mounted_on.append((self, prefix))
        for kind, key, item in items:
            self._take(kind, key, item, prefix)
        for (reference, argument), completer in other.registry.completers.items():
            kind = "templates" if "{" in reference else "prompts"
            self.complete(prefixed(kind, reference, prefix), argument, completer)

    def _is_part_of(self, other: "Definition") -> bool:
        return self is other or any(parent._is_part_of(other) for parent, _ in self._mounted_on)

    def _runs(self) -> bool:
        return bool(self.listeners) or any(parent._runs() for parent, _ in self._mounted_on)

    def has_lifespan(self) -> bool:
        """Whether this server, or one that is mounted on it, has a lifespan."""
        return self.lifespan is not None or any(part.has_lifespan() for part in self.mounted)

    def nearest(self, values: "Mapping[Definition, Any]") -> Any:
        """The value of this server, or of the nearest one with a value that it is mounted on."""
        around = [self]
        for each in around:
            if each in values:
                return values[each]
            around += [parent for parent, _ in each._mounted_on]
        return None

    # Changes

    def emit(self, change: Change) -> None:
        """Tell a change to the runtimes of this server, and a change of a resource to those it is mounted on: what is
        registered there changes by itself.
        """
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


def prefixed(kind: str, key: str, prefix: str) -> str:
    """The name of a mounted item: ``prefix_name`` for tools and prompts, ``scheme://prefix/rest`` for URIs."""
    if not prefix:
        return key
    if kind in {"tools", "prompts"}:
        return f"{prefix}_{key}"
    scheme, separator, rest = key.partition("://")
    return f"{scheme}://{prefix}/{rest}" if separator else f"{prefix}+{key}"
