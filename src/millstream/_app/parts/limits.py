"""Rate limits, as gates in front of calls and of the hub's routes."""

from typing import TYPE_CHECKING

from millstream._app.definition import Definition
from millstream._app.parts import OwnPart
from millstream._parts import Host

if TYPE_CHECKING:
    from millstream._app.throttle import Throttle


class LimitsPart(OwnPart):
    """Charges calls and requests to their callers. Imported only by servers with limits."""

    name: str = "limits"

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self._throttle: Throttle | None = None

    async def open(self, host: Host) -> None:
        """Add the gate if there are any limits. A tool that is added later may bring the first one."""
        self._throttle = None

        def begin(kind: str) -> None:
            if self._throttle is None and kind == "tools" and self.definition.limited:
                from millstream._app.throttle import Throttle  # noqa: PLC0415  only where something is limited

                self._throttle = throttle = Throttle(host.settings, host.registry, host.store, host.pool)
                host.gate(throttle.gate())
                host.gate_requests(throttle.admit)

        begin("tools")
        host.on_change(begin)
        if host.metrics is not None:
            read = host.metrics.read
            read("counter", "hub_rate_limited_total", "Calls refused by a limit.", self._refusal_counts, ("policy",))
            why = "The store is unavailable, so this worker enforces its share of the limits alone."
            read(
                "gauge",
                "hub_limits_alone",
                why,
                lambda: {(): int(host.open_pool is not None and host.open_pool.away)},
                merge="max",
            )

    def _refusal_counts(self) -> dict[tuple[str, ...], float]:
        if self._throttle is None:
            return {}
        return {(policy,): count for policy, count in self._throttle.refused.items()}
