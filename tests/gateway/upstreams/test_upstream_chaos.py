import contextlib
import gc
import os
import sys
import time
from pathlib import Path

import pytest

from benches.chaos.run import cluster
from benches.chaos.upstream import __file__ as upstream
from benches.chaos.upstreams import UpstreamReport, torment
from benches.processes import family, resident
from fleet import until
from millstream import Client, Server
from patience import WAIT

pytestmark = pytest.mark.server

COMMAND = [sys.executable, "-I", "-S", str(Path(upstream)), "steady"]
CALLS = 150
"""Calls to well-behaved upstreams before the test ends."""
KILLS = 3


async def test_misbehaving_upstreams_do_not_affect_others(tmp_path: Path) -> None:
    report = UpstreamReport()

    def is_enough() -> bool:
        called = all(report.calls[name] for name in ("", "killed", "sessions", "hanging", "flooding", "lying"))
        return called and report.calls.total() >= CALLS and report.kills >= KILLS

    async with cluster(tmp_path / "log", workers=1, program="gateway.py") as running:
        await torment(running, report, clients=5, rate=20, every=0.5, until=is_enough)
        processes = family(running.process.pid)
    assert not report.wrong, report.wrong[:5]
    await until(lambda: not any(map(resident, processes)))


async def serve_sessions(*, sessions: int, upstreams: int, rounds: int) -> list[tuple[int, float]]:
    """Open sessions of a gateway and call every upstream from each. Return processes and MiB after each round.

    Closed sessions contain reference cycles, so they are collected before memory is measured.
    """
    mcp = Server("gateway")
    for number in range(upstreams - 1):
        mcp.upstream(f"up{number}", COMMAND, start_timeout=WAIT)
    mcp.upstream("own", COMMAND, start_timeout=WAIT, isolation="per_session", max_processes=4)
    me = os.getpid()
    others = set(family(me))
    used: list[tuple[int, float]] = []
    async with mcp.running():
        for _ in range(rounds):
            async with contextlib.AsyncExitStack() as stack:
                clients = [
                    await stack.enter_async_context(Client(mcp, revision="2025-06-18", timeout=WAIT))
                    for _ in range(sessions)
                ]
                for client in clients:
                    for number in range(upstreams - 1):
                        assert (await client.call(f"up{number}_echo", text="hello")).text == "hello"
                for client in clients[:3]:
                    assert (await client.call("own_echo", text="hello")).text == "hello"
                gc.collect()
                used.append((len(set(family(me)) - others), resident(me) / 2**20))
    assert set(family(me)) <= others
    return used


async def test_sessions_leave_no_processes_behind_at_the_end() -> None:
    (used,) = await serve_sessions(sessions=200, upstreams=5, rounds=1)
    assert used[0] <= 4 + 4 + 1


@pytest.mark.nightly
async def test_processes_and_memory_stay_constant_for_a_thousand_sessions() -> None:
    end = time.monotonic() + float(os.environ.get("SESSION_MINUTES", "10")) * 60
    first = await serve_sessions(sessions=1000, upstreams=20, rounds=2)
    gc.collect()
    kept = sys.getallocatedblocks()
    while time.monotonic() < end:
        used = await serve_sessions(sessions=1000, upstreams=20, rounds=2)
        assert max(processes for processes, _ in used) <= 19 + 4 + 1
        assert used[-1][1] < first[-1][1] + 20
        gc.collect()
        assert sys.getallocatedblocks() < kept + 2000, "each session leaves something behind"
