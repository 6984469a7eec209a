"""`prompts/list` and `prompts/get`."""

from collections.abc import Mapping

import msgspec

from millstream._protocol.errors import INVALID_PARAMS, ProtocolError
from millstream._protocol.notifications import GetPromptRequestParams
from millstream._server.calls.access import check_scopes
from millstream._server.calls.call import Call
from millstream._server.dispatch import Handler
from millstream._server.features.registry import Registry
from millstream._server.functions.arguments import ArgumentError
from millstream._server.handlers.list_pages import list_page, sees
from millstream._server.handlers.params import read_texts, take_rounds

_get_decoder = msgspec.json.Decoder(GetPromptRequestParams)


class PromptHandlers:
    """Handlers of the prompt methods."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def table(self) -> Mapping[str, Handler]:
        return {"prompts/list": self.list, "prompts/get": self.get}

    async def list(self, call: Call) -> bytes:
        return list_page(self._registry, "prompts", call)

    async def get(self, call: Call) -> bytes:
        params = read_texts(_get_decoder, call)
        prompt = self._registry.prompts.get(params.name)
        if prompt is None or not sees(call, prompt):
            raise ProtocolError(INVALID_PARAMS, f"Unknown prompt: {params.name[:128]!r}")
        check_scopes(call, prompt.scopes)
        call.name = params.name
        take_rounds(call, params)
        try:
            call.arguments = prompt.read(params.arguments or {})
        except ArgumentError as exc:
            raise ProtocolError(INVALID_PARAMS, str(exc)) from exc
        return prompt.encode(await prompt.run(call.arguments, call), call)
