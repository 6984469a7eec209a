"""The features of a server: tools, resources, prompts, their registry, and the hooks around them.

`hooks_of` finds the hooks of an object once. `wrap_with_hooks` wraps an item with the hooks for calls when it's
registered, and `MiddlewareChain` wraps a server's handlers with the hooks for lists and whole messages. A server
without hooks has no extra frame.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import msgspec
from msgspec import Struct

from millstream._copies import NotCopyable
from millstream._protocol.errors import INVALID_PARAMS, ProtocolError, ToolError
from millstream._protocol.jsonrpc import Json, encode
from millstream._server.calls.call import Call
from millstream._server.calls.context import Context, shared_context
from millstream._server.functions.msgspec_engine import enc_hook
from millstream._server.functions.plan import ArgumentError

Next = Callable[[Any], Awaitable[Any]]
"""``await next(request)``: the inner part, which returns its result or raises."""
Hook = Callable[[Any, Next], Awaitable[Any]]
Run = Callable[[Any, Call], Awaitable[Any]]
Read = Callable[[Any], Any]
"""Reads arguments: JSON for a tool, or strings for a prompt or template. Raises `ArgumentError` if they're invalid.
"""


class Request(NotCopyable):
    """A tool call, resource read, or prompt request, before it runs.

    Example:
        ``async def on_call(self, request: Request, next: Next): ...``
    """

    __slots__ = ("_arguments", "_before", "_original", "context", "method", "name")

    def __init__(self, method: str, name: str, given: Any, context: Context) -> None:
        self.method: str = method
        """``tools/call``, ``resources/read``, or ``prompts/get``."""
        self.name: str = name
        """The tool's or prompt's name on its own server, without a mount prefix, or the resource's URI."""
        self.context: Context = context
        """The call. ``context.state`` is a dict shared by middleware and the function."""
        self._original = given
        self._arguments: Json | None = None
        self._before = b""

    @property
    def arguments(self) -> Json:
        """The arguments as JSON values. If you change them, they are validated again before the function runs."""
        if self._arguments is None:
            given = self._original
            self._arguments = cast(
                "dict[str, Any]",
                msgspec.json.decode(given)
                if isinstance(given, msgspec.Raw)
                else msgspec.to_builtins(given, enc_hook=enc_hook),
            )
            self._before = encode(self._arguments)
        return self._arguments

    @arguments.setter
    def arguments(self, arguments: Mapping[str, Any]) -> None:
        _ = self.arguments
        self._arguments = dict(arguments)

    def final_arguments(self, read: Callable[[Json], Any]) -> Any:  # as the type engine passes them
        """Return the arguments for the function: the original ones, or read again if middleware changed them.

        Args:
            read: Converts the changed arguments for the function.
        """
        if self._arguments is None or encode(self._arguments) == self._before:
            return self._original
        return read(self._arguments)


class ListRequest(Struct, NotCopyable, eq=False):
    """A request for a page of a list: ``async def on_list(self, request: ListRequest, next: Next): ...``"""

    kind: str
    """tools, prompts, resources, or templates."""
    context: Context


class MessageRequest(Struct, NotCopyable, eq=False):
    """Any request, before its parameters are read.

    Example:
        ``async def on_message(self, request: MessageRequest, next: Next): ...``
    """

    method: str
    params: Json
    """The parameters from the client. The server reads your changes."""
    context: Context


class Middleware:
    """A base class for middleware. Override the hooks that you need. Any object with at least one hook also works.

    Every hook is awaited with a request and ``next``. Its return value is the result, and its exception is the error
    (`ToolError` for a message to the model). A hook that doesn't call ``next`` rejects or answers the request itself.

    Example:
        ``class Timing(Middleware)`` with ``async def on_call(self, request, next)``, then
        ``Server("shop", middleware=[Timing()])``.
    """

    async def on_call(self, request: Request, next: Next) -> Any:  # the function's value
        """Wrap a tool. ``await next(request)`` returns the function's result.

        Args:
            request: The tool's name, its arguments, which you may change, and the `Context` of the call.
            next: The next hook, or the tool itself.
        """
        return await next(request)

    async def on_read(self, request: Request, next: Next) -> Any:  # the function's value
        """Wrap a resource or template. ``await next(request)`` returns the function's result.

        Args:
            request: The URI, the variables of a template, and the `Context` of the call.
            next: The next hook, or the resource itself.
        """
        return await next(request)

    async def on_prompt(self, request: Request, next: Next) -> Any:  # the function's value
        """Wrap a prompt. ``await next(request)`` returns the function's result.

        Args:
            request: The prompt's name, its arguments, which you may change, and the `Context` of the call.
            next: The next hook, or the prompt itself.
        """
        return await next(request)

    async def on_list(self, request: ListRequest, next: Next) -> list[Json]:
        """Wrap a page of a list. ``await next(request)`` returns the descriptions for the client's revision.

        Args:
            request: The kind of the items, and the `Context` of the call.
            next: The next hook, or the list itself.
        """
        items: list[Json] = await next(request)
        return items

    async def on_message(self, request: MessageRequest, next: Next) -> Json:
        """Wrap a request of a method that the server has. ``await next(request)`` returns the members of the result.

        `initialize`, notifications, and requests that are rejected by sign-in, a limit, or a missing client capability
        don't reach it.

        Args:
            request: The method, the parameters, which you may change, and the `Context` of the call.
            next: The next hook, or the handler of the method.
        """
        result: Json = await next(request)
        return result


