"""What tools, prompts, resources and templates of a function share: how it is called, and what is said if it fails."""

import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Any

from millstream._protocol.errors import Cancelled, Declined, ProtocolError
from millstream._protocol.suggesting import refuse_unknown
from millstream.compat.fastmcp._injection import Making, RunInThread, current
from millstream.compat.fastmcp._signatures import Signature
from millstream.compat.fastmcp._ways import Ways


class OfFunction:
    """An item of a server that a function stands behind."""

    def __init__(
        self,
        signature: Signature,
        ways: Ways,
        *,
        title: str | None = None,
        description: str | None = None,
        icons: Sequence[Any] | None = None,
        meta: dict[str, Any] | None = None,
        tags: set[str] | None = None,
        enabled: bool = True,
    ) -> None:
        self.signature = signature
        self.ways = ways
        self.name: str = signature.name
        self.title = title
        self.description: Any = signature.description if description is None else description
        self.icons = icons
        self.meta = meta
        self.tags: set[str] = set(tags or ())
        self.enabled: bool = enabled

    @classmethod
    def options(cls) -> set[str]:
        """The names of what a program may say of such an item."""
        makers = (getattr(cls, "from_function"), cls.__init__, OfFunction.__init__)  # noqa: B009
        given = (each for maker in makers for each in inspect.signature(maker).parameters.values())
        return {each.name for each in given if each.default is not each.empty} - {"ways"}

    @property
    def fn(self) -> Callable[..., Any]:
        """The function."""
        return self.signature.function

    @property
    def context_kwarg(self) -> str | None:
        """The parameter that gets the context."""
        return self.signature.context

    @property
    def key(self) -> str:
        """What the item is found by."""
        return self.name


WITHOUT_EFFECT = frozenset(("version", "app", "task", "serializer"))
"""Options of fastmcp that the door takes and that change nothing."""
GUARDS = {
    "auth": "Ask get_access_token() in the function, or register it with @mcp.engine.tool(scopes=…)",
    "security": "Values that lead out of a folder are always refused; leave the option out if that is enough",
}
"""Options of fastmcp that keep somebody from something, and what does that here."""


def known(item: type[OfFunction], options: dict[str, Any]) -> dict[str, Any]:
    """The options that the door has for such an item.

    Raises:
        TypeError: nobody has one of the others, or without it more would be allowed than the program says.
    """
    for name, instead in GUARDS.items():
        if options.get(name):
            raise TypeError(f"{name}=… isn't supported here, and without it more would be allowed. {instead}.")
    known = {
        name: value
        for name, value in options.items()
        if name not in WITHOUT_EFFECT and name not in GUARDS and value is not None
    }
    refuse_unknown(item.__name__, known, item.options(), {})
    return known


@contextmanager
def inside(context: Any) -> Generator[None]:
    """A context is the current one inside the block; without one, whichever is stays."""
    if context is None:
        yield
        return
    token = current.set(context)
    try:
        yield
    finally:
        current.reset(token)


@contextmanager
def failing(what: str) -> Generator[None]:
    """What goes wrong inside the block is a ValueError with this text; what our engine says itself passes."""
    try:
        yield
    except (ProtocolError, Declined, Cancelled):
        raise
    except Exception as error:
        raise ValueError(f"{what}: {error}") from error


async def call_function(signature: Signature, values: dict[str, Any], thread: RunInThread | None) -> Any:
    """Call a function with everything it wants; a plain function in a thread, if one is given."""
    if signature.context is not None:
        values[signature.context] = current.get(None)
    async with AsyncExitStack() as stack:
        making = Making(stack, dict(values), thread)
        for name, injected in signature.injected.items():
            values[name] = await injected.value(making)
        function = signature.function
        if thread is None or inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            value = function(**values)
        else:
            value = await thread(_plainly, function, values)
        if inspect.isawaitable(value):
            value = await value
        if inspect.isasyncgen(value):
            return [each async for each in value]
        return list(value) if inspect.isgenerator(value) else value


def _plainly(function: Callable[..., Any], values: dict[str, Any]) -> Any:
    value = function(**values)
    return list(value) if inspect.isgenerator(value) else value
