"""Checks of what a program passes to `Server`.

Arguments are checked immediately. Otherwise, mistakes would surface later, far from the line that caused them.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, cast

from millstream._app.definition import Info
from millstream._config import Settings
from millstream._server.functions.dependencies import dependencies_in, hints_of

if TYPE_CHECKING:
    from millstream.auth._method import AnyAuthMethod

_LIFESPAN = "write @asynccontextmanager above `async def lifespan(server):`, with a `yield` inside"


def check_arguments(name: Any, lifespan: Any, info: Any, settings: Any, **texts: Any) -> None:
    """Check the arguments of a server.

    Args:
        name: Name of the server.
        lifespan: A function, or None.
        info: An `Info`, or None.
        settings: `Settings`, or None.
        texts: Arguments that must be strings.

    Raises:
        TypeError: An argument has the wrong type. The message identifies the right one.
        ValueError: The name is empty.
    """
    if not isinstance(name, str):
        raise TypeError(f'The first argument of Server is its name, as in Server("shop"), not {name!r}.')
    if not name.strip():
        raise ValueError('The server name is empty. Clients show it, so write one, as in Server("shop").')
    for argument, value in texts.items():
        if not isinstance(value, str):
            what = "a URL as a string, such as sqlite:///shop.db" if argument == "store" else "a string"
            raise TypeError(f"Server({name!r}): {argument} must be {what}, not {value!r}.")
    for argument, value, kind in (("info", info, Info), ("settings", settings, Settings)):
        if value is not None and not isinstance(value, kind):
            home = f"millstream.{kind.__name__}"
            raise TypeError(f"Server({name!r}): {argument} must be {home}(…), not a {type(value).__name__}.")
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


def check_middleware(middleware: Any) -> tuple[object, ...]:
    """Return the hooks of a server, outermost first.

    Raises:
        TypeError: It isn't a list of hooks.
    """
    if not isinstance(middleware, Sequence) or isinstance(middleware, str):
        raise TypeError(f"middleware must be a list, outermost first: middleware=[{type(middleware).__name__}(…)]")
    return tuple(cast("Sequence[object]", middleware))


def check_auth(auth: "AnyAuthMethod | Sequence[AnyAuthMethod] | None") -> "tuple[AnyAuthMethod, ...]":
    """Return the value of ``Server(auth=…)`` as a tuple.

    Raises:
        TypeError: An element isn't from `millstream.auth`, or the list is empty and would protect nothing.
    """
    if auth is None:
        return ()
    if isinstance(auth, str):
        raise TypeError("auth must not be a string. If it's a key, write auth=auth.keys(…).")
    methods = tuple(auth) if isinstance(auth, Sequence) else (auth,)
    if not methods:
        raise TypeError("auth=[] protects nothing. Leave it out, or add a method, such as auth.keys(…).")
    for each in methods:
        if not (hasattr(each, "identify") or hasattr(each, "bind")):
            given = getattr(each, "__name__", type(each).__name__)
            raise TypeError(
                f"auth must be a method such as auth.keys(…), not {given!r}. Users sign in with "
                "auth=auth.issuer(URL, users=…)."
            )
    return methods
