"""The store interface for limits: rates, quotas, and slots, decided atomically across all workers.

A rate is a GCRA rate limit: an amount per period, which may be used in one burst. A quota counts until a given time. A
slot is held until it's released or its worker is dead. A share is a portion of a kind's space, for keys that an owner
can create in any number. The key contains the share, so stores need not know kinds or clients.
"""

from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256

from msgspec import Struct

SHARE = "~"
"""The character that begins the share in a key, after the colon. The first dot ends the share."""
_UNMARKED = frozenset({"session", "task", "taskcall", "result", "oauth-new", "oauth-pending", "connection-pending"})
"""Kinds whose keys older versions wrote without this character. Redis and NATS find a value by its key and its
share."""
PART = 2
"""A share may take a kind's space divided by this number."""
MARK_BYTES = 16
"""Maximum size of a small value, such as a tombstone, for which space is reserved, in bytes."""
_RESERVED_PART = 16
"""The space of a kind divided by this number is reserved for small values. Those of a share may exceed its limit by as
much."""
_SLACK = 1e-6
"""Tolerance for rounding errors of sums."""


def owner_for(key: str) -> str:
    """Return the share of a key, such as ``~ada`` for ``session:~ada.81b5``, or an empty string if it has none.

    Args:
        key: A key of a `Map`.
    """
    kind, _, rest = key.partition(":")
    share, dot, _ = rest.partition(".")
    return share if dot and share != SHARE and (share.startswith(SHARE) or kind in _UNMARKED) else ""


def rooms_for(key: str, value: bytes, max_bytes: int, *, lossy: bool) -> dict[str, int]:
    """Return the space in bytes that a value can use, by share. The empty share is the key's whole kind."""
    reserved, share = len(value) <= MARK_BYTES or lossy, owner_for(key)
    rooms = {"": max_bytes if reserved else max_bytes - max_bytes // _RESERVED_PART}
    return {share: share_room(value, max_bytes, lossy=lossy), **rooms} if share else rooms


def share_room(value: bytes, max_bytes: int, *, lossy: bool) -> int:
    """Return the space in bytes that one share of a kind can use with a value."""
    is_mark = len(value) <= MARK_BYTES and not lossy
    return max_bytes // PART + (max_bytes // _RESERVED_PART if is_mark else 0)


@lru_cache(maxsize=4096)
def share_for(owner: str) -> str:
    """Return the share of an owner, with which keys of any kind can begin:
    ``f"com.example/cart:{share_for(owner)}.{id}"``.

    The values of one share may take at most half of the space for their kind, so an owner can't use it up. The share
    contains a hash, so the store sees neither addresses nor principals. In a key without a share, don't let the part
    after the colon begin with text from a client: it could name another owner's share.

    Args:
        owner: The owner, such as `Call.owner`.
    """
    return SHARE + urlsafe_b64encode(sha256(owner.encode("utf-8", "surrogatepass")).digest()[:9]).decode()


class RateCharge(Struct, frozen=True, gc=False, array_like=True, tag=0):
    """An amount per period."""

    key: str
    count: int
    seconds: int
    cost: float = 1.0
    """The amount. A negative one gives back what was taken."""
    most: float = 1.0
    """The maximum amount to take if it's available, for callers that will soon need more."""


class Quota(Struct, frozen=True, gc=False, array_like=True, tag=1):
    """An amount that may be used until a time on the store's clock."""

    key: str
    count: int
    until: float
    cost: float = 1.0


class ConcurrencySlot(Struct, frozen=True, gc=False, array_like=True, tag=2):
    """A place among a limited number of concurrent holders."""

    key: str
    count: int
    holder: str
    """An identifier that is unique among the slots that the worker holds."""


Charge = RateCharge | Quota | ConcurrencySlot


class ChargeResult(Struct, frozen=True, gc=False, array_like=True):
    """The result of one charge."""

    wait: float
    """Seconds until there is enough, or 0. For slots, which are freed at unknown times, it's `SLOT_WAIT`."""
    remaining: float
    """The remaining amount of the key, never below 0."""
    amount: float = 0.0
    """The amount taken. Nothing is taken if any charge of the call must wait."""


SLOT_WAIT = 1.0


def pace_wait(full_at: float, now: float, count: int, seconds: int, cost: float) -> float:
    """Return the seconds until a rate allows a cost, or 0. The rate is fully recovered at `full_at`."""
    missing = full_at - now - seconds + seconds / count * min(cost, count)
    return missing if missing > _SLACK else 0.0


def drop_paces(
    full_at: dict[str, float], maximum: int, now: float, kind_of: Callable[[str], str] = lambda key: ""
) -> None:
    """Drop fully recovered rates, then the older half of the most frequent kind if there are still too many.

    So many rates of one kind, such as proofs, don't displace those of other kinds.

    Args:
        full_at: Time at which each rate is fully recovered, by key, in order of first use.
        maximum: Number of rates below which unrecovered ones stay.
        now: The time.
        kind_of: Returns the kind of a key.
    """
    for key in [key for key, at in full_at.items() if at <= now]:
        del full_at[key]
    if len(full_at) >= maximum:
        kind, count = Counter(map(kind_of, full_at)).most_common(1)[0]
        for key in [key for key in full_at if kind_of(key) == kind][: (count + 1) // 2]:
            del full_at[key]


def check_pace(pace: RateCharge, full_at: float, now: float) -> tuple[ChargeResult, float]:
    """Return the result of a charge to a rate that's fully recovered at `full_at`, and the new `full_at`."""
    full_at, each = max(now, full_at), pace.seconds / pace.count
    room = pace.seconds - (full_at - now)
    amount = max(pace.cost, min(pace.most, room // each))
    wait = pace_wait(full_at, now, pace.count, pace.seconds, pace.cost)
    return _charge_result(wait, room / each + _SLACK, amount), max(now, full_at + each * amount)


def check_quota(quota: Quota, used: float, now: float) -> ChargeResult:
    """Return the result for a quota of which an amount is used."""
    room = quota.count - used
    enough = min(quota.cost, quota.count) <= room + _SLACK
    return _charge_result(0.0 if enough else max(_SLACK, quota.until - now), room, quota.cost)


def check_slot(slot: ConcurrencySlot, used: int, *, is_held: bool) -> ChargeResult:
    """Return the result for a slot, given how many of the key's slots are used. The worker may already hold it."""
    free = slot.count - used
    if is_held:
        return _charge_result(0.0, free, 0.0)
    return _charge_result(0.0 if free > 0 else SLOT_WAIT, free, 1.0)


def refuse_all(results: Sequence[ChargeResult]) -> list[ChargeResult] | None:
    """Return the results if a charge must wait, so nothing may be taken, else None."""
    if all(each.wait <= 0 for each in results):
        return None
    return [ChargeResult(each.wait, each.remaining + each.amount) for each in results]


def quota_key(quota: Quota) -> str:
    """Return the key of the value that counts a quota."""
    return f"quota:{quota.key}"


def _charge_result(wait: float, room: float, amount: float) -> ChargeResult:
    """Return the result of a charge. If it's allowed, `remaining` is the remainder."""
    return ChargeResult(wait, max(0.0, room)) if wait > 0 else ChargeResult(0.0, max(0.0, room - amount), amount)
