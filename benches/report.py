"""Tables of a run in Markdown: the figures of every target, then our ratios with their budgets.

A figure is the median of the rounds; a ratio is the median of the rounds' ratios, never the ratio of medians.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

from benches.cases import BOUNDS, BROADCASTS, CASES, FIXED_RATE, Broadcast, Case
from benches.endurance import CALLS, EVENTS, MIXED, MOST_CHANGE, MOST_SLOPE
from benches.fixed_rate import SAME_RATE
from benches.measure import Figures, Results
from benches.targets import TARGETS

COLUMNS = {"p50": ".2f", "p99": ".2f", "cpu_us": ".1f", "busy": ".0f"}
FIXED_RATE_COLUMNS = {
    "cpu_us": ".1f", "half_p50": ".2f", "half_p99": ".2f", "same_p50": ".2f", "same_p99": ".2f", "load": ".0f",
}  # fmt: skip
BROADCAST_COLUMNS = COLUMNS | {"load": ".0f", "kib": ".1f"}


@dataclass(frozen=True)
class Verdict:
    """One budget and the measurement."""

    title: str
    budget: str
    measured: str
    by_cpu: str
    """The corresponding ratio of processor times, for runs on a shared machine."""
    kept: bool


def tables(results: Results) -> str:
    """Return the whole report."""
    parts = [_load_table(name, results[name]) for name in results if name in CASES]
    parts += [_broadcast_table(name, results[name]) for name in results if name in BROADCASTS]
    parts += [make(results[name]) for name, make in _OWN_TABLES.items() if name in results]
    rows = [
        f"| {one.title} | {one.budget} | {one.measured} | {one.by_cpu} | {'yes' if one.kept else '**no**'} |"
        for one in verdicts(results)
    ]
    if rows:
        head = ["| budget | at least / most | measured | by CPU time | kept |", "|---|--:|--:|--:|---|"]
        parts.append("\n".join(head + rows))
    return "\n\n".join(parts) + "\n"


def verdicts(results: Results) -> list[Verdict]:
    """Return every budget that this run measured."""
    found: list[Verdict] = []
    for name, case in (CASES | BROADCASTS).items():
        if name in results:
            found += _against(case, results[name])
    for name, case in CASES.items():
        if name in results and case.most_cpu_us is not None:
            values = results[name][case.targets[0]].values("cpu_us")
            found.append(_at_most(f"processor time, {case.title}", values, case.most_cpu_us, "µs", ".0f"))
    for name, broadcast in BROADCASTS.items():
        most = broadcast.most_kib
        if name in results and most is not None:
            values = results[name][broadcast.targets[0]].values("kib")
            found.append(_at_most(f"memory of a subscriber, {broadcast.title}", values, most, "KiB", ".1f"))
    for name, figure, title, most, unit in _ENDURANCE:
        if name in results:
            found.append(_at_most(title, results[name]["ours-hub"].values(figure), most, unit, ".2f"))
    for bound in BOUNDS if "start" in results else ():
        values = results["start"]["ours"].values(bound.figure)
        found.append(_at_most(bound.title, values, bound.most, bound.unit, ".0f"))
    return found


def _against(case: Case | Broadcast, figures: dict[str, Figures]) -> Iterator[Verdict]:
    """Return our ratios to the available targets with budgets, first by responses per second, then by CPU time."""
    own = figures[case.targets[0]]
    for suffix, budgets in (("", case.budgets), (", by CPU time", case.cpu_budgets)):
        for target, least in budgets.items():
            if target in figures:
                ratio, by_cpu = _ratio(own, figures[target]), _ratio(figures[target], own, "cpu_us")
                decisive = by_cpu if suffix else ratio
                title = f"{case.title} / {TARGETS[target].name}{suffix}"
                kept = decisive is not None and decisive >= least
                yield Verdict(title, _times(least), _times(ratio), _times(by_cpu), kept)


def _at_most(title: str, values: list[float], most: float, unit: str, form: str) -> Verdict:
    unit = f" {unit}".rstrip()
    measured = f"{median(values):{form}}{unit}" if values else "no figure"
    return Verdict(title, f"{most:{form}}{unit}", measured, "", bool(values) and median(values) <= most)


def _load_table(name: str, figures: dict[str, Figures]) -> str:
    case = CASES[name]
    if name in FIXED_RATE:
        return _table(
            case.title,
            "calls/s at most | ours is | by CPU | CPU µs a call | p50 ms at half of it | p99 ms at half of it "
            f"| p50 ms at {SAME_RATE}/s | p99 ms at {SAME_RATE}/s | load's core %",
            figures,
            figures[case.targets[0]],
            lambda found: [_middle(found, figure, form) for figure, form in FIXED_RATE_COLUMNS.items()],
        )
    return _table(
        case.title,
        "calls/s | ours is | by CPU | p50 ms | p99 ms | CPU µs a call | core % | MiB idle | MiB after",
        figures,
        figures[case.targets[0]],
        lambda found: [
            *(_middle(found, figure, form) for figure, form in COLUMNS.items()),
            f"{found.idle:.0f}" if found.idle else "",
            f"{found.after:.0f}" if found.after else "",
        ],
    )


def _broadcast_table(name: str, figures: dict[str, Figures]) -> str:
    case = BROADCASTS[name]
    return _table(
        case.title[0].upper() + case.title[1:],
        "deliveries/s | ours is | by CPU | last p50 ms | last p99 ms | CPU µs | core % | load's core % | KiB each",
        figures,
        figures[case.targets[0]],
        lambda found: [_middle(found, figure, form) for figure, form in BROADCAST_COLUMNS.items()],
    )


def _table(
    title: str, columns: str, figures: dict[str, Figures], own: Figures, cells: Callable[[Figures], list[str]]
) -> str:
    """Return a row for each target: its rate, our ratio to it, the same by CPU time, and the other cells, or its
    error."""
    head = [f"**{title}**", "", f"| server | {columns} |", "|---" + "|--:" * 9 + "|"]
    rows: list[str] = []
    for target, found in figures.items():
        if found.error:
            row = [found.error, *[""] * 8]
        else:
            ratios = ("", "") if found is own else (_times(_ratio(own, found)), _times(_ratio(found, own, "cpu_us")))
            row = [_middle(found, "rate", ",.0f"), *ratios, *cells(found)]
        rows.append(f"| {TARGETS[target].name} | {' | '.join(row)} |")
    return "\n".join(head + rows)


def _figure_table(title: str, found: Figures, names: dict[str, str]) -> str:
    rows = [f"**{title}**", "", f"| {' | '.join(names.values())} |", f"|{'--:|' * len(names)}"]
    cells = [found.error] if found.error else [_middle(found, name, ",.2f") for name in names]
    return "\n".join([*rows, f"| {' | '.join(cells)} |"])


def _mixed_table(figures: dict[str, Figures]) -> str:
    title = f"{CALLS} calls/s and {EVENTS} broadcasts/s with {MIXED:,} event streams"
    names = {
        "calls": "calls", "call_p50": "call p50 ms", "call_p99": "call p99 ms", "deliveries": "deliveries",
        "p50": "last p50 ms", "p99": "last p99 ms", "slope": "MiB in 10 min", "busy": "core %",
    }  # fmt: skip
    return _figure_table(title, figures["ours-hub"], names)


def _stalled_table(figures: dict[str, Figures]) -> str:
    names = {"p99": "last p99 ms", "p99_stalled": "with the stalled one", "ratio": "ratio", "cut": "cut as slow"}
    return _figure_table(f"One stalled reader among {MIXED:,}", figures["ours-hub"], names)


def _start_table(figures: dict[str, Figures]) -> str:
    rows = ["**Starting**", "", "| server | import ms | modules | HTTP responds after ms | stdio after ms | MiB idle |"]
    rows.append("|---|--:|--:|--:|--:|--:|")
    for target, found in figures.items():
        label = TARGETS[target].name
        names = ("import_ms", "modules", "http_ms", "stdio_ms", "idle")
        cells = [found.error, "", "", "", ""] if found.error else [_middle(found, name, ",.0f") for name in names]
        rows.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(rows)


_OWN_TABLES: dict[str, Callable[[dict[str, Figures]], str]] = {
    "stalled": _stalled_table,
    "mixed": _mixed_table,
    "start": _start_table,
}
_ENDURANCE = (
    ("stalled", "ratio", "p99 of the others beside a stalled reader / without", MOST_CHANGE, "×"),
    ("mixed", "slope", "growth of memory under mixed load in 10 min", MOST_SLOPE, "MiB"),
)


def _ratio(ours: Figures, theirs: Figures, name: str = "rate") -> float | None:
    pairs = list(zip(ours.values(name), theirs.values(name), strict=False))
    return median(own / other for own, other in pairs) if pairs else None


def _middle(figures: Figures, name: str, form: str) -> str:
    values = figures.values(name)
    return format(median(values), form) if values else ""


def _times(ratio: float | None) -> str:
    if ratio is None:
        return "no figure"
    return f"{ratio:.1f}×" if ratio >= 2 else f"{ratio:.0%}"
