"""Public names that a package imports on first use."""

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any


def import_name(module: str, homes: Mapping[str, str], name: str, elsewhere: Mapping[str, str] = {}) -> Any:
    """Import a public name, for `__getattr__` of a module, which then has it.

    Args:
        module: The module, whose `__all__` has the public names.
        homes: Public name -> its module, relative to this one.
        name: The name.
        elsewhere: Sentences that name the alternative, by the name that users try.

    Raises:
        ImportError, AttributeError: The module doesn't have the name.
    """
    owner = sys.modules[module]
    if name not in homes:
        raise import_module("millstream._suggestions").missing_name(module, name, owner.__all__, elsewhere)
    value = getattr(import_module(f".{homes[name]}", module), name)
    setattr(owner, name, value)
    return value
