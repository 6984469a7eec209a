"""One page of a list: the prepared one, or one that is made for the call."""

from millstream.server.calls.access import granted
from millstream.server.calls.call import Call
from millstream.server.features.registry import Registry
from millstream.server.handlers.params import page_decoder, read


async def list_page(registry: Registry, kind: str, call: Call) -> bytes:
    """The members of the page that a call asks for.

    Raises:
        ProtocolError: INVALID_PARAMS for a cursor that is not ours.
    """
    cursor = read(page_decoder, call).cursor
    if registry.lists is not None:
        made = await registry.lists(kind, call)
        if made is not None:
            return registry.encode_list(kind, made, call.revision)
    return registry.page(kind, call.revision, cursor, granted(call) if registry.scoped else None)
