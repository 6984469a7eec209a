import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from backend_stores import MemoryStore
from cases import for_each
from hub_parts import Clock, Outlet, encode_line
from millstream.hub import Hub, HubLimits
from millstream.hub._channels import matches
from property_settings import examples


class Reconnects(RuleBasedStateMachine):
    """Publications on three channels and one client that is cut at any time and resumes with its last id."""

    PATTERNS = (("a",), ("a", "b"), ("*",), (">",), ("b", "c.*"), ("c.>", "a"))
    limits = HubLimits()

    @initialize(channels=st.sampled_from(PATTERNS))
    def begin(self, channels: tuple[str, ...]) -> None:
        self.runner = asyncio.Runner()
        self.store = MemoryStore(clock=Clock())
        self.hub = self.open()
        self.channels = channels
        self.outlet: Outlet | None = None
        self.expected: list[str] = []
        self.got: list[str] = []
        self.last = ""
        self.gaps = 0
        self.count = 0
        self.connect()

    def open(self) -> Hub:
        hub = Hub(self.store, self.limits, clock=Clock())
        self.runner.run(hub.open())
        return hub

    @rule(channel=st.sampled_from(["a", "b", "c.x", "c.y.z"]), times=st.integers(1, 6), named=st.booleans())
    def publish(self, channel: str, times: int, named: bool) -> None:
        for _ in range(times):
            self.count += 1
            data = str(self.count)
            self.runner.run(self.hub.publish(channel, data, id=f"own {data}" if named else None))
            if any(matches(pattern, channel) for pattern in self.channels):
                self.expected.append(data)

    @rule()
    def connect(self) -> None:
        if self.outlet is None:
            self.outlet = Outlet()
            self.runner.run(self.hub.subscribe(self.channels, self.outlet, encode=encode_line, last_event_id=self.last))

    @rule(keep=st.integers(0, 200))
    def cut(self, keep: int) -> None:
        """The connection breaks; the client got the first `keep` of the lines at most."""
        if self.outlet is None:
            return
        self.outlet.close()
        lines = b"".join(self.outlet.chunks).splitlines(keepends=True)[: max(keep, 1)]
        seen = Outlet()
        seen.chunks = lines
        self.got = self.got + seen.data
        self.gaps += len(seen.gaps)
        if "unknown" in seen.gaps:
            self.got = seen.data
        self.last = seen.last_id or self.last
        self.outlet = None

    @rule()
    def refresh(self) -> None:
        self.runner.run(self.hub.refresh())

    @rule()
    def restart(self) -> None:
        """Another worker takes over; the store stays."""
        self.cut(200)
        self.runner.run(self.hub.close())
        self.hub = self.open()

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        self.connect()
        self.cut(10_000)
        self.runner.run(self.hub.close())
        self.runner.close()
        self.check()

    def check(self) -> None:
        assert self.gaps == 0
        assert self.got == self.expected


class ReconnectsWithLittleRoom(Reconnects):
    """The same where journal and histories hold little, so that some events are gone.

    Where the id itself is gone, the hub cannot know what the client has: the gap says so, and it begins anew.
    """

    limits = HubLimits(journal=6, history=3)

    def check(self) -> None:
        numbers = list(map(int, self.got))
        assert numbers == sorted(set(numbers)), "in order, none twice"
        assert set(self.got) <= set(self.expected)
        assert self.gaps or self.got == self.expected, "nothing is lost in silence"


@pytest.mark.many
@for_each("machine", [Reconnects, ReconnectsWithLittleRoom])
def test_resuming_after_any_interruption_delivers_each_event_once(machine: type[RuleBasedStateMachine]) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine, settings=settings(max_examples=examples(5), stateful_step_count=25)
    )
