import json
import random
from collections.abc import Iterator

import pytest

from cases import for_each
from cli.test_faults import run
from client.misbehaving_servers import ReceivedRequest, misbehaving, with_discovery
from millstream._cli.commands.bench import LatencyTally, format_duration
from processes import ROOT, SharedServer, run_command, share_server

SHOP = str(ROOT / "tests" / "client" / "shop.py")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    with share_server(lambda port: run_command(SHOP, port), tmp_path_factory.mktemp("shop")) as running:
        yield running


def test_percentiles_are_within_one_percent() -> None:
    tally, source = LatencyTally(), random.Random(7)
    values = sorted(source.lognormvariate(-6, 1) for _ in range(20_000))
    for value in values:
        tally.add(value)
    for share in (50, 90, 99, 99.9):
        exact = values[min(len(values) - 1, int(len(values) * share / 100))]
        assert tally.percentile(share) == pytest.approx(exact, rel=0.011)
    assert tally.percentile(100) == values[-1]
    spread = tally.spread(10)
    assert len(spread) <= 10
    assert sum(count for _, count in spread) == 20_000
    assert spread[-1][0] == values[-1]


def test_percentiles_accept_one_value_and_none() -> None:
    tally = LatencyTally()
    assert (tally.spread(10), tally.percentile(99)) == ([], 0.0)
    tally.add(0.0)
    assert tally.percentile(99) == 0.0


@for_each(("seconds", "text"), [(0.0001234, "0.123 ms"), (0.0123, "12.3 ms"), (0.2346, "235 ms"), (2, "2 s")])
def test_durations_have_three_digits(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.server
async def test_bench_counts_every_call(server: SharedServer) -> None:
    url = f"http://127.0.0.1:{server.port()}/mcp"
    words = ["--tool", "count", "a=1", "b=2", "--connections", "3", "--seconds", "0.2", "--json"]
    code, out, error = await run("bench", url, *words)
    assert (code, error) == (0, "")
    found = json.loads(out)
    assert (found["connections"], found["errors"], found["server"]) == (3, {}, "shop")
    assert found["calls"] >= 3
    assert 0 < found["latencyMs"]["p50"] <= found["latencyMs"]["p99.9"] <= found["latencyMs"]["max"]
    assert found["callsPerSecond"] == pytest.approx(found["calls"] / found["seconds"], rel=0.01)


@pytest.mark.server
async def test_bench_groups_errors_by_message(server: SharedServer) -> None:
    url = f"http://127.0.0.1:{server.port()}/mcp"
    code, out, error = await run("bench", url, "--tool", "fail", "--seconds", "0.1", "--connections", "1")
    assert code == 1
    assert "errors\t" in out
    assert "× The tool reported an error: Internal error" in error
    code, out, error = await run("bench", url, "a=1")
    assert (code, out) == (2, "")
    assert "--tool" in error


async def test_dead_server_is_not_called_in_a_tight_loop() -> None:
    asked: list[str] = []

    async def die(request: ReceivedRequest) -> None:
        if request.method == "tools/list":
            await request.result({"tools": [{"name": "x", "inputSchema": {"type": "object"}}]})
            return
        asked.append(request.method)
        raise ConnectionError

    async with misbehaving(with_discovery(die)) as there:
        code, out, _ = await run("bench", there.url, "--tool", "x", "--seconds", "0.25", "--connections", "1", "--json")
    assert code == 1
    assert json.loads(out)["calls"] == 0
    assert 1 <= len(asked) <= 4
