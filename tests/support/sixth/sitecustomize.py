"""Add a made-up sixth revision to the table of revisions, in each process whose PYTHONPATH has this folder.

It has one content kind and one method more than the newest revision. Nothing in the package knows about it:
``make next`` runs tests with it, to show that the next revision is a diff.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import MappingProxyType, ModuleType
from typing import Any

DATE = "2027-03-01"
TABLE = "millstream._protocol.revisions"


class TableLoader(SourceFileLoader):
    """Loads the table, and appends a revision."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, and replace the names that depend on all revisions."""
        super().exec_module(module)
        from msgspec.structs import replace  # noqa: PLC0415  processes of other environments lack it

        table: Any = module
        last = table.ALL[-1]
        sixth = replace(
            last,
            date=DATE,
            content=last.content | {"table"},
            requests=MappingProxyType({**last.requests, "prompts/preview": "prompts"}),
        )
        table.ALL = (*table.ALL, sixth)
        table.BY_DATE = MappingProxyType({each.date: each for each in table.ALL})
        table.PER_REQUEST = MappingProxyType({each.date: each for each in table.ALL if not each.handshake})
        table.NEWEST = sixth


class TableFinder(MetaPathFinder):
    """Finds the table, and leaves other modules to Python."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the specification of the table, with the loader above."""
        spec = PathFinder.find_spec(fullname, path) if fullname == TABLE else None
        loader: Loader | None = None if spec is None else spec.loader
        if spec is not None and isinstance(loader, SourceFileLoader):
            spec.loader = TableLoader(loader.name, loader.path)
        return spec


sys.meta_path.insert(0, TableFinder())
