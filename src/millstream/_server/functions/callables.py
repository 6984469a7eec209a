"""Python callables: whether they can be registered, and their names, annotations, and context parameters."""

import functools
import inspect
import typing
import warnings
from collections.abc import Callable
from types import CodeType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin


class RegistrationError(TypeError):
    """A function that can't be registered. The text says what to write instead."""


_ABOVE = {"classmethod": "__func__", "property": "fget"}
"""Decorators whose result isn't callable -> the attribute with the function."""


def check_function(function: Any, kind: str) -> None:
    """Check that clients can call an object, before its signature is read.

    Args:
        function: The argument of ``mcp.tool`` or a similar decorator.
        kind: The name of that decorator.

    Raises:
        TypeError: The object can't be registered. The text says what to write instead.
    """
    if isinstance(function, type):
        raise TypeError(
            f"{function.__name__} is a class, but mcp.{kind} takes a function. Register a method of an object "
            f"instead, as in mcp.{kind}({function.__name__}().buy)"
        )
    if isinstance(function, str):
        raise TypeError(
            f"mcp.{kind} takes a function, not {function!r}. To choose a name, write @mcp.{kind}(name={function!r})"
        )
    if inspect.iscoroutine(function):
        function.close()  # otherwise Python warns that it was never awaited
        raise TypeError(
            f"mcp.{kind} got the result of calling {function.__name__}. Pass the function itself, without "
            f"parentheses: mcp.{kind}({function.__name__})"
        )
    word = _ABOVE.get(type(function).__name__)
    if word is not None and not callable(function):
        name = getattr(getattr(function, word, None), "__name__", "this")
        raise TypeError(
            f"{name}: @mcp.{kind} can't be used above @{type(function).__name__}. Remove it, and call "
            f"mcp.{kind}(…) below the class, with the method of an object or class"
        )
    if not callable(function):
        raise TypeError(f"mcp.{kind} takes a function, not {function!r}")


def warn_author(text: str, code: CodeType | None = None) -> None:
    """Warn the author of a function.

    Args:
        text: The problem, and what to do.
        code: The function's code. Without it, the warning points to the calling line of the program.
    """
    if code is not None:
        warnings.warn_explicit(text, UserWarning, code.co_filename, code.co_firstlineno)
        return
    frame = inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__")).startswith("millstream."):
        frame = frame.f_back
    if frame is not None:
        warnings.warn_explicit(text, UserWarning, frame.f_code.co_filename, frame.f_lineno)


def unwrap_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with annotations and docstring, inside partials, decorators, and ``__call__``."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    return function if inspect.isroutine(function) or inspect.isclass(function) else type(function).__call__


def name_of(function: Callable[..., Any]) -> str:
    """Return the name of a function, for messages and as its default name for clients."""
    name: str = unwrap_function(function).__name__
    return name if name != "__call__" else type(function).__name__


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return resolved annotations. One that can't be resolved stays a string and is refused later."""
    target = unwrap_function(function)
    if inspect.isclass(target):
        target = target.__init__
    try:
        return typing.get_type_hints(target, include_extras=True)
    except (NameError, AttributeError):
        pass
    found: dict[str, Any] = {}
    for name, annotation in target.__annotations__.items():
        holder = type(name, (), {"__annotations__": {name: annotation}, "__module__": target.__module__})
        try:
            found |= typing.get_type_hints(holder, target.__globals__, include_extras=True)
        except (NameError, AttributeError):
            found[name] = annotation
    return found


def context_in(
    signature: inspect.Signature, hints: dict[str, Any], contexts: tuple[type, ...], name: str
) -> tuple[str | None, type | None]:
    """Return the parameter that takes the context, and which kind of context.

    Raises:
        TypeError: Two parameters receive the context.
    """
    marked = [(parameter, _context_type(hints.get(parameter), contexts)) for parameter in signature.parameters]
    found = [(parameter, kind) for parameter, kind in marked if kind is not None]
    if len(found) > 1:
        raise TypeError(f"{name}: only one parameter can be the context, not {' and '.join(each for each, _ in found)}")
    return found[0] if found else (None, None)


def _context_type(annotation: Any, contexts: tuple[type, ...]) -> type | None:
    if isinstance(annotation, str):
        # Imported only for type checkers, so compare the last part of the name.
        names = {part.strip().split(".")[-1] for part in annotation.split("|")}
        return next((context for context in contexts if context.__name__ in names), None)
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType, Annotated) else (annotation,)
    classes = [kind for part in parts if isinstance(kind := get_origin(part) or part, type)]
    return next((context for context in contexts if any(issubclass(part, context) for part in classes)), None)
