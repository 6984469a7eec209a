"""Events of a server that clients subscribe to (SEP-3415, a draft).

Example:
    ``events = Events(draft="SEP-3415")``, then ``Server("shop", serve="hub", extensions=[events])``, and
    ``@events.event("order.paid")`` over the class of the payload.
"""

from millstream.extensions.events._catalog import MAX_BODY, EventType
from millstream.extensions.events._extension import EventOptions, Events

__all__ = ["MAX_BODY", "EventOptions", "EventType", "Events"]
