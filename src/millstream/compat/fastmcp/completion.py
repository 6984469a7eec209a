"""Completion by one function for all arguments, in terms of ours, where each argument has its own."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from millstream.compat import types


def complete_for(kind: str, key: str, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """What completes one argument: ``f(value, arguments) -> list[str]``.

    Args:
        kind: prompts or templates.
        key: name or URI template.
        name: of the argument.
        function: the program's, with reference, argument and context.
    """
    reference: Any
    if kind == "prompts":
        reference = types.PromptReference(name=key)
    else:
        reference = types.ResourceTemplateReference(uri=key)

    async def complete(value: str, known: Mapping[str, str]) -> list[str]:
        context = types.CompletionContext(arguments=dict(known)) if known else None
        found = function(reference, types.CompletionArgument(name=name, value=value), context)
        if inspect.isawaitable(found):
            found = await found
        if found is None:
            return []
        return list(found if isinstance(found, list | tuple) else found.values)

    return complete
