"""Completion by the program's one function for all arguments."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, cast

import msgspec

from millstream._protocol.messages import CompleteRequestParams, Completion
from millstream.compat import _types as types
from millstream.compat.fastmcp._injection import RunInThread

MAX_VALUES = 100
"""As many as one answer may have."""


async def completed(
    function: Callable[..., Any], params: CompleteRequestParams, thread: RunInThread = asyncio.to_thread
) -> Completion | None:
    """What the function gives for a reference, an argument and the arguments that have values; None if nothing.

    Args:
        function: ``f(ref, argument, context)``, plain or async.
        params: of the request.
        thread: runs a plain function.
    """
    reference: Any
    if params.ref.type == "ref/prompt":
        reference = types.PromptReference(name=params.ref.name)
    else:
        reference = types.ResourceTemplateReference(uri=params.ref.uri)
    argument = types.CompletionArgument(name=params.argument.name, value=params.argument.value)
    known = params.context.arguments if params.context is not None else None
    context = types.CompletionContext(arguments=dict(known)) if known else None
    if inspect.iscoroutinefunction(function):
        found = await function(reference, argument, context)
    else:
        found = await thread(function, reference, argument, context)
        found = await found if inspect.isawaitable(found) else found
    return None if found is None else _completion(found)


def _completion(found: Any) -> Completion:
    if isinstance(found, list | tuple):
        values = [str(each) for each in cast("list[Any]", found)]
        return Completion(values[:MAX_VALUES], len(values), len(values) > MAX_VALUES)
    wire = found.model_dump(mode="json", by_alias=True, exclude_none=True)
    wire["values"] = wire["values"][:MAX_VALUES]
    return msgspec.convert(wire, Completion)
