"""Run a published server's command with the compatibility layer in place of ``mcp.server.fastmcp``.

``python -m benches.compat.served MODULE:FUNCTION [ARGUMENT …]``. ``mcp.types`` and the rest of the SDK stay what they
are.
"""

import importlib
import logging
import sys
from types import ModuleType

from millstream.compat import fastmcp

NAMES = ("", ".server", ".exceptions", ".prompts", ".prompts.base", ".resources", ".tools", ".utilities",
         ".utilities.types", ".utilities.logging")  # fmt: skip


def replace_modules() -> None:
    """Let every import of ``mcp.server.fastmcp`` find the compatibility layer."""
    for each in NAMES:
        name = f"mcp.server.fastmcp{each}"
        module = ModuleType(name)
        module.__path__ = []
        module.__dict__.update({public: getattr(fastmcp, public) for public in fastmcp.__all__})
        module.__dict__["get_logger"] = logging.getLogger
        sys.modules[name] = module
        parent, _, own = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], own, module)


def main() -> None:
    """Start the command."""
    target, *arguments = sys.argv[1:]
    replace_modules()
    module, _, function = target.partition(":")
    sys.argv = [module, *arguments]
    getattr(importlib.import_module(module), function)()


if __name__ == "__main__":
    main()
