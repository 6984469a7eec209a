"""Reads a callable's declaration: name, annotations, context, dependencies, and whether it can be registered.

`Depends` fills in a parameter by another function instead of the client. Dependencies are planned at registration, so
mistakes are reported at that time. `features.sources` resolves them per call.
"""

import builtins
import contextlib
import functools
import inspect
import re
import typing
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import BuiltinFunctionType, CodeType, FunctionType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, overload

from msgspec import Struct

Function = Callable[..., Any]
"""A function of the program, or another callable."""


class RegistrationError(TypeError):
    """A function that can't be registered. The message suggests a replacement."""


_ABOVE = {"classmethod": "__func__", "property": "fget"}
"""Decorators whose result isn't callable, with the attribute that has the function."""


def check_function(function: Any, kind: str) -> None:
    """Check that clients can call an object, before its signature is read.

    Args:
        function: The argument of ``mcp.tool`` or a similar decorator.
        kind: The name of that decorator.

    Raises:
        TypeError: The object can't be registered. The message suggests a replacement.
    """
    if isinstance(function, type):
        raise TypeError(
            f"{function.__name__} is a class, but mcp.{kind} takes a function. Register a method of an object "
            f"instead, as in mcp.{kind}({function.__name__}().buy)."
        )
    if isinstance(function, str):
        option = "description" if function.count(" ") > 1 else "name"
        raise TypeError(
            f"mcp.{kind} takes a function, not {function!r}. To choose a {option}, write "
            f"@mcp.{kind}({option}={function!r})."
        )
    if inspect.iscoroutine(function):
        function.close()  # otherwise Python warns that the coroutine was never awaited
        raise TypeError(
            f"mcp.{kind} got the result of calling {function.__name__}. Pass the function itself, without "
            f"parentheses: mcp.{kind}({function.__name__})"
        )
    word = _ABOVE.get(type(function).__name__)
    if word is not None and not callable(function):
        name = getattr(getattr(function, word, None), "__name__", "this")
        raise TypeError(
            f"{name}: @mcp.{kind} can't be used above @{type(function).__name__}. Remove it, and call "
            f"mcp.{kind}(…) below the class, with a method of an object or class."
        )
    if not callable(function):
        raise TypeError(f"mcp.{kind} takes a function, not {function!r}.")


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


def unwrap_function(function: Function) -> Function:
    """Unwrap partials, decorators, and ``__call__``. Return the function with the annotations and docstring."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    return function if inspect.isroutine(function) or inspect.isclass(function) else type(function).__call__


def name_of(function: Function) -> str:
    """Return the name of a function, for messages and as its default name for clients."""
    name: str = unwrap_function(function).__name__
    return name if name != "__call__" else type(function).__name__


def hints_of(function: Function) -> dict[str, Any]:
    """Return resolved annotations. One that can't be resolved stays a string and is rejected later."""
    target = unwrap_function(function)
    if inspect.isclass(target):
        target = target.__init__
    try:
        return typing.get_type_hints(target, include_extras=True)
    except (NameError, AttributeError, TypeError):
        around = _names_around(target)
    found: dict[str, Any] = {}
    for name, annotation in target.__annotations__.items():
        holder = type(name, (), {"__annotations__": {name: annotation}, "__module__": target.__module__})
        try:
            found |= typing.get_type_hints(holder, target.__globals__, around, include_extras=True)
        except (NameError, AttributeError):
            found[name] = annotation
        except TypeError as error:
            known = {**vars(builtins), **target.__globals__, **around}
            values = (known.get(word) for word in re.findall(r"\w+", str(annotation)))
            why = next((describe_function(each) for each in values if isinstance(each, FUNCTIONS)), f"{error}")
            raise TypeError(f"{name_of(function)}: parameter {name!r}: {annotation!r} isn't a type: {why}.") from error
    return found


FUNCTIONS = BuiltinFunctionType, FunctionType


def describe_function(function: Any) -> str:
    """Return what's wrong with a function that's written as a type."""
    instead = "Any, imported from typing" if function is any else "a type, such as str"
    return f"{function.__name__} is a function, not a type. Write {instead}"


