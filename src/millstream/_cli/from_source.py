"""Imports of a changing program from source, ignoring compiled code.

Python reuses compiled code if the file's size and modification second are unchanged. A quick edit of the same length
would therefore be ignored. Installed packages still use compiled code.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from millstream._override import override

_folders: list[Path] = []


class _FromSource(SourceFileLoader):
    @override
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _Finder:
    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module like Python does."""
        spec = PathFinder.find_spec(fullname, path, target)
        return None if spec is None else from_source(spec)


def ignore_compiled(folder: Path) -> None:
    """Import modules in and below this folder from source from now on."""
    _folders.append(folder.resolve())
    sys.meta_path.insert(0, _Finder)


def from_source(spec: ModuleSpec) -> ModuleSpec:
    """Return the spec, with a loader that ignores compiled code if the file may change."""
    if type(spec.loader) is SourceFileLoader and spec.origin and _changes(Path(spec.origin)):
        spec.loader = _FromSource(spec.name, spec.origin)
    return spec


def _changes(file: Path) -> bool:
    inside = [file.relative_to(each).parts for each in _folders if file.is_relative_to(each)]
    return any("site-packages" not in parts for parts in inside)
