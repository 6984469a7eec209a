"""The tree of mounted servers, and what a server finds in the others: lifespans, middleware, paths, stand-ins."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol, Self

from millstream._config import Settings
from millstream._protocol.errors import LocalError
from millstream._server.calls.changes import Change
from millstream._server.features.hooks import Hooks

if TYPE_CHECKING:
    from millstream._app.added import Added


class Listener(Protocol):
    """Whoever runs a server."""

    @property
    def shared(self) -> bool:
        """Other workers run it, too."""
        ...

    def emit(self, change: Change) -> None:
        """Something changed."""

    def altered(self, kind: str, key: str, how: str) -> None:
        """The program of this worker has removed an item, ``added`` it, or switched it ``on`` or ``off``."""


class Tree:
    """A node of it. `Definition` is the only kind; here is what it knows of those above and below."""

    name: str
    settings: Settings
    lifespan: Callable[[], AbstractAsyncContextManager[Any]] | None
    hooks: Hooks | None
    """The middleware, if there is any."""
    mounted: list[Self]
    _mounted_on: list[tuple[Self, str]]
    added: "list[Added]"
    """Paths of the program's own."""
    overrides: dict[Callable[..., Any], Callable[..., Any]]
    """Dependency -> what stands in for it, in tests."""
    listeners: set[Listener]
    """Told of every change: one for each runtime that is open."""

    def _stand_alone(self, hooks: Hooks | None) -> None:
        """Begin without anything above, below or beside."""
        self.hooks = hooks
        self.mounted, self._mounted_on = [], []
        self.added, self.overrides = [], {}
        self.listeners = set()

    def add_path(self, added: "Added") -> None:
        """Serve a path of the program's own, here and wherever this is mounted.

        Raises:
            ValueError: another one has the path.
            LocalError: the server runs.
        """
        if self._runs():
            raise LocalError(f"{added.path!r} comes too late: add routes before the server runs")
        self.added.append(added)
        try:
            self._check_paths()
        except ValueError:
            self.added.remove(added)
            raise

    def paths(self, before: str = "") -> "Iterator[tuple[str, Added]]":
        """The paths of the program's own, those of mounted servers included, each with what stands before it."""
        yield from (("" if each.fixed else before, each) for each in self.added)
        for part in dict.fromkeys(self.mounted):
            for parent, prefix in part._mounted_on:
                if parent is self:
                    yield from part.paths(f"{before}/{prefix}" if prefix else before)

    def _check_paths(self) -> None:
        """Raises ValueError when two paths of the program's own are the same, here or where this is mounted."""
        from millstream._app.added import AddedPaths  # noqa: PLC0415  only for programs with pages of their own

        AddedPaths(self.paths(), served=self.settings.mcp_paths, show_errors=bool)
        for parent, _ in self._mounted_on:
            parent._check_paths()

    def _is_part_of(self, other: "Tree") -> bool:
        return self is other or any(parent._is_part_of(other) for parent, _ in self._mounted_on)

    def _runs(self) -> bool:
        return bool(self.listeners) or any(parent._runs() for parent, _ in self._mounted_on)

    def has_lifespan(self) -> bool:
        """Whether this server, or one that is mounted on it, has a lifespan."""
        return self.lifespan is not None or any(part.has_lifespan() for part in self.mounted)

    def has_wide_hooks(self) -> bool:
        """Whether this server, or one that is mounted on it, has middleware around messages or lists."""
        return (self.hooks is not None and self.hooks.wide) or any(part.has_wide_hooks() for part in self.mounted)

    def nearest(self, values: Mapping[Any, Any]) -> Any:
        """The value of this server, or of the nearest one with a value that it is mounted on."""
        around: list[Tree] = [self]
        for each in around:
            if each in values:
                return values[each]
            around += [parent for parent, _ in each._mounted_on]
        return None

    def overriding(self) -> Mapping[Callable[..., Any], Callable[..., Any]]:
        """What stands in for dependencies here: as this server says, and those that it is mounted on."""
        found = self.overrides
        for parent, _ in self._mounted_on:
            found = {**found, **parent.overriding()}
        return found
