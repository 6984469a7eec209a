"""Run a published server's command with the door in the place of the library that it imports.

``python -m benches.compat.served MODULE:FUNCTION [ARGUMENT …]``. What the server imports of ``mcp.server.fastmcp`` and
of ``fastmcp`` is the door's; ``mcp.types`` and the rest of the SDK stay what they are.
"""

import importlib
import sys
from types import ModuleType

import millstream.compat.fastmcp as door
from millstream.compat.fastmcp import (
    _dependencies as dependencies,
)
from millstream.compat.fastmcp import (
    _exceptions as exceptions,
)
from millstream.compat.fastmcp import (
    _logs as logs,
)
from millstream.compat.fastmcp import (
    _media as media,
)
from millstream.compat.fastmcp import (
    _middleware as middleware,
)
from millstream.compat.fastmcp import (
    _prompts as prompts,
)
from millstream.compat.fastmcp import (
    _resources as resources,
)
from millstream.compat.fastmcp import (
    _templates as templates,
)
from millstream.compat.fastmcp import (
    _tools as tools,
)
from millstream.compat.fastmcp import (
    standalone,
)


def alias(name: str, *sources: ModuleType) -> None:
    """A module of this name with the public names of others."""
    made = ModuleType(name)
    made.__path__ = []
    for source in sources:
        made.__dict__.update({each: value for each, value in vars(source).items() if not each.startswith("_")})
    sys.modules[name] = made
    parent, _, own = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], own, made)


def stand_in() -> None:
    """Let every import of the two libraries find the door."""

    for name, sources in {
        "mcp.server.fastmcp": (door,),
        "mcp.server.fastmcp.server": (door,),
        "mcp.server.fastmcp.exceptions": (exceptions,),
        "mcp.server.fastmcp.prompts": (prompts,),
        "mcp.server.fastmcp.prompts.base": (prompts,),
        "mcp.server.fastmcp.resources": (resources, templates),
        "mcp.server.fastmcp.tools": (tools,),
        "mcp.server.fastmcp.utilities": (media,),
        "mcp.server.fastmcp.utilities.types": (media,),
        "mcp.server.fastmcp.utilities.logging": (logs,),
        "fastmcp": (standalone,),
        "fastmcp.exceptions": (exceptions,),
        "fastmcp.prompts": (prompts,),
        "fastmcp.resources": (resources, templates),
        "fastmcp.server": (standalone,),
        "fastmcp.server.context": (standalone,),
        "fastmcp.server.dependencies": (dependencies,),
        "fastmcp.server.middleware": (middleware,),
        "fastmcp.tools": (tools,),
        "fastmcp.tools.tool": (tools,),
        "fastmcp.utilities": (media,),
        "fastmcp.utilities.types": (media,),
        "fastmcp.utilities.logging": (logs,),
    }.items():
        alias(name, *sources)
    sys.modules["fastmcp"].Client = object  # type: ignore[attr-defined]  # imported for checks that do not run here


def main() -> None:
    """Start the command."""
    target, *arguments = sys.argv[1:]
    stand_in()
    module, _, function = target.partition(":")
    sys.argv = [module, *arguments]
    getattr(importlib.import_module(module), function)()


if __name__ == "__main__":
    main()
