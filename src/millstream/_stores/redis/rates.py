"""`Rates` in Redis: one script for all charges of a call, by Redis' own clock. Seats name their workers, so those of a
dead one free themselves.
"""

from collections.abc import Sequence
from typing import Any, Final

from millstream._stores.rates import Charge, Decision, Pace, Quota, Seat, Taken
from millstream._stores.redis.commands import Commands
from millstream._stores.redis.keys import Keys
from millstream._stores.redis.scripts import script
from millstream._stores.redis.standing import Standing

_MICRO: Final = 1e6
_KINDS: Final[dict[type, str]] = {Pace: "p", Quota: "q", Seat: "s"}


class RedisRates:
    """The limits. Taking isn't tried again when a connection breaks: it could be charged twice."""

    lasting = True

    def __init__(self, commands: Commands, keys: Keys, standing: Standing) -> None:
        self._commands = commands
        self._keys = keys
        self._standing = standing

    async def take(self, charges: Sequence[Charge]) -> Decision:
        keys = self._keys
        names = [keys.leases, *(keys.rate(_KINDS[type(charge)], charge.key) for charge in charges)]
        args: list[Any] = [self._standing.me]
        for charge in charges:
            args += _arguments(charge)
        workers, *found = await self._commands.run(script("take"), (names, args), again=False)
        triples = zip(found[::3], found[1::3], found[2::3], strict=True)
        taken = [Taken(int(wait) / _MICRO, float(left), float(amount)) for wait, left, amount in triples]
        return Decision(taken, max(1, int(workers)))

    async def leave(self, seats: Sequence[Seat]) -> None:
        names = [self._keys.rate("s", seat.key) for seat in seats]
        me = self._standing.me
        await self._commands.run(script("leave"), (names, [f"{me} {seat.holder}" for seat in seats]))


def _arguments(charge: Charge) -> tuple[Any, ...]:
    """A charge as five arguments."""
    if isinstance(charge, Pace):
        return "p", charge.count, int(charge.seconds * _MICRO), repr(charge.cost), repr(charge.most)
    if isinstance(charge, Quota):
        return "q", charge.count, int(charge.until * _MICRO), repr(charge.cost), ""
    return "s", charge.count, 0, 1, charge.holder
