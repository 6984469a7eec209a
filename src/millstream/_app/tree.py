"""The tree of mounted servers, and what a server finds in the others: lifespans, middleware, paths, stand-ins."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol, Self

from millstream._config import Settings
from millstream._protocol.errors import LocalError
from millstream._server.calls.changes import Change
from millstream._server.features.hooks import Hooks
from millstream._server.features.tools import NAMES_THAT_WORK, works_everywhere
from millstream._server.functions.callables import notice

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


def prefixed(kind: str, key: str, prefix: str) -> str:
    """The name of a mounted item: ``prefix_name`` for tools and prompts, ``scheme://prefix/rest`` for URIs."""
    if not prefix:
        return key
    if kind in {"tools", "prompts"}:
        return f"{prefix}_{key}"
    scheme, separator, rest = key.partition("://")
    return f"{scheme}://{prefix}/{rest}" if separator else f"{prefix}+{key}"


def _warning_of(names: Sequence[str], prefix: str = "") -> str:
    """What to warn of; empty where there is nothing.

    Args:
        names: of tools that are too long only where they are mounted.
        prefix: of a new mount. One that no name may have is all there is to say.
    """
    if prefix and not works_everywhere(prefix):
        return f"The prefix {prefix!r} makes tool names that will not work with every client: {NAMES_THAT_WORK}"
    if not names:
        return ""
    others = f", and {len(names) - 1:,} more," if len(names) > 1 else ""
    return (
        f"Where its server is mounted, the tool name {names[0]!r}{others} will not work with every client: "
        f"{NAMES_THAT_WORK}, the prefix included"
    )


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

    def _warn_of_names(self, prefix: str, tools: Iterator[str]) -> None:
        """Say so where tools of a server that is about to be mounted here get names that some clients can't call."""
        if text := _warning_of([name for tool in tools for name in self.lengthened_by(prefix, tool)], prefix):
            notice(text)

    def _warn_of_name(self, item: Any) -> None:
        """The same for a tool of this server."""
        if self._mounted_on and (text := _warning_of([*self.lengthened(item.name)])):
            notice(text, item.code)

    def lengthened(self, tool: str) -> Iterator[str]:
        """The names that are too long for some clients only where a tool of this server is mounted."""
        for parent, prefix in self._mounted_on:
            yield from parent.lengthened_by(prefix, tool)

    def lengthened_by(self, prefix: str, tool: str) -> Iterator[str]:
        """As `lengthened`, for a tool of a server that is mounted here."""
        name = prefixed("tools", tool, prefix)
        if works_everywhere(name):
            yield from self.lengthened(name)
        elif works_everywhere(tool) and works_everywhere(prefix):
            yield name  # of another tool or prefix it was said already

    def _runs(self) -> bool:
        return bool(self.listeners) or any(parent._runs() for parent, _ in self._mounted_on)

    def _runs_in_several(self) -> bool:
        return any(each.shared for each in self.listeners) or any(
            parent._runs_in_several() for parent, _ in self._mounted_on
        )

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