def _names_around(function: Any) -> dict[str, Any]:
    """Return the local names of the functions and classes that enclose a function definition."""
    found: dict[str, Any] = {}
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals is function.__globals__ and frame.f_code.co_name in function.__qualname__.split("."):
            found = {**frame.f_locals, **found}
        frame = frame.f_back
    return found


def context_in(
    signature: inspect.Signature, hints: dict[str, Any], contexts: tuple[type, ...], name: str
) -> tuple[str | None, type | None]:
    """Return the parameter that takes the context, and which kind of context.

    Raises:
        TypeError: Two parameters receive the context.
    """
    found = [
        (parameter, kind)
        for parameter in signature.parameters
        if (kind := _context_type(hints.get(parameter), contexts)) is not None
    ]
    if len(found) > 1:
        raise TypeError(f"{name}: only one can be the context, not {' and '.join(each for each, _ in found)}.")
    return found[0] if found else (None, None)


def _context_type(annotation: Any, contexts: tuple[type, ...]) -> type | None:
    if isinstance(annotation, str):
        # Imported only for type checkers, so compare the last part of the name.
        names = {part.strip().split(".")[-1] for part in annotation.split("|")}
        return next((context for context in contexts if context.__name__ in names), None)
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType, Annotated) else (annotation,)
    classes = [kind for part in parts if isinstance(kind := get_origin(part) or part, type)]
    return next((context for context in contexts if any(issubclass(part, context) for part in classes)), None)


T = TypeVar("T")


class Dependency(Struct, frozen=True, eq=False):
    """The marker of a parameter that a function fills in."""

    function: Function
    thread: bool = True
    """Whether a `def` function runs in a worker thread."""


@overload
def Depends(
    function: Callable[
        ..., AsyncIterator[T] | AbstractAsyncContextManager[T] | AbstractContextManager[T] | Awaitable[T]
    ],
    *,
    thread: bool = True,
) -> T: ...
@overload
def Depends(function: Callable[..., Iterator[T]], *, thread: bool = True) -> T: ...
@overload
def Depends(function: Callable[..., T], *, thread: bool = True) -> T: ...
def Depends(function: Callable[..., Any], *, thread: bool = True) -> Any:  # noqa: N802  it marks a parameter, as a type does
    """Fill in a parameter with the result of a function. Clients never see the parameter.

    The function runs once per call, even if several parameters depend on it. It can have dependencies, take the
    `Context` (or, as a `def` function, the `SyncContext`), and be `async`. If it yields, the code after the ``yield``
    runs when the call is over. If the call failed or was canceled, the ``yield`` raises the error. Context managers
    work the same way (a function decorated with `contextlib.contextmanager`, or a class).

    Args:
        function: The function that returns the value.
        thread: Whether a `def` function runs in a worker thread. Pass False if it never blocks. It can then take a
            `Context`.

    Example:
        ``async def find(isbn: str, shop: Annotated[Shop, Depends(open_shop)]) -> str``, or
        ``shop: Shop = Depends(open_shop)``.
    """
    if not callable(function):
        raise TypeError(f"Depends({function!r}): pass the function itself, without calling it.")
    return Dependency(function, thread)


def dependencies_in(signature: inspect.Signature, hints: Mapping[str, Any]) -> dict[str, Dependency]:
    """Return the parameters that functions fill in, marked by their default or inside ``Annotated``.

    Raises:
        TypeError: A mark is from another library, such as FastAPI. Clients could send the value that it should fill in,
            or its constraints wouldn't apply.
    """
    found: dict[str, Dependency] = {}
    for name, parameter in signature.parameters.items():
        hint = hints.get(name)
        marks = [parameter.default, *(get_args(hint)[1:] if get_origin(hint) is Annotated else ())]
        for each in marks:
            mark_type = each if isinstance(each, type) else type(each)
            kind, module = mark_type.__name__.lstrip("_"), mark_type.__module__
            if any(base.__name__ == "InjectedToolArg" for base in mark_type.__mro__):
                raise TypeError(
                    f"{name}: clients could send what LangChain fills in. Write: Annotated[…, Depends(function)], with "
                    "from millstream import Depends."
                )
            if module == "typer.models":
                raise TypeError(f"{name}: a tool can't use Typer's parameters. Write: from millstream import Field.")
            if kind in ("Depends", "Security"):
                origin = module.partition(".")[0]
                raise TypeError(f"{name}: this Depends is from {origin}. Write: from millstream import Depends.")
            if module == "fastapi.params":
                use = "Read ctx.headers" if kind in ("Header", "Cookie") else "Write: from millstream import Field"
                raise TypeError(f"{name}: a tool can't use FastAPI's {kind}. {use}.")
        if isinstance(hint, Dependency):
            raise TypeError(f"{name}: Depends isn't a type. Write Annotated[TYPE, Depends({hint.function.__name__})].")
        mark = next((each for each in marks if isinstance(each, Dependency)), None)
        if mark is not None:
            found[name] = mark
    return found


