"""Docstrings for clients: the description of a function and of each parameter."""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any


def describe(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """Return the docstring's text before its first section, and the description of each parameter.

    Google, NumPy, and Sphinx styles are supported, and line breaks are kept. Any other docstring is all description.
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
