"""How exceptions are reported to the sender of a request, in tables for the transports, for tasks, and for programs.

Whoever catches the exceptions of the table calls `find_refusal` or `refusal_error`. Texts that name the requested
operation are written where it's known.
"""

from collections.abc import Mapping

from msgspec import Struct

from millstream._protocol.errors import INVALID_PARAMS, OVERLOADED, ProtocolError
from millstream._stores.base import StoreFull, StoreUnavailable
from millstream.hub import EventTooLarge, Forbidden, InvalidName, LimitExceeded


class Refusal(Struct, frozen=True):
    """The response to a request that raised an exception."""

    status: int
    """HTTP status."""
    code: int
    """JSON-RPC error code."""
    text: str = ""
    """Replaces the exception's own text, which may name a server."""
    outcome: str = ""
    """Says whether the requested change was made, such as ``wasn't``. Empty if the exception's text is enough."""
    can_retry: bool = False
    """Whether the same request can succeed later."""
    is_trouble: bool = False
    """Whether the operator has to act."""

    @property
    def head(self) -> bytes:
        """The header lines of its HTTP response."""
        return b"retry-after: %d\r\n" % RETRY_SECONDS if self.can_retry else b""


RETRY_SECONDS = 5
"""How long a client should wait before it repeats a request."""
REFUSALS: Mapping[type[Exception], Refusal] = {
    InvalidName: Refusal(400, INVALID_PARAMS),
    Forbidden: Refusal(403, -32003),
    EventTooLarge: Refusal(413, INVALID_PARAMS),
    LimitExceeded: Refusal(503, OVERLOADED, can_retry=True),
    StoreFull: Refusal(503, OVERLOADED, "The store is full.", "wasn't", can_retry=True, is_trouble=True),
    StoreUnavailable: Refusal(
        503,
        OVERLOADED,
        "The store didn't respond in time.",
        "may or may not have been",
        can_retry=True,
        is_trouble=True,
    ),
}
REFUSED: tuple[type[Exception], ...] = tuple(REFUSALS)


def find_refusal(exc: Exception, change: str = "") -> tuple[Refusal, str]:
    """Return how to report an exception, and the text: ``find_refusal(exc, "The event {} published.")``

    Args:
        exc: An instance of a class in `REFUSED`.
        change: The sentence about the requested change, with a placeholder for `Refusal.outcome`.
    """
    refusal = next(REFUSALS[each] for each in type(exc).__mro__ if each in REFUSALS)
    sentences = [refusal.text or str(exc)]
    if change and refusal.outcome:
        sentences.append(change.format(refusal.outcome))
    return refusal, " ".join(sentences)


def refusal_error(exc: Exception, text: str = "") -> ProtocolError:
    """Return the JSON-RPC error for an exception, with a text that replaces the one of `find_refusal`.

    Other statuses than 503 would tell clients that their credentials or messages are wrong.
    """
    refusal, found = find_refusal(exc)
    return ProtocolError(refusal.code, text or found, status=refusal.status if refusal.can_retry else 0)
