"""The limits of one running server: made where something is limited, shared where the store is, shown where somebody
looks.
"""

from typing import TYPE_CHECKING

from millstream._app.definition import Definition
from millstream._server.dispatch import Dispatcher
from millstream._stores.base import Store

if TYPE_CHECKING:
    from millstream._app.throttle import Throttle
    from millstream._limits.pool import Pool
    from millstream._server.observing.observer import Observer
    from millstream.auth._guard import Guard


class Limited:
    """What counts. A server without any limits and without a guard imports none of it."""

    __slots__ = ("_definition", "_pool", "_store", "_throttle")

    def __init__(self, definition: Definition, store: Store) -> None:
        # Configuration
        self._definition = definition
        self._store = store
        # Process
        self._throttle: Throttle | None = None
        self._pool: Pool | None = None

    def gate(self, dispatcher: Dispatcher) -> None:
        """Put the limits in front of every call, if there are any. A tool that is added later may bring the first."""
        definition = self._definition
        if dispatcher.gate is None and definition.limited:
            from millstream._app.throttle import Throttle  # noqa: PLC0415  only where something is limited

            self._throttle = Throttle(definition.settings, definition.registry, self._store, self._trips())
            dispatcher.gate = self._throttle.gate()

    def guard(self, guard: "Guard") -> None:
        """Have the other workers know of wrong credentials, and of whatever else sign-ins count."""
        if self._store.shared:
            from millstream.auth._method import Counting  # noqa: PLC0415  only where somebody has to sign in

            guard.pool = self._trips()
            for each in guard.methods:
                if isinstance(each, Counting):
                    each.share(guard.pool)

    def show(self, observer: "Observer") -> None:
        """The metrics of limits."""
        read = observer.registry.read
        read("counter", "hub_rate_limited_total", "Calls that a limit refused.", self._refused, ("policy",))
        why = "The store doesn't answer, so this worker counts its part of the limits alone."
        read("gauge", "hub_limits_alone", why, self._alone, merge="max")

    async def close(self) -> None:
        """Give back what calls held, and end what is under way."""
        if self._pool is not None:
            await self._pool.close()

    def _trips(self) -> "Pool":
        if self._pool is None:
            from millstream._limits.pool import Pool  # noqa: PLC0415  only where something is limited

            self._pool = Pool(self._store.rates)
        return self._pool

    def _refused(self) -> dict[tuple[str, ...], float]:
        if self._throttle is None:
            return {}
        return {(policy,): count for policy, count in self._throttle.refused.items()}

    def _alone(self) -> dict[tuple[str, ...], float]:
        return {(): int(self._pool is not None and self._pool.away)}
