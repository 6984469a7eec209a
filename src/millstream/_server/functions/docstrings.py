"""The two parts of a docstring that clients see: the text, and what it says about each parameter."""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any


def describe(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """Return the text of a docstring up to its first section, and the description of each parameter.

    Google, NumPy and Sphinx style are understood, and lines stay lines. A docstring that is none of these is all text.
    """
    text = inspect.getdoc(function) or ""
    if "\n" not in text:
        return text, {}
    parser = import_module("docstring_parser")
    try:
        found = parser.parse(text)
    except parser.ParseError:
        return text, {}
    parameters = {each.arg_name.lstrip("*"): each.description for each in found.params if each.description}
    return (found.description or "").strip(), parameters
