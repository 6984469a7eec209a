import importlib
import json
import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from benches import __main__ as command
from benches import compare, fixed_rate, http_load, processes, report, targets
from benches.adopt import __main__ as adopt
from benches.cases import BROADCASTS, CASES, PUBLISHED
from benches.endurance import slope
from benches.measure import Figures
from benches.targets import TARGETS
from benches.traffic import ROWS
from benches.wire import KINDS, REQUESTS, Kind, call_lines, recorded
from cases import for_each

pytestmark = pytest.mark.check


def test_measurements_named_in_the_docs_can_be_imported() -> None:
    docs = Path(__file__).parent.parent / "docs"
    text = "".join(path.read_text("utf-8") for path in docs.rglob("*.md"))
    named = set(re.findall(r"python -m (benches\.\w+)", text))
    assert "benches.stores" in named
    for name in named:
        importlib.import_module(name)


def figures(*rates: float) -> Figures:
    return Figures([{"rate": rate, "cpu_us": 1e6 / rate} for rate in rates])


@for_each("kind", KINDS.values(), ids=KINDS)
def test_bench_requests_have_matching_ids(kind: Kind) -> None:
    body = kind.body.replace("@", "1000001")
    if "Transfer-Encoding: chunked" in kind.whole:
        size, body, last, *_ = body.split("\r\n")
        assert (int(size, 16), last) == (len(body.encode()), "0")
    request = json.loads(body)
    assert request.get("channel") or request["method"].startswith("notifications/") or request["id"] == 1000001
    assert kind.expect != "sum" or request["params"]["arguments"] == {"a": 1000001, "b": 1}


def test_recordings_name_their_client_and_accept_compression() -> None:
    paths = list(REQUESTS.glob("*.http"))
    assert paths
    for path in paths:
        source, _, requests = path.read_text("utf-8").partition("\n\n")
        assert re.match(r"# \S+ v?\d+\.\d+", source), path
        assert "### " in requests, path
        for request in requests.split("### ")[1:]:
            method, head = request.split("\n", 1)
            assert head.startswith("POST /mcp HTTP/1.1\n"), path
            assert f'"method":"{method}"' in head.replace(": ", ":"), path
            assert "accept-encoding: " in head.lower() or path.stem.startswith("rust"), path


def test_each_row_changes_only_the_setting_in_its_title() -> None:
    plain = ROWS["plain-2026"].kind
    assert ROWS["reconnect"].kind.body == ROWS["cloudflare"].kind.body == plain.body
    assert recorded("nethttp-2026-07-28").body in ROWS["chunked"].kind.body
    assert "content-length" not in ROWS["chunked"].kind.whole.lower()
    assert (
        len(json.loads(ROWS["long-any"].kind.body.replace("@", "1"))["params"]["arguments"]["text"].encode()) > 10_000
    )
    assert not ROWS["umlauts"].kind.body.isascii()
    for row in ROWS.values():
        assert row.target in TARGETS
        assert row.kind.expect == "sum" or row.kind.reply or "notifications/" in row.kind.body


def test_documented_comparison_can_be_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[list[str], int]] = []
    monkeypatch.setattr(command, "alone", lambda options, names: measured.append((names, options.rounds)) or 0)
    page = command.PAGE.read_text("utf-8")
    arguments = re.search(r"(?m)^\$ \.venv/bin/python -m benches (.*)$", page)
    assert arguments is not None
    monkeypatch.setattr(sys, "argv", ["benches", *arguments[1].split()])
    assert command.main() == 0
    assert measured == [
        (["text-16k", "text-16k-typescript", "text-16k-go", "text-16k-nginx", "text-16k-plain", "chunked"], 3)
    ]


def test_both_compared_trees_contain_the_package(tmp_path: Path) -> None:
    assert compare.trees(processes.ROOT) == {"this": compare.OWN, "other": compare.OWN}
    with pytest.raises(processes.BenchError, match="contains no package"):
        compare.trees(tmp_path)


