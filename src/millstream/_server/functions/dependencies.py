"""`Depends`: parameters that another function fills in, and not the client.

Here is the mark, and how a signature says so. `needs` plans the functions behind the marks; what resolves them when a
call runs is `features.resolving`.
"""

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Annotated, Any, TypeVar, get_args, get_origin, overload

from msgspec import Struct

T = TypeVar("T")


class Dependency(Struct, frozen=True, eq=False):
    """The mark of a parameter that a function fills in."""

    function: Callable[..., Any]
    thread: bool = True
    """A `def` function runs in a worker thread."""


@overload
def Depends(function: Callable[..., AsyncGenerator[T, Any] | AsyncIterator[T]], *, thread: bool = True) -> T: ...
@overload
def Depends(
    function: Callable[..., AbstractAsyncContextManager[T] | AbstractContextManager[T]], *, thread: bool = True
) -> T: ...
@overload
def Depends(function: Callable[..., Generator[T, Any, Any] | Iterator[T]], *, thread: bool = True) -> T: ...
@overload
def Depends(function: Callable[..., Awaitable[T]], *, thread: bool = True) -> T: ...
@overload
def Depends(function: Callable[..., T], *, thread: bool = True) -> T: ...
def Depends(function: Callable[..., Any], *, thread: bool = True) -> Any:  # noqa: N802  it marks a parameter, as a type does
    """Fill in a parameter with what a function returns. Clients never see the parameter.

    The function runs once a call, however many parameters depend on it. It may depend on others, take the `Context`
    (or, as a `def` function, the `SyncContext`), and be `async`. If it yields, what follows the ``yield`` runs when the
    call is over, also when the call failed or was cancelled: the ``yield`` raises then. So does the end of a context
    manager (a function decorated with `contextlib.contextmanager`, or a class that is one).

    Args:
        function: what gives the value.
        thread: a `def` function runs in a worker thread. Pass False if it never blocks: then it takes a `Context`.

    Example:
        ``async def find(isbn: str, shop: Annotated[Shop, Depends(open_shop)]) -> str``, or
        ``shop: Shop = Depends(open_shop)``.
    """
    if not callable(function):
        raise TypeError(f"Depends({function!r}): pass the function itself, without calling it")
    return Dependency(function, thread)


def dependencies_in(signature: inspect.Signature, hints: Mapping[str, Any]) -> dict[str, Dependency]:
    """The parameters that functions fill in: marked by their default or inside ``Annotated``."""
    found: dict[str, Dependency] = {}
    for name, parameter in signature.parameters.items():
        hint = hints.get(name)
        marks = [parameter.default, *(get_args(hint)[1:] if get_origin(hint) is Annotated else ())]
        mark = next((each for each in marks if isinstance(each, Dependency)), None)
        if mark is not None:
            found[name] = mark
    return found