class Hooks(Struct, frozen=True, eq=False):
    """The hooks of one server, outermost first: ``item.within(hooks)``"""

    home: object = None
    call: tuple[Hook, ...] = ()
    read: tuple[Hook, ...] = ()
    prompt: tuple[Hook, ...] = ()
    list: tuple[Hook, ...] = ()
    message: tuple[Hook, ...] = ()

    @property
    def wide(self) -> bool:
        """Whether there are hooks for lists or messages."""
        return bool(self.list or self.message)

    def for_kind(self, kind: str) -> tuple[Hook, ...]:
        """Return the hooks for calls of one kind of item.

        Args:
            kind: Tools, prompts, or resources.
        """
        mine: tuple[Hook, ...] = getattr(self, _OF_KIND[kind])
        return mine


_NAMES = ("call", "read", "prompt", "list", "message")
_METHODS = {"call": "tools/call", "read": "resources/read", "prompt": "prompts/get"}
_OF_KIND = {"tools": "call", "prompts": "prompt", "resources": "read"}


def hooks_of(middleware: Sequence[object], home: object) -> Hooks:
    """Return the hooks of middleware objects.

    Raises:
        TypeError: An object has no hooks, or a hook isn't asynchronous.
    """
    found: dict[str, tuple[Hook, ...]] = {}
    for each in middleware:
        if isinstance(each, type):
            raise TypeError(f"middleware: {each.__name__} is a class. Pass an instance: {each.__name__}()")
        mine = {name: hook for name in _NAMES if (hook := _hook(each, name)) is not None}
        kind = type(each).__name__
        unknown = {name for name in dir(each) if name.startswith("on_")} - {f"on_{name}" for name in _NAMES}
        if unknown or not mine:
            what = f"has {min(unknown)}" if unknown else "has no hook"
            raise TypeError(f"middleware: {kind} {what}. Hooks are {', '.join(f'on_{name}' for name in _NAMES)}.")
        for name, hook in mine.items():
            found[name] = (*found.get(name, ()), hook)
    return Hooks(home, **found)


def _hook(middleware: object, name: str) -> Hook | None:
    hook = getattr(middleware, f"on_{name}", None)
    if hook is None or getattr(type(middleware), f"on_{name}", None) is getattr(Middleware, f"on_{name}"):
        return None
    if not (inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(getattr(hook, "__call__", None))):  # noqa: B004
        raise TypeError(f"middleware: on_{name} of {type(middleware).__name__} must be `async def`.")
    return cast("Hook", hook)


def chain_hooks(hooks: Iterable[Hook], inside: Next) -> Next:
    """Return one function that runs hooks around `inside`."""
    for hook in reversed(tuple(hooks)):
        inside = _link(hook, inside)
    return inside


def _link(hook: Hook, inside: Next) -> Next:
    return lambda request: hook(request, inside)


def wrap_with_hooks(kind: str, name: str, run: Run, read: Read, hooks: Hooks, *, begins: bool = True) -> Run:
    """Return an item's `run` with its server's hooks around it, or `run` itself if there are none for the kind.

    Args:
        begins: Whether the hooks call the body of the function, not other hooks or dependencies.
    """
    about = _OF_KIND[kind]
    mine = hooks.for_kind(kind)
    if not mine:
        return run
    method, home = _METHODS[about], hooks.home

    def reread(call: Call, arguments: Json) -> Any:
        try:
            return read(encode(arguments) if about == "call" else _texts(arguments))
        except ArgumentError as exc:
            if about == "call" and call.revision.argument_errors_in_result:
                raise ToolError(str(exc)) from exc
            raise ProtocolError(INVALID_PARAMS, str(exc)) from exc

    def run_hooked(arguments: Any, call: Call) -> Awaitable[Any]:
        async def inside(request: Request) -> Any:
            if begins:
                call.begin()
            return await run(request.final_arguments(partial(reread, call)), call)

        item_name = call.name if about == "read" else name
        request = Request(method, item_name, arguments, shared_context(call, home))
        return chain_hooks(mine, inside)(request)

    return run_hooked


def _texts(arguments: Mapping[str, Any]) -> Json:
    """Return the arguments of a prompt or resource, which arrive as strings or lists of strings."""
    return {
        name: value if isinstance(value, str | list) else encode(value).decode()
        for name, value in arguments.items()
        if value is not None
    }
