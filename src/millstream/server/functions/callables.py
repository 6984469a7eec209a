"""What cannot be registered at all: classes, names, results of calls, and decorators in the wrong order."""

import inspect
from typing import Any


def check_function(function: Any, kind: str) -> None:
    """Make sure that something can be called by clients, before anything is known about its signature.

    Args:
        function: what was given to ``mcp.tool`` or its kind.
        kind: the name of that decorator.

    Raises:
        TypeError: it cannot; the text says what to write instead.
    """
    if isinstance(function, type):
        raise TypeError(
            f"{function.__name__} is a class, and mcp.{kind} takes a function. Register a method of an object instead, "
            f"as in mcp.{kind}({function.__name__}().buy)"
        )
    if isinstance(function, str):
        raise TypeError(
            f"mcp.{kind} takes a function, not {function!r}. To choose a name, write @mcp.{kind}(name={function!r})"
        )
    if inspect.iscoroutine(function):
        function.close()  # else Python warns that nobody awaited it
        raise TypeError(
            f"mcp.{kind} was given the result of calling {function.__name__}. Give it the function: "
            f"mcp.{kind}({function.__name__}), without parentheses"
        )
    if isinstance(function, classmethod | property):
        wrapped: Any = function.fget if isinstance(function, property) else function.__func__
        word = type(function).__name__
        raise TypeError(
            f"{wrapped.__name__}: @mcp.{kind} can't stand above @{word}. Leave @mcp.{kind} out of the class, and write "
            f"mcp.{kind}(…) below it, with the method of an object or class"
        )
    if not callable(function):
        raise TypeError(f"mcp.{kind} takes a function, not {function!r}")
