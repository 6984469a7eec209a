"""Python programs as the targets of commands and clients: ``shop.py``, ``shop.py:mcp``, ``shop``, and ``shop.app:mcp``.

This is apart from the import of programs, so that clients don't load what servers need.
"""

import importlib.util
import os
import shutil
from collections.abc import Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

SCRIPTS = (".js", ".mjs", ".cjs")
"""Extensions of programs for Node.js."""
CONFIGURATIONS = (".toml", ".json", ".jsonc")
"""Extensions of gateway configuration files."""


def split_target(target: str) -> tuple[str, str]:
    """Split ``"shop.py:mcp"`` into ``("shop.py", "mcp")``, and ``"mcp.json#shop"`` likewise. Other colons belong to the
    path.
    """
    configuration, hash_sign, server = target.rpartition("#")
    if hash_sign and configuration.endswith((".py", *CONFIGURATIONS)):
        return configuration, server
    source, colon, name = target.rpartition(":")
    dotted = all(word.isidentifier() for word in name.split("."))  # for example mcp.app, which an error explains
    return (source, name) if colon and source and dotted else (target, "")


def is_module(target: str, folder: Path) -> bool:
    """Return whether a target is a module, optionally with an object. Programs on the PATH take precedence over
    installed modules, but not over the modules in a folder.

    Args:
        folder: Folder in which the module is looked up first.
    """
    source, name = split_target(target)
    words = source.split(".")
    if source.endswith((".py", *SCRIPTS, *CONFIGURATIONS)) or not all(word.isidentifier() for word in words):
        return False

    def is_found(spec: ModuleSpec | None) -> bool:
        return spec is not None and (spec.has_location or len(words) > 1)  # a folder alone is no program

    if name or is_found(PathFinder.find_spec(words[0], [str(folder.absolute())])):
        return True
    return shutil.which(target) is None and is_found(importlib.util.find_spec(words[0]))


def find_import_folders(file: Path) -> list[str]:
    """Return the folders in which a file's imports are looked up first: its own, and the one above its package."""
    root = file.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    return list(dict.fromkeys((str(file.parent), str(root))))


def python_path(*folders: str | Path) -> Mapping[str, str]:
    """Return the variable for a Python process that finds what this one finds, and modules in folders."""
    path = [*folders, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {"PYTHONPATH": os.pathsep.join(os.path.abspath(each) for each in path)} if path else {}  # noqa: PTH100
