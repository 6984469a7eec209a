"""How requests to the hub are refused, in one table for HTTP and WebSockets."""

from millstream._protocol.errors import INVALID_PARAMS, OVERLOADED
from millstream._server.refusals import STORE_REFUSALS, Refusal, Refusals
from millstream.hub import EventTooLarge, Forbidden, InvalidName, LimitExceeded

PUBLICATION = "The event {} published."
"""Whether an event was published, for `find_refusal`."""
RETRY_SECONDS = 5
"""How long a client should wait before it repeats a request."""
REFUSALS: Refusals = {
    **STORE_REFUSALS,
    InvalidName: Refusal(400, INVALID_PARAMS),
    Forbidden: Refusal(403, -32003),
    EventTooLarge: Refusal(413, INVALID_PARAMS),
    LimitExceeded: Refusal(503, OVERLOADED, can_retry=True),
}
REFUSED: tuple[type[Exception], ...] = tuple(REFUSALS)
