"""Reading a program that changes: its modules come from their sources, whatever compiled code lies beside them.

Python takes compiled code for fresh if the file has the size and the second of change that it knows. So what a test or
another run compiled a moment ago would hide an edit of the same length. Packages of others keep theirs.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

_folders: list[Path] = []


class _FromSource(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _Finder:
    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As Python finds it."""
        spec = PathFinder.find_spec(fullname, path, target)
        return None if spec is None else from_source(spec)


def ignore_compiled(folder: Path) -> None:
    """From now on, modules in and below this folder come from their sources."""
    _folders.append(folder.resolve())
    sys.meta_path.insert(0, _Finder)


def from_source(spec: ModuleSpec) -> ModuleSpec:
    """The same, without compiled code if its file is one of those that change."""
    if type(spec.loader) is SourceFileLoader and spec.origin and _changes(Path(spec.origin)):
        spec.loader = _FromSource(spec.name, spec.origin)
    return spec


def _changes(file: Path) -> bool:
    inside = [file.relative_to(each).parts for each in _folders if file.is_relative_to(each)]
    return any("site-packages" not in parts for parts in inside)
