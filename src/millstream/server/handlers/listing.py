"""What one caller sees of what is registered: shared by the handlers."""

from typing import Any

from millstream.server.calls.access import granted
from millstream.server.calls.call import Call
from millstream.server.features.registry import Registry
from millstream.server.handlers.params import page_decoder, read

_NONE = frozenset[str]()


def page_for(call: Call, kind: str, registry: Registry) -> bytes:
    """One page of the descriptions of a kind."""
    return registry.page(
        kind,
        call.revision,
        read(page_decoder, call).cursor,
        granted(call) if registry.scoped else None,
        registry.hidden(kind, call.principal) if kind in registry.conditional else _NONE,
    )


def sees(call: Call, item: Any) -> bool:
    """Whether the caller sees an item that is registered; one that is hidden is as one that isn't there."""
    return item.visible is None or bool(item.visible(call.principal))
