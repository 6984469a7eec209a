"""The caller's view of registered items, shared by the handlers."""

from typing import Any

from millstream._server.calls.access import granted_scopes
from millstream._server.calls.call import Call
from millstream._server.features.registry import Registry
from millstream._server.handlers.params import page_decoder, read

_NONE = frozenset[str]()


def list_page(registry: Registry, kind: str, call: Call) -> bytes:
    """Return one page of the descriptions of a kind: the cached page, or one created for the call.

    Raises:
        ProtocolError: INVALID_PARAMS, for an unknown cursor.
    """
    cursor = read(page_decoder, call).cursor
    return registry.page(
        kind,
        call.revision,
        cursor,
        granted_scopes(call) if registry.has_scopes else None,
        registry.hidden_names(kind, call.principal) if kind in registry.conditional else _NONE,
    )


def sees(call: Call, item: Any) -> bool:
    """Return whether the caller sees a registered item. A hidden item looks like a missing one."""
    return item.visible is None or bool(item.visible(call.principal))
