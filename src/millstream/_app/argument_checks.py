"""Immediate checks of the arguments of `Server`, because mistakes would otherwise surface late and far from their
line.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, cast

from millstream._server.functions.dependencies import dependencies_in, hints_of

if TYPE_CHECKING:
    from millstream._parts import Part
    from millstream.auth._method import AuthMethodOrUnbound

_LIFESPAN = "write @asynccontextmanager above `async def lifespan(server):`, with a `yield` inside"
_KINDS: dict[str, str] = {
    "version": "a string",
    "instructions": "a string",
    "store": "a URL as a string, such as sqlite:///shop.db",
}


def check_arguments(name: Any, lifespan: Any, kinds: dict[str, tuple[Any, type]], **texts: Any) -> None:
    """Check the arguments of a server.

    Args:
        name: Name of the server.
        lifespan: A function, or None.
        kinds: Argument -> its value and required class; None skips it.
        texts: Arguments that must be strings.

    Raises:
        TypeError: An argument has the wrong type; the message says what is right.
        ValueError: The name is empty.
    """
    if not isinstance(name, str):
        raise TypeError(f'The first argument of Server is its name, as in Server("shop"), not {name!r}')
    if not name.strip():
        raise ValueError('The name of the server is empty. Clients show it, so write one, as in Server("shop")')
    for argument, value in texts.items():
        if not isinstance(value, str):
            raise TypeError(f"Server({name!r}): {argument} must be {_KINDS[argument]}, not {value!r}")
    for argument, (value, kind) in kinds.items():
        if value is not None and not isinstance(value, kind):
            home = f"millstream.{kind.__name__}"
            raise TypeError(f"Server({name!r}): {argument} must be {home}(…), not a {type(value).__name__}")
    if lifespan is not None:
        _check_lifespan(f"Server({name!r}): lifespan", lifespan)


def _check_lifespan(where: str, lifespan: Any) -> None:
    if isinstance(lifespan, AbstractAsyncContextManager):
        raise TypeError(f"{where} was called already. Pass the function itself, without parentheses.")
    if not callable(lifespan):
        raise TypeError(f"{where} must be a function, not {lifespan!r}: {_LIFESPAN}")
    plain: Callable[..., Any] = inspect.unwrap(lifespan)
    if inspect.isasyncgenfunction(lifespan) or inspect.iscoroutinefunction(plain) or inspect.isgeneratorfunction(plain):
        raise TypeError(f"{where} must return an asynchronous context manager: {_LIFESPAN}")
    try:
        inspect.signature(lifespan).bind("the server")
    except TypeError as error:
        raise TypeError(f"{where} must accept the server as its argument: {_LIFESPAN}") from error
    except ValueError:
        return  # a callable without a signature can't be checked


def check_completer(where: str, function: Any) -> None:
    """Check that a function can complete an argument.

    Raises:
        TypeError: It can't be called with a value and the other arguments.
    """
    try:
        signature = inspect.signature(function)
        signature.bind("the", "two", **dict.fromkeys(dependencies_in(signature, hints_of(function))))
    except TypeError as error:
        raise TypeError(
            f"{where}: a completer is called with the text typed so far and the other arguments: def "
            "complete(value: str, arguments: dict[str, str]) -> list[str]"
        ) from error
    except ValueError:
        return


def check_server(other: object, kind: type) -> None:
    """Check that a mounted object is a server, not another kind of application.

    Raises:
        TypeError: It isn't a server.
    """
    if not isinstance(other, kind):
        raise TypeError(
            f"mount takes a millstream.Server, not {other!r}. To serve MCP inside another application, mount this "
            'server there: app.mount("/", mcp)'
        )


def check_middleware(middleware: Any) -> tuple[object, ...]:
    """Return the hooks of a server, outermost first.

    Raises:
        TypeError: It isn't a list of hooks.
    """
    if not isinstance(middleware, Sequence) or isinstance(middleware, str):
        raise TypeError(f"middleware must be a list, outermost first: middleware=[{type(middleware).__name__}(…)]")
    return tuple(cast("Sequence[object]", middleware))


def check_parts(parts: Any) -> "tuple[Part, ...]":
    """Return the program's own parts.

    Raises:
        TypeError: An element isn't a part.
    """
    if isinstance(parts, str) or not isinstance(parts, Sequence):
        raise TypeError(
            f"parts must be a list: parts=[{type(parts).__name__}(…)]. To serve the hub or REST, use serve="
        )
    for each in cast("Sequence[object]", parts):
        if isinstance(each, type) or not all(hasattr(each, name) for name in ("name", "needs", "open", "close")):
            shown = f"the class {each.__name__}" if isinstance(each, type) else repr(each)
            raise TypeError(f"parts must contain objects with name, needs, open(host), and close(), not {shown}")
    return tuple(cast("Sequence[Part]", parts))


def check_address(host: object, port: object, workers: object) -> None:
    """Check the types of the arguments of `Server.run`.

    Raises:
        TypeError: An argument has the wrong type; the message names it.
    """
    if host is not None and not isinstance(host, str):
        raise TypeError(f"run(host={host!r}): host must be a string, such as '127.0.0.1'")
    for name, value in (("port", port), ("workers", workers)):
        if type(value) is not int and not (name == "port" and value is None):
            raise TypeError(f"run({name}={value!r}): {name} must be an integer")


def check_auth(auth: "AuthMethodOrUnbound | Sequence[AuthMethodOrUnbound] | None") -> "tuple[AuthMethodOrUnbound, ...]":
    """Return the value of ``Server(auth=…)`` as a tuple.

    Raises:
        TypeError: An element isn't from `millstream.auth`, or the list is empty and would protect nothing.
    """
    if auth is None:
        return ()
    if isinstance(auth, str):
        raise TypeError("auth must not be a string. If it is a key, write auth=auth.keys(…)")
    methods = tuple(auth) if isinstance(auth, Sequence) else (auth,)
    if not methods:
        raise TypeError("auth=[] protects nothing. Leave it out, or add a method, such as auth.keys(…).")
    for each in methods:
        if not (hasattr(each, "identify") or hasattr(each, "bind")):
            raise TypeError(
                "auth must be created by millstream.auth, such as auth.keys(…), not "
                f"{getattr(each, '__name__', each)!r}"
            )
    return methods