How = Literal["value", "awaitable", "manager", "async manager"]


class PlannedDependency(Struct, frozen=True, eq=False):
    """A planned dependency: how to call, open, and close it, and its own dependencies."""

    key: Function
    """The original function. It runs once per call, and tests can override it."""
    make: Function
    """Returns a value, an awaitable, or a context manager, according to `how`."""
    how: How
    threaded: bool
    context: str | None
    """The parameter that receives the context."""
    dependencies: Mapping[str, "PlannedDependency"]


def plan_dependencies(
    dependencies: Mapping[str, Dependency], contexts: tuple[type, type], path: tuple[Function, ...] = ()
) -> dict[str, PlannedDependency]:
    """Plan dependencies, recursively.

    Args:
        dependencies: Dependencies by parameter name.
        contexts: The context classes for coroutines and for threads.
        path: The chain of functions that depend on them.

    Raises:
        TypeError: A parameter can't be filled in, the context has the wrong kind, or a dependency depends on itself.
    """
    return {name: plan_dependency(each, contexts, path) for name, each in dependencies.items()}


def plan_dependency(
    dependency: Dependency, contexts: tuple[type, type], path: tuple[Function, ...] = ()
) -> PlannedDependency:
    """Plan one dependency. See `plan_dependencies`."""
    function = dependency.function
    name = name_of(function)
    if function in path:
        raise TypeError(f"{name}: it depends on itself through {name_of(path[-1])}.")
    make, how = _nature(function)
    threaded = dependency.thread and how in ("value", "manager")
    signature, hints = inspect.signature(function), hints_of(function)
    context, kind = context_in(signature, hints, contexts, name)
    plain, blocking = contexts
    if kind is blocking and not threaded:
        raise TypeError(
            f"{name}: it doesn't run in a worker thread, so it can't take SyncContext. Annotate ctx: Context."
        )
    if kind is plain and threaded:
        raise TypeError(
            f"{name}: a `def` dependency runs in a worker thread and can't await. Annotate ctx: SyncContext, "
            "make it `async def`, or use Depends(…, thread=False) if it never blocks."
        )
    filled = dependencies_in(signature, hints)
    for parameter in signature.parameters.values():
        optional = parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if not optional and parameter.name != context and parameter.name not in filled:
            raise TypeError(
                f"{name}: the parameter {parameter.name!r} of this dependency has no value. Give it a default, "
                "annotate it as Context, or mark it with Depends."
            )
    return PlannedDependency(
        function, make, how, threaded, context, plan_dependencies(filled, contexts, (*path, function))
    )


def _nature(function: Function) -> tuple[Function, How]:
    if inspect.isasyncgenfunction(function):
        return contextlib.asynccontextmanager(function), "async manager"
    if inspect.isgeneratorfunction(function):
        return contextlib.contextmanager(function), "manager"
    if inspect.isclass(function):
        if hasattr(function, "__aenter__"):
            return function, "async manager"
        return function, "manager" if hasattr(function, "__enter__") else "value"
    # A function decorated by `contextlib` wraps a generator function.
    inner = inspect.unwrap(function)
    if inspect.isasyncgenfunction(inner):
        return function, "async manager"
    if inspect.isgeneratorfunction(inner):
        return function, "manager"
    called = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
    either = (function, called, inner)
    return function, "awaitable" if any(inspect.iscoroutinefunction(each) for each in either) else "value"
