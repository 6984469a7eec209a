"""The compatibility layer under the import names of the official SDK 1.x, if no SDK is installed."""

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from millstream._override import override

_PACKAGES = ("mcp", "mcp.server")
_FASTMCP = ("", ".exceptions", ".prompts", ".prompts.base", ".resources", ".server", ".tools", ".utilities",
            ".utilities.types")  # fmt: skip
_SOURCES = dict.fromkeys((f"mcp.server.fastmcp{each}" for each in _FASTMCP), "millstream.compat.fastmcp") | {
    "mcp.types": "millstream.compat.types",
    "mcp.server.auth.settings": "millstream.compat.fastmcp",
    "mcp.server.auth.provider": "millstream.compat.fastmcp",
    "mcp.shared.auth": "millstream.compat.fastmcp",
}
"""Module of the SDK -> module with the same public names."""
_NAMES = {*_PACKAGES, *_SOURCES, "mcp.server.auth", "mcp.shared"}


class _Finder(MetaPathFinder, Loader):
    """Finds the SDK's modules if no other finder does."""

    def __init__(self) -> None:
        self._told = False

    @override
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname in _NAMES else None

    @override
    def exec_module(self, module: ModuleType) -> None:
        source = _SOURCES.get(module.__name__)
        if source is None:
            return
        found = import_module(source)
        names = getattr(found, "__all__", None) or [name for name in vars(found) if not name.startswith("_")]
        vars(module).update({name: getattr(found, name) for name in names})
        if not self._told:
            self._told = True
            print(
                f"{module.__name__} isn't installed, so the program runs on Millstream's compatibility layer.",
                file=sys.stderr,
            )


@contextmanager
def compatible_imports() -> Generator[None]:
    """Provide ``mcp.server.fastmcp`` while the block imports a program, if no package named ``mcp`` is installed."""
    finder = _Finder()
    sys.meta_path.append(finder)  # last, so that an installed package takes precedence
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
