"""Decoding of `params`, shared by the handlers."""

from typing import TypeVar

import msgspec
from msgspec import UNSET, Struct

from millstream._protocol.errors import INVALID_PARAMS, ProtocolError
from millstream._protocol.jsonrpc import MAX_MEMBERS, too_many_members
from millstream._protocol.notifications import InputResponseRequestParams, PaginatedRequestParams
from millstream._server.calls.call import Call
from millstream._server.calls.client_questions import read_responses
from millstream._server.calls.context import open_rounds

S = TypeVar("S", bound=Struct)


def read(decoder: "msgspec.json.Decoder[S]", call: Call) -> S:
    """Decode the parameters of a call.

    Raises:
        ProtocolError: INVALID_PARAMS.
    """
    try:
        return decoder.decode(call.params or b"{}")
    except (msgspec.DecodeError, RecursionError) as exc:
        raise ProtocolError(INVALID_PARAMS, f"Invalid params: {exc}") from exc


def read_texts(decoder: "msgspec.json.Decoder[S]", call: Call) -> S:
    """Decode parameters with an object of texts, each of which becomes an object.

    Raises:
        ProtocolError: INVALID_PARAMS, also for too many members.
    """
    if too_many_members(call.params):
        raise ProtocolError(INVALID_PARAMS, f"Invalid params: more than {MAX_MEMBERS:,} members")
    return read(decoder, call)


def take_rounds(call: Call, params: InputResponseRequestParams) -> None:
    """Store the answers and state of earlier rounds, in the era that has them. The call must already have its name.

    Raises:
        ProtocolError: INVALID_PARAMS, also for a state that is invalid or belongs to another call.
    """
    if call.revision.handshake:
        return
    if params.input_responses is not UNSET:
        call.responses = read_responses(bytes(params.input_responses))
    if not isinstance(params.request_state, str):
        raise ProtocolError(INVALID_PARAMS, "Invalid params: requestState must be a string")
    call.state = params.request_state
    if call.state:
        open_rounds(call)


page_decoder: "msgspec.json.Decoder[PaginatedRequestParams]" = msgspec.json.Decoder(PaginatedRequestParams)
