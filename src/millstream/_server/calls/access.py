"""Access by scope: the items that a caller can list and use.

A caller that starts this program and talks to it directly, over stdio or in the same process, has every scope.
"""

from millstream._protocol.principal import EVERYTHING, Principal
from millstream._server.calls.call import Call

_DIRECT = frozenset(("stdio", "memory"))
_NONE = frozenset[str]()


def granted_scopes(call: Call) -> frozenset[str] | None:
    """Return the scopes of a caller, or None for a caller with full access.

    Args:
        call: The caller's call.

    Example:
        ``scopes = granted_scopes(call)``, and then ``scopes is None or "orders:read" in scopes``.
    """
    return None if call.transport in _DIRECT else scopes_of(call.principal)


def scopes_of(principal: Principal | None) -> frozenset[str] | None:
    """Return the scopes of a remote caller, or None for a caller with full access.

    Args:
        principal: The caller, or None without sign-in.
    """
    scopes = _NONE if principal is None else principal.scopes
    return None if EVERYTHING in scopes else scopes


def check_scopes(call: Call, needed: frozenset[str]) -> None:
    """Refuse a caller without the scopes of an item: ``check_scopes(call, frozenset({"orders:write"}))``

    Args:
        call: The caller's call.
        needed: Scopes, all of which the caller needs.

    Raises:
        ProtocolError: INSUFFICIENT_SCOPE, HTTP 403. The error names all scopes, so the client can request them at once.
    """
    if needed:
        scopes = granted_scopes(call)
        if scopes is not None and not needed <= scopes:
            raise call.services.scope_error(needed)
