"""What this worker is to Redis: its name, the generation of the data that it knows, its attempts, and the store's time.
It does no I/O.
"""

import asyncio
import secrets
import time
from itertools import count
from typing import Final

from millstream._stores.memory.topics import Watchers

PLACES: Final = 1024
"""How many attempts may be under way at once; more of them wait for their turn."""
_STREAMS: Final = 10_000


class Standing:
    """One worker, from the time when its store is opened."""

    __slots__ = (
        "_at", "_free", "_numbers", "_offsets", "_promised", "_room", "_server", "_turn", "epoch", "epochs", "me",
        "run", "settled",
    )  # fmt: skip

    def __init__(self) -> None:
        self.me = ""
        """The worker's name."""
        self.epoch = ""
        self.run = "."
        """The run of the server that answers for the hub's slot, and the turn of its data: when they were settled last.
        A server that comes back with what it had before has an earlier one.
        """
        self.settled = ""
        """The last run that this worker has brought what it remembered, and whose data it reads."""
        self.epochs = Watchers()
        """Told when `epoch` has changed."""
        self._server = ""
        self._turn = ""
        """Empty as long as this worker takes the data as they are."""
        self._promised = 0
        """The turn of a repair in which it said that it brought all it has, until the data are settled."""
        self._numbers = count(1)
        self._free = list(range(PLACES))
        self._room = asyncio.Semaphore(PLACES)
        self._offsets: dict[str, int] = {}
        self._at: tuple[float, float] | None = None

    def rename(self) -> None:
        """Be another worker: whatever was given to the old one is void."""
        self.me = secrets.token_hex(6)

    def serve(self, server: str) -> None:
        """This run of a server answers now.

        To another run it may have promised that it brought everything. What comes from here on breaks that promise. So
        the data here must be settled once more, later than the other server knows: those who come there from here then
        know that the promise doesn't count.
        """
        if server != self._server and self._promised:
            self._turn, self._promised = str(self._promised + 1), 0
        self._server = server
        self.run = f"{server}.{self._turn}"

    def promise(self, turn: str) -> None:
        """It tells the server that it has brought all it has, in the repair of a turn."""
        self._promised = int(turn)

    def turn(self, run: str) -> None:
        """The data are settled, as this run says."""
        self._promised = 0
        self._turn = run.rpartition(".")[2]
        self.run = f"{self._server}.{self._turn}"

    def refuse(self, run: str) -> None:
        """These data lack something: they must be settled once more."""
        self._turn = str(int(run.rpartition(".")[2]) + 1)
        self.run = f"{self._server}.{self._turn}"

    async def take(self) -> tuple[int, int]:
        """A place and a number, by which Redis recognizes an attempt that is made again. `give` the place back."""
        await self._room.acquire()
        return self._free.pop(), next(self._numbers)

    def give(self, place: int) -> None:
        """An attempt is settled."""
        self._free.append(place)
        self._room.release()

    def seen(self, stream: str, offset: int) -> None:
        """A stream has come so far."""
        known = self._offsets.pop(stream, 0)
        self._offsets[stream] = max(known, offset)
        if len(self._offsets) > _STREAMS:
            del self._offsets[next(iter(self._offsets))]

    def floor(self, stream: str) -> int:
        """How far it has come, as far as is known."""
        return self._offsets.get(stream, 0)

    def set_time(self, microseconds: int, asked: float) -> None:
        """Redis said what time it is, to a question of then, by the monotonic clock."""
        now = time.monotonic()
        self._at = (microseconds / 1e6 + (now - asked) / 2, now)

    def time(self) -> float:
        """The time by Redis' clock."""
        if self._at is None:
            return time.time()
        told, at = self._at
        return told + time.monotonic() - at
