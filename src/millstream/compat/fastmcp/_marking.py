"""Decorators of fastmcp that stand alone: they only note what a function is for, and a server takes it later.

``@tool`` on a function, then ``mcp.add_tool(function)``: the function stays what it is.
"""

from collections.abc import Callable
from typing import Any, cast

_MARK = "__fastmcp__"


class ToolMeta:
    """What a decorator said of a function. The options are attributes; one that wasn't given is None."""

    type = "tool"

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = {name: value for name, value in options.items() if value is not None}

    def __getattr__(self, name: str) -> Any:
        """What was given for an option; None for one that wasn't."""
        if name.startswith("__") or name == "options":
            raise AttributeError(name)
        return self.options.get(name)


class PromptMeta(ToolMeta):
    """The same of a prompt."""

    type = "prompt"


class ResourceMeta(ToolMeta):
    """The same of a resource; `uri` is where clients read it."""

    type = "resource"


def marks_of(function: Any, kind: type[ToolMeta]) -> dict[str, Any]:
    """The options that a decorator of this kind noted at a function; none without one."""
    mark = getattr(function, _MARK, getattr(getattr(function, "__func__", None), _MARK, None))
    return dict(mark.options) if isinstance(mark, kind) else {}


def _decorator(kind: type[ToolMeta], first: Any, options: dict[str, Any]) -> Any:
    function = None
    if isinstance(first, str):
        if options.get("name") is not None:
            raise TypeError("Cannot specify the name both as the first argument and as keyword name=")
        options = {**options, "name": first}
    else:
        function = first

    def mark(marked: Any) -> Any:
        kind_of_method: Any = cast("object", type(marked))
        if kind_of_method is classmethod:
            raise TypeError(f"@{kind.type} can't be put on a classmethod: add the bound method to a server instead")
        target: Any = marked.__func__ if kind_of_method is staticmethod else marked
        setattr(target, _MARK, kind(options))
        return marked

    return mark if function is None else mark(function)


def tool(first: Any = None, /, **options: Any) -> Any:
    """Note that a function is a tool; the options are those of ``@mcp.tool``.

    Args:
        first: the name, or the function.
        options: `name`, `title`, `description`, `tags`, `annotations`, and so on.
    """
    return _decorator(ToolMeta, first, options)


def prompt(first: Any = None, /, **options: Any) -> Any:
    """Note that a function is a prompt; the options are those of ``@mcp.prompt``.

    Args:
        first: the name, or the function.
        options: `name`, `title`, `description`, `tags`, and so on.
    """
    return _decorator(PromptMeta, first, options)


def resource(uri: str, **options: Any) -> Callable[[Any], Any]:
    """Note that a function is a resource; the options are those of ``@mcp.resource``.

    Args:
        uri: where clients read it.
        options: `name`, `title`, `description`, `mime_type`, `tags`, and so on.
    """
    if callable(uri):
        raise TypeError("@resource requires a URI: @resource('books://all')")
    made: Callable[[Any], Any] = _decorator(ResourceMeta, None, {**options, "uri": uri})
    return made
