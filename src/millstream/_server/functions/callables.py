"""What cannot be registered at all: classes, names, results of calls, decorators in the wrong order.

And warnings about what can be: they point to the line where the function is written.
"""

import inspect
import warnings
from types import CodeType
from typing import Any


class Refused(TypeError):
    """Something that can't be registered; the text says what to write instead, and there is no more to say."""


_ABOVE = {"classmethod": "__func__", "property": "fget"}
"""Decorators whose result nobody can call -> where the function is in it."""


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
    word = _ABOVE.get(type(function).__name__)
    if word is not None and not callable(function):
        name = getattr(getattr(function, word, None), "__name__", "this")
        raise TypeError(
            f"{name}: @mcp.{kind} can't stand above @{type(function).__name__}. Leave it out, and write "
            f"mcp.{kind}(…) below the class, with the method of an object or class"
        )
    if not callable(function):
        raise TypeError(f"mcp.{kind} takes a function, not {function!r}")


def notice(text: str, code: CodeType | None = None) -> None:
    """Warn whoever wrote a function.

    Args:
        text: what is wrong with it, and what to do.
        code: of the function; without one the warning points to the line of the program that called us.
    """
    if code is not None:
        warnings.warn_explicit(text, UserWarning, code.co_filename, code.co_firstlineno)
        return
    frame = inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__")).startswith("millstream."):
        frame = frame.f_back
    if frame is not None:
        warnings.warn_explicit(text, UserWarning, frame.f_code.co_filename, frame.f_lineno)
