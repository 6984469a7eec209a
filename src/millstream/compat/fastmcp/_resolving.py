"""`Resolve`: parameters of SDK 2.x that a function fills in, which may ask the client first.

A resolver returns a value, or `Elicit`, `Sample` or `ListRoots`: then the parameter gets what the client answers.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, ClassVar, Generic, TypeVar, get_args, get_origin

from millstream.compat.fastmcp._elicitation import AcceptedElicitation, CancelledElicitation, DeclinedElicitation
from millstream.compat.fastmcp._exceptions import InvalidSignature, ToolError
from millstream.compat.fastmcp._injection import Injected, Making, current, injected_default, is_context, is_union

T = TypeVar("T")

_OUTCOMES = (AcceptedElicitation, DeclinedElicitation, CancelledElicitation)


class Elicit(Generic[T]):
    """Asks the person: a resolver returns ``Elicit("Which size?", Size)``, and the parameter gets a `Size`."""

    def __init__(self, message: str, schema: type[T]) -> None:
        self.message = message
        self.schema = schema

    async def answer(self, context: Any) -> Any:
        """The outcome: accepted, declined or cancelled."""
        try:
            return await context.elicit(self.message, self.schema)
        except ValueError as error:
            raise ToolError("The answer to the question doesn't have the form that was asked for") from error


class Sample:
    """Asks the client's model; the parameter gets a `CreateMessageResult`. The options are those of the protocol."""

    def __init__(self, messages: list[Any], *, max_tokens: int, **options: Any) -> None:
        self.params: Mapping[str, Any] = {"messages": messages, "max_tokens": max_tokens, **options}

    async def answer(self, context: Any) -> Any:
        """What the model says."""
        return _accepted(await context.session.create_message(**self.params))


class ListRoots:
    """Asks for the folders that are open in the client; the parameter gets a `ListRootsResult`."""

    async def answer(self, context: Any) -> Any:
        """The folders."""
        return _accepted(await context.session.list_roots())


def _accepted(value: Any) -> AcceptedElicitation[Any]:
    """A value as an outcome, whatever its type."""
    return AcceptedElicitation[Any].model_construct(data=value)


_MARKERS = (Elicit, Sample, ListRoots)


class Resolve(Injected):
    """``Annotated[Login, Resolve(ask_for_login)]``: the parameter gets what the function gives, or what it asks for.

    The function may take the context, arguments of the tool by their names, and `Resolve` parameters of its own. If the
    person declines, the call fails, unless the parameter is annotated with the outcome: `ElicitationResult[Login]`.
    """

    whole: ClassVar[bool] = False

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__(fn)
        self.fn = fn

    def on(self, annotation: Any) -> "Resolve":
        """The same for a parameter with this annotation."""
        meant = getattr(get_origin(annotation) or annotation, "__value__", annotation)  # an alias has one
        members = get_args(meant) if is_union(meant) else (meant,)
        whole = any(isinstance(each, type) and issubclass(each, _OUTCOMES) for each in members)
        return WholeOutcome(self.fn) if whole else self

    async def value(self, making: Making) -> Any:
        """The value for one parameter.

        Raises:
            ToolError: it is what the person declined to say.
        """
        if self.fn not in making.made:
            making.made[self.fn] = await self._outcome(making)
        found: Any = making.made[self.fn]
        if self.whole:
            return found
        if found.action != "accept":
            raise ToolError(f"The call needs an answer from the person. What came back: {found.action}")
        return found.data

    async def _outcome(self, making: Making) -> Any:
        values: dict[str, Any] = {}
        for parameter in inspect.signature(self.fn, eval_str=True).parameters.values():
            deeper = injected_default(parameter)
            if is_context(parameter.annotation):
                values[parameter.name] = current.get()
            elif deeper is not None:
                values[parameter.name] = await deeper.value(making)
            elif parameter.name in making.arguments:
                values[parameter.name] = making.arguments[parameter.name]
        found = await _called(self.fn, values, making)
        return await found.answer(current.get()) if isinstance(found, _MARKERS) else _accepted(found)


class WholeOutcome(Resolve):
    """`Resolve` for a parameter that wants to see whether the person declined."""

    whole = True


async def _called(function: Callable[..., Any], values: dict[str, Any], making: Making) -> Any:
    waits = any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))
    if making.thread is None or waits:
        found = function(**values)
    else:
        found = await making.thread(lambda: function(**values))
    return await found if inspect.isawaitable(found) else found


# What is checked once


def check_resolvers(
    function: Callable[..., Any], name: str, injected: Mapping[str, Injected], arguments: Collection[str]
) -> None:
    """See that every resolver behind a function can be called.

    Args:
        function: what is registered.
        name: its name.
        injected: its parameters that are filled in.
        arguments: its other parameters.

    Raises:
        InvalidSignature: a resolver needs itself, asks for something that nobody has, or asks two questions; or
            `Resolve` stands inside of a union.
    """
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if get_origin(parameter.annotation) is not Annotated and _holds_resolve(parameter.annotation):
            raise InvalidSignature(
                f"Parameter {parameter.name!r} of {name!r} has Resolve(…) inside of a union: "
                "annotate it as Annotated[T, Resolve(…)]"
            )
    for each in injected.values():
        if isinstance(each, Resolve):
            _check(each.fn, frozenset(arguments), ())


def _check(function: Callable[..., Any], arguments: Collection[str], outer: tuple[Any, ...]) -> None:
    name = getattr(function, "__name__", type(function).__name__)
    if function in outer:
        raise InvalidSignature(f"Resolver {name!r} has a cyclic dependency")
    signature = inspect.signature(function, eval_str=True)
    for parameter in signature.parameters.values():
        deeper = injected_default(parameter)
        if isinstance(deeper, Resolve):
            _check(deeper.fn, arguments, (*outer, function))
        elif deeper is None and not is_context(parameter.annotation) and parameter.name not in arguments:
            raise InvalidSignature(
                f"Resolver {name!r} parameter {parameter.name!r} cannot be resolved: "
                "expected a Context, an Annotated[_, Resolve(...)], or a tool argument by name"
            )
    returns = signature.return_annotation
    arms = get_args(returns) if is_union(returns) else (returns,)
    asking = [each for each in arms if (get_origin(each) or each) in _MARKERS]
    if len(asking) > 1:
        raise InvalidSignature(f"Resolver {name!r} asks {len(asking)} questions: make a resolver for each")


def _holds_resolve(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return any(isinstance(each, Resolve) for each in get_args(annotation)[1:])
    return any(_holds_resolve(each) for each in get_args(annotation))
