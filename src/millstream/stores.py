"""Write your own store: a `Backend` with a `Log`, a `Map`, and `charge`. To share access to a `Map`, see `Claim`.

The docstrings of these three are the contract. `UsageCounter` implements `charge` for a process that holds all data
itself. A package registers its store as an entry point in the group ``millstream.stores``. The entry
point's name is the URL's scheme, and its function takes the URL and returns a backend.

Example:
    >>> def open_shelf(url: str) -> Backend:  # "shelf" in the entry points: Server(store="shelf://…")
    ...     return ShelfBackend(url)
"""

from millstream._stores.base import (
    EPHEMERAL,
    ONCE_SECONDS,
    Backend,
    Bus,
    Entry,
    EntryRepeated,
    Gap,
    Index,
    Log,
    Map,
    OwnerQuotaExceeded,
    Position,
    StoreFull,
    StoreUnavailable,
    StreamSealed,
)
from millstream._stores.memory.store import MemoryMap, UsageCounter
from millstream._stores.rates import (
    MARK_BYTES,
    Charge,
    ChargeResult,
    ConcurrencySlot,
    Quota,
    RateCharge,
    owner_for,
    share_for,
)
from millstream._stores.store import Store
from millstream._stores.workers import Claim, read_again

__all__ = [
    "EPHEMERAL",
    "MARK_BYTES",
    "ONCE_SECONDS",
    "Backend",
    "Bus",
    "Charge",
    "ChargeResult",
    "Claim",
    "ConcurrencySlot",
    "Entry",
    "EntryRepeated",
    "Gap",
    "Index",
    "Log",
    "Map",
    "MemoryMap",
    "OwnerQuotaExceeded",
    "Position",
    "Quota",
    "RateCharge",
    "Store",
    "StoreFull",
    "StoreUnavailable",
    "StreamSealed",
    "UsageCounter",
    "owner_for",
    "read_again",
    "share_for",
]
