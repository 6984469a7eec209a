"""How transports report exceptions that the sender of a request can act on, in one table.

Transports catch the exceptions of a table and call `find_refusal`. None of them names an exception of the store.
"""

from collections.abc import Mapping

from msgspec import Struct

from millstream._protocol.errors import OVERLOADED
from millstream._stores.base import StoreFull, StoreUnavailable


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


Refusals = Mapping[type[Exception], Refusal]

STORE_REFUSALS: Refusals = {
    StoreFull: Refusal(503, OVERLOADED, "The store is full.", "wasn't", can_retry=True),
    StoreUnavailable: Refusal(
        503, OVERLOADED, "The store didn't respond in time.", "may or may not have been", can_retry=True
    ),
}


def find_refusal(refusals: Refusals, exc: Exception, change: str = "") -> tuple[Refusal, str]:
    """Return how to report an exception, and the text: ``find_refusal(STORE_REFUSALS, exc, "The event {} published.")``

    Args:
        refusals: The table, which has the exception's class or a base of it.
        exc: The exception.
        change: The sentence about the requested change, with a placeholder for `Refusal.outcome`.
    """
    refusal = next(refusals[each] for each in type(exc).__mro__ if each in refusals)
    sentences = [refusal.text or str(exc)]
    if change and refusal.outcome:
        sentences.append(change.format(refusal.outcome))
    return refusal, " ".join(sentences)
