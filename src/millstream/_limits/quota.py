"""Quotas per calendar day or month, by the store's clock, in UTC."""

import re
from datetime import UTC, datetime, timedelta

from msgspec import Struct

from millstream._limits.gcra import Rate
from millstream._limits.hashed_keys import hash_key
from millstream._stores.rates import Quota

_QUOTA = re.compile(r"([1-9][0-9]{0,8}) ?/ ?(day|month)")
_MONTH = 32
"""Days to add to the first of a month to reach the next month."""


class Period(Struct, frozen=True):
    """A day or month, in seconds since 1970."""

    start: float
    end: float


class CalendarQuota:
    """A number of actions per day or month."""

    name = "quota"

    def __init__(self, text: str) -> None:
        """Parse ``10000/day`` or ``100000/month``.

        Raises:
            ValueError: The text isn't a quota.
        """
        match = _QUOTA.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} isn't a quota. Use a number with day or month, such as 10000/day.")
        self.count = int(match[1])
        self._monthly = match[2] == "month"
        self._now = Period(0.0, 0.0)

    @property
    def rate(self) -> Rate:
        """The quota in its text form."""
        return Rate(self.count, round(self._now.end - self._now.start))

    def at(self, key: str, cost: float, now: float) -> Quota:
        """Return the charge for a key at the present time."""
        if not self._now.start <= now < self._now.end:
            self._now = period(now, monthly=self._monthly)
        start, end = self._now.start, self._now.end
        return Quota(hash_key(f"{self.name} {start:.0f}", key), self.count, end, cost)


def period(now: float, *, monthly: bool) -> Period:
    """Return the day or month that contains a time."""
    start = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if not monthly:
        return Period(start.timestamp(), (start + timedelta(days=1)).timestamp())
    start = start.replace(day=1)
    return Period(start.timestamp(), (start + timedelta(days=_MONTH)).replace(day=1).timestamp())
