"""`completion/complete`: values for an argument of a prompt or a variable of a resource template."""

import inspect
from collections.abc import Mapping
from typing import Any

import msgspec

from millstream._protocol.errors import INVALID_PARAMS, ProtocolError
from millstream._protocol.jsonrpc import encode
from millstream._protocol.notifications import CompleteRequestParams, Completion, Reference
from millstream._server.calls.access import check_scopes
from millstream._server.calls.call import Call
from millstream._server.calls.services import Services
from millstream._server.dispatch import Handler
from millstream._server.features.completers import CompleterFunction
from millstream._server.features.prompts import Prompt
from millstream._server.features.registry import Registry
from millstream._server.features.resources import Template
from millstream._server.handlers.list_pages import sees
from millstream._server.handlers.params import read_texts

MAX_VALUES = 100


_decoder = msgspec.json.Decoder(CompleteRequestParams)


class CompletionHandlers:
    """The handler of `completion/complete`."""

    def __init__(self, registry: Registry, services: Services) -> None:
        self._registry = registry
        self._services = services

    def table(self) -> Mapping[str, Handler]:
        return {"completion/complete": self.complete}

    async def complete(self, call: Call) -> bytes:
        """Return values that begin with the typed text, from the registered completer or else the parameter's type."""
        params = read_texts(_decoder, call)
        if self._registry.completes is not None:
            return b'"completion":%b' % encode(await self._registry.completes(call, params))
        item, reference = self._find(params.ref, call)
        if params.argument.name not in item.parameters:
            raise ProtocolError(INVALID_PARAMS, f"Unknown argument: {params.argument.name[:128]!r}")
        members = await item.complete(params, call)
        if members is not None:
            return members
        known = params.context.arguments if params.context is not None and call.revision.completion_context else {}
        completer = self._registry.complete_from(reference, params.argument.name)
        if completer is None:
            values = [each for each in item.choices(params.argument.name) if each.startswith(params.argument.value)]
        else:
            values = await self._ask(completer, params.argument.value, known, call)
        shown = values[:MAX_VALUES]
        return b'"completion":%b' % encode(Completion(shown, len(values), len(values) > len(shown)))

    def _find(self, reference: Reference, call: Call) -> tuple[Prompt | Template, str]:
        if reference.type == "ref/prompt":
            prompt = self._registry.prompts.get(reference.name)
            if prompt is not None and sees(call, prompt):
                check_scopes(call, prompt.scopes)
                return prompt, reference.name
            raise ProtocolError(INVALID_PARAMS, f"Unknown prompt: {reference.name[:128]!r}")
        if reference.type == "ref/resource":
            template = self._registry.templates.get(reference.uri)
            if template is not None and sees(call, template):
                check_scopes(call, template.scopes)
                return template, reference.uri
            raise ProtocolError(INVALID_PARAMS, f"Unknown resource template: {reference.uri[:256]!r}")
        raise ProtocolError(INVALID_PARAMS, "Invalid params: ref.type must be ref/prompt or ref/resource")

    async def _ask(self, completer: Any, value: str, known: dict[str, str], call: Call) -> list[str]:
        if isinstance(completer, CompleterFunction):
            found = await completer.run(value, known, call)
        elif inspect.iscoroutinefunction(completer):
            found = await completer(value, known)
        else:
            found = await self._services.threads.run(completer, value, known, owner=call.owner)
        return [str(each) for each in found]
