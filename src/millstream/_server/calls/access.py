"""What the scopes of a caller cover: which items it sees in lists, and which it may use.

Whoever starts this program and talks to it directly, over standard input or in the same process, may do everything.
"""

from millstream._protocol.principal import EVERYTHING, Principal
from millstream._server.calls.call import Call

_DIRECT = frozenset(("stdio", "memory"))
_NONE = frozenset[str]()


def granted_scopes(call: Call) -> frozenset[str] | None:
    """The scopes of a caller; None for one who may do everything."""
    return None if call.transport in _DIRECT else scopes_of(call.principal)


def scopes_of(principal: Principal | None) -> frozenset[str] | None:
    """The scopes of somebody who asks from elsewhere; None for one who may do everything."""
    scopes = _NONE if principal is None else principal.scopes
    return None if EVERYTHING in scopes else scopes


def check_scopes(call: Call, needed: frozenset[str]) -> None:
    """Refuse a caller without the scopes of an item.

    Raises:
        ProtocolError: INSUFFICIENT_SCOPE, HTTP 403; it names all of them, so that a client asks for them in one go.
    """
    if needed:
        scopes = granted_scopes(call)
        if scopes is not None and not needed <= scopes:
            raise call.services.lacking(needed)
