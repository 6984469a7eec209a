"""What limits ask of a store: paces, quotas and seats, decided for all workers in one step.

A pace is GCRA: so much in so many seconds, all of it at once if need be. A quota counts until a given time. A seat is
held until it's given back or its worker is gone. And a share is a part of the room that a kind of values has, for kinds
of which peers can make any number. No store knows who is limited, or why.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from msgspec import Struct

SHARED: Final = frozenset({"session", "task", "taskcall"})
"""Kinds of values with shares. A key has its share between the colon and the first dot."""
PART: Final = 2
"""The maximum fraction of space for one share."""
MARK_BYTES: Final = 16
"""A value up to this size, such as a tombstone, is a mark."""


def share_of(key: str) -> str:
    """Return the share that a value belongs to: ``ada`` for ``session:ada.81b5``. Empty for one that belongs to
    none.
    """
    kind, _, rest = key.partition(":")
    share, dot, _ = rest.partition(".")
    return share if dot and kind in SHARED else ""


class Pace(Struct, frozen=True, gc=False, array_like=True, tag=0):
    """An amount per period."""

    key: str
    count: int
    seconds: int
    cost: float = 1.0
    most: float = 1.0
    """Take up to this much, if there is so much: for callers who soon need more."""


class Quota(Struct, frozen=True, gc=False, array_like=True, tag=1):
    """An amount until a time, by the store's clock."""

    key: str
    count: int
    until: float
    cost: float = 1.0


class Seat(Struct, frozen=True, gc=False, array_like=True, tag=2):
    """One of a limited number of concurrent holders."""

    key: str
    count: int
    holder: str
    """Which one it is; no two of a worker that are held at a time have the same."""


Charge = Pace | Quota | Seat


class ChargeResult(Struct, frozen=True, gc=False, array_like=True):
    """The result of one charge."""

    wait: float
    """Seconds until there is enough, or 0. For seats, which are freed at unknown times, it's `SEAT_WAIT`."""
    left: float
    """The remaining amount of the key, never below 0."""
    amount: float = 0.0
    """The amount taken. Nothing is taken if any charge of the call must wait."""


class ChargeResults(Struct, frozen=True, gc=False, array_like=True):
    """A backend's results for the charges of one call, in order."""

    taken: list[ChargeResult]
    forgot: float | None = None
    """Seconds since the store forgot a pace of one of these kinds before its time, if it ever did."""


class Decision(Struct, frozen=True, gc=False, array_like=True):
    """A store's results for the charges of one call, in order."""

    taken: list[ChargeResult]
    workers: int
    """The number of workers that share the store, including this one."""
    forgot: float | None = None
    """See `ChargeResults.forgot`."""


SEAT_WAIT = 1.0


class Rates(Protocol):
    """Limits that hold for all workers together."""

    lasting: bool
    """Whether paces survive the end of all workers."""

    async def take(self, charges: Sequence[Charge]) -> Decision:
        """Take from every limit if each has enough, else from none: see `millstream._stores.base.Backend.charge`.

        Raises:
            StoreUnavailable: the store didn't answer in time.
        """
        ...

    async def leave(self, seats: Sequence[Seat]) -> None:
        """Give seats back. A seat that isn't taken isn't an error, and those of a dead worker are free anyway.

        Raises:
            StoreUnavailable: the store didn't answer in time. Call it again.
        """
