"""The arithmetic of the benchmarks: what is sent, what a ratio is, and that a missing figure keeps no budget.

No time is measured here.
"""

import json

import pytest

from benches import http_load, processes, report
from benches.cases import BROADCASTS, CASES
from benches.endurance import slope
from benches.measure import Figures
from benches.targets import TARGETS
from benches.wire import KINDS, Kind, call_lines


def figures(*rates: float) -> Figures:
    return Figures([{"rate": rate, "cpu_us": 1e6 / rate} for rate in rates])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_request_is_json_whose_id_and_first_number_agree(kind: Kind) -> None:
    """The load generator checks an answer by its id alone: the sum is the id plus one."""
    request = json.loads(kind.body.replace("@", "1000001"))
    assert request["id"] == 1000001
    assert kind.expect != "sum" or request["params"]["arguments"] == {"a": 1000001, "b": 1}


@pytest.mark.parametrize(
    ("examined", "timed", "fine"),
    [
        ((1_008, 401_184 + 64 * 200), (5_607, 2_231_586 + 64 * 200), True),
        ((1_008, 401_184), (5_607, 2_231_586 + 64 * 397), True),
        ((50_000, 50_000 * 398), (250_000, 250_000 * 398 + 64 * 397), True),
        ((50_000, 50_000 * 398), (250_000, 250_000 * 402), False),
        ((50_000, 50_000 * 398), (250_000, 250_000 * 394), False),
        ((1_008, 1_008 * 398), (5_607, 5_607 * 370), False),
    ],
)
def test_the_size_of_an_answer_is_known_up_to_the_answers_that_were_under_way(
    examined: tuple[int, int], timed: tuple[int, int], fine: bool
) -> None:
    """A fixed defect: 64 half-read streams in a thousand answers looked like answers of another size."""
    first, second = (
        http_load.bytes_per_answer(f"Requests/sec: 1\nTOTALS answers={answers} bytes={read}\n")
        for answers, read in (examined, timed)
    )
    assert http_load.agree(first, second) == fine
    with pytest.raises(processes.BenchError):
        http_load.bytes_per_answer("TOTALS answers=0 bytes=100\n")


def test_lines_for_stdio_have_ids_of_their_own() -> None:
    """DESIGN 9: load uses unique request ids."""
    assert [json.loads(line)["id"] for line in call_lines(7, 3)] == [7, 8, 9]


def test_every_case_names_known_targets_and_compares_with_its_own() -> None:
    """Ours comes first, and a budget is about a server that the case measures."""
    for case in CASES.values():
        assert set(case.targets) <= set(TARGETS)
        assert case.targets[0].startswith("ours")
        assert set(case.budgets) <= set(case.targets[1:])
        assert not case.kind or case.kind in KINDS


def test_every_broadcast_names_known_targets_and_its_peers_run_in_the_same_case() -> None:
    """DESIGN 9: peers run beside us in one go, and budgets are about servers that the case measures."""
    for case in BROADCASTS.values():
        assert set(case.targets) <= set(TARGETS)
        assert case.targets[0].startswith("ours")
        assert set(case.budgets) <= set(case.targets[1:])
    assert {case.subscribers for case in BROADCASTS.values() if not case.websocket} == {100, 1_000, 5_000, 10_000}


def test_a_broadcast_is_judged_by_its_ratios_and_by_the_memory_of_a_subscriber() -> None:
    """DESIGN 9: at 5,000 subscribers, 80 % of a bare loop, five times the peer, 8 KiB each."""
    rounds = {"ours-hub": (130_000, 8.5), "bare-sse": (150_000, 0.5), "fastapi": (30_000, 50.0)}
    results = {
        "broadcast-5000": {
            name: Figures([{"rate": rate, "cpu_us": 1e6 / rate, "kib": kib}]) for name, (rate, kib) in rounds.items()
        }
    }
    assert [verdict.kept for verdict in report.verdicts(results)] == [True, False, False]


def test_endurance_without_a_figure_keeps_no_budget() -> None:
    """A stalled reader that was not cut, or a run that broke off, must not look like a success."""
    failed = {"ours-hub": Figures(error="the stalled reader was not cut as slow")}
    results = {"stalled": failed, "mixed": failed}
    assert [(verdict.measured, verdict.kept) for verdict in report.verdicts(results)] == [("no figure", False)] * 2
    assert "the stalled reader was not cut" in report.tables(results)


def test_the_slope_of_memory_is_that_of_the_line_through_all_samples() -> None:
    """One high sample at the end is not a leak; what rises steadily is."""
    assert slope([(float(second), 40.0 + second / 100) for second in range(60)]) == pytest.approx(0.01)
    assert slope([(0.0, 40.0)]) == 0.0


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    """DESIGN 9: a machine that is slow for one round is slow for both sides of it."""
    results = {"session": {"ours": figures(200, 2000, 90), "mcp": figures(10, 50, 1), "fastmcp": figures(1, 1, 1)}}
    (verdict,) = report.verdicts(results)
    assert verdict.measured == "40.0×"
    assert verdict.by_cpu == "40.0×"
    assert verdict.kept


def test_a_server_that_gave_no_figure_keeps_no_budget() -> None:
    """A benchmark that measured nothing must not look like a success."""
    results = {"session": {"ours": Figures(error="did not start"), "mcp": figures(10), "fastmcp": figures(1)}}
    (verdict,) = report.verdicts(results)
    assert verdict.measured == "no figure"
    assert not verdict.kept
    assert "did not start" in report.tables(results)
