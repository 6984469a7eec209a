"""The arithmetic of the benchmarks: what is sent, what a ratio is, and that a missing figure keeps no budget.

No time is measured here.
"""

import json

import pytest

from benches import report
from benches.cases import CASES
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
