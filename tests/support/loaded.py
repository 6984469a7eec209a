"""What tests of the command line load into this process."""

import sys
import tempfile
from typing import ClassVar

from processes import ROOT

_PROGRAMS = (str(ROOT / "examples"), tempfile.gettempdir())
"""Folders whose modules a later test mustn't find: one of them may have the name of its own module."""


class Loaded:
    """The import paths and modules before a test."""

    path: ClassVar[list[str]] = []
    modules: ClassVar[set[str]] = set()

    @classmethod
    def note(cls) -> None:
        """Note what's there before a test."""
        cls.path, cls.modules = list(sys.path), set(sys.modules)

    @classmethod
    def forget(cls) -> None:
        """Restore the import paths, and forget the programs that the test has loaded.

        Other modules stay: some can't be loaded twice, and patches have to reach the one that's in use.
        """
        sys.path[:] = cls.path
        for name in set(sys.modules) - cls.modules:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(_PROGRAMS):
                del sys.modules[name]
