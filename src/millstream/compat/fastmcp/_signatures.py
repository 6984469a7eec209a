"""Signatures of functions: the type engine that decodes arguments, and the context parameter."""

import functools
import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import msgspec
from msgspec import Struct

from millstream._server.functions.arguments import decode_json_texts
from millstream._server.functions.dependencies import context_in, hints_of, name_of
from millstream._server.functions.engine import Engine, engine_of
from millstream._server.functions.parameters import parameter_of
from millstream._server.functions.problems import explain

current: ContextVar[Any] = ContextVar("millstream_compat_context")
"""The context of the current call."""


class ContextMark:
    """Base class of `Context`. A parameter annotated with a subclass receives the context."""


class WrongArguments(ValueError):
    """The arguments don't match the function's signature."""


class Signature(Struct, frozen=True):
    """The signature of a registered function."""

    function: Callable[..., Any]
    name: str
    description: str
    engine: Engine
    context: str | None
    """Name of the parameter that receives the context."""
    returns: Any
    """The return annotation; `inspect.Signature.empty` if it's missing."""

    @property
    def schema(self) -> dict[str, Any]:
        """JSON Schema of the arguments."""
        return self.engine.input_schema

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters, except the context."""
        return self.engine.struct.__struct_fields__

    def read(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Convert arguments to the function's keyword arguments.

        Some hosts send lists and objects as JSON strings, so strings are decoded if the type isn't a string.

        Raises:
            WrongArguments: the arguments don't match.
        """
        values = dict(arguments)
        try:
            decode_json_texts(self.schema, values)
            made = self.engine.convert(values, lax=True)
        except msgspec.ValidationError as error:
            raise WrongArguments(explain(self.engine.problems(error, values, lax=True), self.schema)) from error
        except msgspec.DecodeError as error:
            raise WrongArguments(str(error)) from error
        return {name: getattr(made, name) for name in self.parameters}

    async def call(self, values: dict[str, Any], context: Any) -> Any:
        """Call the function. Plain functions run in a worker thread."""
        if self.context is not None:
            values[self.context] = context
        token = current.set(context)
        try:
            if inspect.iscoroutinefunction(self.function):
                return await self.function(**values)
            value = await context.run_in_thread(functools.partial(self.function, **values))
            return await value if inspect.isawaitable(value) else value
        finally:
            current.reset(token)


def signature_of(function: Callable[..., Any], name: str | None = None) -> Signature:
    """Return the signature of a function.

    Args:
        function: any callable.
        name: name to use instead of the function's name.

    Raises:
        TypeError: clients can't send a value for a parameter.
        ValueError: the function is a lambda without a name.
    """
    own = name or name_of(function)
    if own == "<lambda>":
        raise ValueError("You must provide a name for lambda functions")
    signature, hints = inspect.signature(function), hints_of(function)
    context, _ = context_in(signature, hints, (ContextMark,), own)
    parameters = [
        parameter_of(each, hints, {}, "tool", own) for each in signature.parameters.values() if each.name != context
    ]
    returns = hints.get("return", inspect.Signature.empty)
    return Signature(function, own, function.__doc__ or "", engine_of(own, parameters), context, returns)