@for_each(
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
def test_response_size_is_estimated(examined: tuple[int, int], timed: tuple[int, int], fine: bool) -> None:
    first, second = (
        http_load.bytes_per_answer(f"Requests/sec: 1\nTOTALS answers={answers} bytes={read}\n")
        for answers, read in (examined, timed)
    )
    assert http_load.agree(first, second) == fine
    with pytest.raises(processes.BenchError):
        http_load.bytes_per_answer("TOTALS answers=0 bytes=100\n")


def test_stdio_lines_have_unique_ids() -> None:
    assert [json.loads(line)["id"] for line in call_lines(7, 3)] == [7, 8, 9]


def test_bench_cases_refer_to_known_targets() -> None:
    for case in CASES.values():
        assert set(case.targets) <= set(TARGETS)
        assert case.targets[0].startswith(("ours", "adopted"))
        assert set(case.budgets) | set(case.cpu_budgets) <= set(case.targets[1:])
        assert not case.kind or case.kind in {*KINDS, "client-http", "client-stdio"}


def test_broadcast_cases_refer_to_known_targets() -> None:
    for case in BROADCASTS.values():
        assert set(case.targets) <= set(TARGETS)
        assert case.targets[0].startswith(("ours", "adopted"))
        assert set(case.budgets) <= set(case.targets[1:])
    assert {case.subscribers for case in BROADCASTS.values() if not case.websocket} == {100, 1_000, 5_000, 10_000}


def test_broadcast_budget_uses_ratios_and_memory() -> None:
    rounds = {"ours-hub": (130_000, 8.5), "bare-sse": (150_000, 0.5), "fastapi": (30_000, 50.0)}
    results = {
        "broadcast-5000": {
            name: Figures([{"rate": rate, "cpu_us": 1e6 / rate, "kib": kib}]) for name, (rate, kib) in rounds.items()
        }
    }
    assert [verdict.kept for verdict in report.verdicts(results)] == [True, False, False]


def test_endurance_without_measurements_fails() -> None:
    failed = {"ours-hub": Figures(error="the stalled reader was not cut as slow")}
    results = {"stalled": failed, "mixed": failed}
    assert [(verdict.measured, verdict.kept) for verdict in report.verdicts(results)] == [("no figure", False)] * 2
    assert "the stalled reader was not cut" in report.tables(results)


def test_memory_slope_is_a_linear_fit() -> None:
    assert slope([(float(second), 40.0 + second / 100) for second in range(60)]) == pytest.approx(0.01)
    assert slope([(0.0, 40.0)]) == 0.0


def test_ratios_are_medians_over_rounds() -> None:
    results = {"session": {"ours": figures(200, 2000, 90), "mcp": figures(10, 50, 1), "fastmcp": figures(1, 1, 1)}}
    (verdict,) = report.verdicts(results)
    assert verdict.measured == "40.0×"
    assert verdict.by_cpu == "40.0×"
    assert verdict.kept


def test_servers_without_measurements_fail_the_budget() -> None:
    results = {"session": {"ours": Figures(error="did not start"), "mcp": figures(10), "fastmcp": figures(1)}}
    (verdict,) = report.verdicts(results)
    assert verdict.measured == "no figure"
    assert not verdict.kept
    assert "did not start" in report.tables(results)


def test_cpu_ratios_decide_if_the_budget_requires_it() -> None:
    ours, rust = Figures([{"rate": 50.0, "cpu_us": 10.0}]), Figures([{"rate": 100.0, "cpu_us": 15.0}])
    results = {"call": {"ours": ours, "rust": rust}}
    (verdict,) = report.verdicts(results)
    assert (verdict.title, verdict.measured, verdict.by_cpu) == (
        "tools/call, 2026-07-28 / Rust SDK 3.11, by CPU time", "50%", "150%",
    )  # fmt: skip
    assert verdict.kept
    assert "| Rust SDK 3.11 | 100 | 50% | 150% |" in report.tables(results)
    rust.rounds[0]["cpu_us"] = 12.0
    assert not report.verdicts(results)[0].kept


def test_fixed_rate_is_half_of_the_maximum_then_the_same_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    def send(_: object, kind: Kind, seconds: float, connections: int, rate: float) -> dict[str, float]:
        rates.append(rate)
        return {"call_p50_ms": rate / 10, "call_p99_ms": rate / 5, "load_cpu_us": 25.0}

    most = http_load.Load(8_000.0, 1.0, 2.0, 120.0, 97.0)
    monkeypatch.setattr(http_load, "drive", lambda *_: most)
    monkeypatch.setattr(fixed_rate, "send", send)
    server = processes.Running(None, 0, Path(), 0.0)  # type: ignore[arg-type]
    found = fixed_rate.drive(server, KINDS["wait"], 1, 256)
    assert rates == [4_000, 100]
    assert found == fixed_rate.FixedRate(8_000, 120, 400, 800, 10, 20, 10)


def test_fixed_rate_table_shows_medians_of_latencies() -> None:
    def rounds(*p99s: float) -> Figures:
        one = {"rate": 900.0, "cpu_us": 40.0, "half_p50": 1.0, "same_p50": 2.0, "same_p99": 3.0, "load": 5.0}
        return Figures([one | {"half_p99": p99} for p99 in p99s])

    text = report.tables({"fixed-wait": {"ours-traffic": rounds(9, 30, 11), "fastmcp-traffic": rounds(80, 70, 700)}})
    assert "**a tool that waits 10 ms, at a fixed rate**" in text
    assert "| millstream | 900 |  |  | 40.0 | 1.00 | 11.00 | 2.00 | 3.00 | 5 |" in text
    assert "| fastmcp 4.2 | 900 | 100% | 100% | 40.0 | 1.00 | 80.00 | 2.00 | 3.00 | 5 |" in text


def test_one_run_repeats_the_rows_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PUBLISHED:
        assert name in {*CASES, *BROADCASTS, "start"}
    peers = {"rust-traffic", "mcp-traffic", "fastmcp-traffic"}
    for name in ("real-plain-2026", "real-wait", "fixed-plain-2026", "fixed-wait"):
        assert peers < set(CASES[name].targets)
    page = (processes.ROOT / "docs" / "performance.md").read_text("utf-8")
    arguments = re.search(r'make bench ARGS="(.*)"', page)
    assert arguments is not None
    chosen: list[list[str]] = []
    monkeypatch.setattr(command, "measure", lambda _, names: chosen.append(names) or 0)
    monkeypatch.setattr(sys, "argv", ["benches", *arguments[1].split()])
    assert command.main() == 0
    assert set(chosen[0]) == set(PUBLISHED)


def test_table_rows_have_a_cell_per_column() -> None:
    failed = {name: Figures(error="did not start") for name in ("ours", "rust")}
    text = report.tables({"call": failed, "broadcast-100": {"ours-hub": failed["ours"], "nchan": figures(1)}})
    tables = [[line.count("|") for line in part.splitlines() if line.startswith("|")] for part in text.split("\n\n")]
    assert max(map(len, tables)) > 2
    assert all(len(set(rows)) <= 1 for rows in tables), text


def test_unavailable_rivals_are_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, target in targets.TARGETS.items():
        if target.program is not None:
            absent = replace(target.program, path=Path("nowhere"))
            monkeypatch.setitem(targets.TARGETS, name, replace(target, program=absent))
    lines = targets.left_out()
    assert [line.partition(" is left out: ")[0] for line in lines] == [
        "Go SDK 1.8", "LiteLLM 1.108", "Rust SDK 3.11", "mcp-go 1.2", "nginx + Nchan",
    ]  # fmt: skip
    assert not targets.present("rust")
    assert targets.present("ours")
    # Without its row a rival has no budget either; one that is there and gave no figure keeps none.
    assert report.verdicts({"call": {"ours": figures(10)}}) == []
    assert [one.kept for one in report.verdicts({"call": {"ours": figures(10), "rust": Figures(error="x")}})] == [False]


def test_rival_locks_have_versions_and_checksums() -> None:
    folder = processes.ROOT / "benches"
    wanted = tomllib.loads((folder / "rust" / "Cargo.toml").read_text("utf-8"))["dependencies"]
    locked = tomllib.loads((folder / "rust" / "lock").read_text("utf-8"))["package"]
    assert [package["name"] for package in locked if "checksum" not in package] == ["bench"]
    assert not any("source" in package for package in locked)
    exact = {(package["name"], f"={package['version']}") for package in locked}
    assert {(name, entry["version"]) for name, entry in wanted.items()} <= exact
    modules = re.findall(r"^\t(\S+) (v\S+)", (folder / "go" / "go.mod").read_text("utf-8"), re.MULTILINE)
    sums = (folder / "go" / "go.sum").read_text("utf-8")
    assert len(modules) > 2
    assert [name for name, version in modules if f"{name} {version} h1:" not in sums] == []


def test_rival_names_show_locked_versions() -> None:
    folder = processes.ROOT / "benches"
    rmcp = tomllib.loads((folder / "rust" / "Cargo.toml").read_text("utf-8"))["dependencies"]["rmcp"]["version"]
    assert rmcp.startswith("=" + TARGETS["rust"].name.split()[-1] + ".")
    modules = (folder / "go" / "go.mod").read_text("utf-8")
    litellm = (processes.ROOT / "requirements" / "litellm.txt").read_text("utf-8")
    assert f"\nlitellm=={TARGETS['litellm'].name.split()[-1]}." in litellm
    for name, module in (("go", "modelcontextprotocol/go-sdk"), ("mcp-go", "mark3labs/mcp-go")):
        assert f"{module} v{TARGETS[name].name.split()[-1]}." in modules


def test_go_rivals_use_one_core_and_a_large_heap() -> None:
    rivals = [target for target in TARGETS.values() if target.program in {targets.GO, targets.MCP_GO}]
    assert len(rivals) == 12
    for each in rivals:
        assert {("GOMAXPROCS", "1" if each.pinned else "4"), ("GOGC", "400")} <= set(each.environment)


def test_report_replaces_only_its_own_tables() -> None:
    page = "# Performance\n"
    for python, text in [("3.11", "one"), ("3.14", "two"), ("3.11", "three"), ("3.14", "four")]:
        page = command.placed(page, python, f"{text}\n")
    eleven, fourteen = (command.MARK.format(python) for python in ("3.11", "3.14"))
    assert page == f"# Performance\n\n{eleven}\nthree\n\n{fourteen}\nfour\n"


def test_page_has_a_table_for_published_servers() -> None:
    found = adopt.ROWS.search(adopt.PAGE.read_text("utf-8"))
    assert found is not None
    assert found[0].startswith("| package |")
    assert found[0].count("identical") > 20
