"""Sampling (`sampling/createMessage`): a server uses the agent's model, if the user approves."""

import contextlib

from millstream._protocol.content import Text
from millstream._protocol.errors import INTERNAL_ERROR, INVALID_PARAMS, ProtocolError
from millstream._protocol.notifications import CreateMessageRequestParams, SampleResult
from millstream.agent._context import chat_messages
from millstream.agent._errors import ModelError
from millstream.agent._limits import Limits
from millstream.agent._model import Message, Model, ModelRequest, Reply
from millstream.agent._person import Approval, Person

_REJECTED = -1
"""Error code of a refusal by the user (MCP 2025-11-25, client/sampling#error-handling)."""
_STOPS = {"stop": "endTurn", "length": "maxTokens"}


async def sample(
    server: str, params: CreateMessageRequestParams, model: Model, person: Person, limits: Limits
) -> SampleResult:
    """Send a server's request to the model.

    Raises:
        ProtocolError: the user refused, the model gave no answer, or the request includes tools.
    """
    if params.tools:
        raise ProtocolError(INVALID_PARAMS, "This client does not support tools in sampling requests")
    messages = chat_messages(params.messages, limits.max_result)
    text = "\n".join(str(message["content"]) for message in messages)
    if not await person.allows(Approval(kind="sampling", server=server, text=text)):
        raise ProtocolError(_REJECTED, "The user did not allow the server to use the model")
    system: list[Message] = [{"role": "system", "content": params.system_prompt}] if params.system_prompt else []
    request = ModelRequest(
        messages=[*system, *messages],
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        stop=params.stop_sequences or (),
    )
    try:
        reply = await _reply(model, request)
    except ModelError as exc:
        raise ProtocolError(INTERNAL_ERROR, str(exc)) from exc
    if reply is None:
        raise ProtocolError(INTERNAL_ERROR, "The model ended its answer without a reply")
    return SampleResult("assistant", Text(reply.text), model.name, _STOPS.get(reply.stop, reply.stop))


async def _reply(model: Model, request: ModelRequest) -> Reply | None:
    async with contextlib.aclosing(model.stream(request)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Reply):
                return piece
    return None
