"""Imports of programs for other libraries: the compatibility layer, and calls of `run` at the top level.

Programs for the official SDK 1.x run on the compatibility layer, under the SDK's import names, if no SDK is installed,
one of a version that can't run them, or one that can't be imported, like 1.12 beside pydantic 2.14.
"""

import sys
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from traceback import walk_tb
from types import ModuleType
from typing import Any

from millstream._app.server_process.errors import RunCalled
from millstream._override import override
from millstream.gateway._programs import UnsupportedVersion, library_of

_PACKAGES = ("mcp", "mcp.server")
_FASTMCP = (
    "",
    ".exceptions",
    ".prompts",
    ".prompts.base",
    ".resources",
    ".server",
    ".tools",
    ".utilities",
    ".utilities.types",
)
_SOURCES = dict.fromkeys((f"mcp.server.fastmcp{each}" for each in _FASTMCP), "millstream.compat.fastmcp") | {
    "mcp.types": "millstream.compat.types",
    **dict.fromkeys(
        (
            "mcp.server.auth.middleware.auth_context",
            "mcp.server.auth.provider",
            "mcp.server.auth.settings",
            "mcp.server.elicitation",
            "mcp.server.session",
            "mcp.shared.auth",
            "mcp.shared.context",
            "mcp.shared.exceptions",
        ),
        "millstream.compat.fastmcp",
    ),
}
"""Module of the SDK -> module with the same public names."""
_NAMES = {*_PACKAGES, *_SOURCES, "mcp.server.auth", "mcp.server.auth.middleware", "mcp.shared"}
_LIBRARIES = ("mcp", "fastmcp")


class CompatibleImports(MetaPathFinder, Loader):
    """Finds the SDK's modules if no other finder does, or instead of them."""

    def __init__(self) -> None:
        self._before = set(sys.modules)
        self._replaced: Collection[str] = ()
        self._told = False

    def replace_sdk(self, error: BaseException | None) -> bool:
        """Find the SDK's modules before it does, if it can't run the program. Return whether to import that again.

        Args:
            error: What the import of the program raised.
        """
        missing = isinstance(error, ImportError) and error.name in _SOURCES
        broken = isinstance(error, ImportError) and not missing and _is_in_sdk(error)
        if self._replaced or not (missing or broken or isinstance(error, UnsupportedVersion)):
            return False
        self._replaced = _NAMES if broken else _SOURCES
        sys.meta_path.remove(self)
        sys.meta_path.insert(0, self)
        for name in [each for each in sys.modules if each in self._replaced or each not in self._before]:
            if name in self._replaced or not _is_installed(sys.modules[name]):
                del sys.modules[name]
        return True

    @override
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        found = fullname in (self._replaced or _NAMES)
        return ModuleSpec(fullname, self, is_package=True) if found else None

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
            reason = (
                f"mcp {metadata.version('mcp')} can't run this program, so it"
                if self._replaced
                else f"{module.__name__} isn't installed, so the program"
            )
            print(f"{reason} runs on Millstream's compatibility layer.", file=sys.stderr)


def _is_in_sdk(error: BaseException) -> bool:
    """Return whether the SDK's own code raised an error, or a package that it imports."""
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__", "").partition(".")[0] == "mcp" for frame in frames)


def _is_installed(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None) or "site-packages"
    return "site-packages" in file or file.startswith(sys.base_prefix)


class _RunWatcher(MetaPathFinder):
    """Ends the import of a program where it would serve by itself, because the command serves it."""

    def __init__(self) -> None:
        self.restore: Callable[[], None] = lambda: None

    @override
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        if fullname in _LIBRARIES:
            sys.meta_path.remove(self)
            self._watch(import_module("anyio"))
        return None

    def _watch(self, anyio: Any) -> None:
        original: Any = anyio.run

        def run(function: Any, *args: Any, **options: Any) -> Any:
            function_or_method = getattr(function, "func", function)  # of a partial
            cells = getattr(function_or_method, "__closure__", None) or ()
            for owner in (getattr(function_or_method, "__self__", None), *(cell.cell_contents for cell in cells)):
                if library_of(owner):
                    raise RunCalled(owner)
            return original(function, *args, **options)

        anyio.run = run
        self.restore = lambda: setattr(anyio, "run", original)


@contextmanager
def compatible_imports() -> Generator[CompatibleImports]:
    """Provide ``mcp.server.fastmcp`` while the block imports a program, if no package named ``mcp`` is installed.

    A call of `run` by an object of another library ends the import with `RunCalled`.
    """
    finder, watcher = CompatibleImports(), _RunWatcher()
    sys.meta_path.append(finder)  # last, so that an installed package takes precedence
    sys.meta_path.insert(0, watcher)
    try:
        yield finder
    finally:
        sys.meta_path[:] = [each for each in sys.meta_path if each is not watcher and each is not finder]
        watcher.restore()
