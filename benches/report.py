"""Tables of a run in Markdown: figures of every target, then our ratios beside their budgets.

A figure is the median of the rounds; a ratio is the median of the rounds' ratios, never the ratio of medians.
"""

from dataclasses import dataclass
from statistics import median

from benches.cases import BOUNDS, CASES
from benches.measure import Figures, Results
from benches.targets import TARGETS

COLUMNS = {"p50": ".2f", "p99": ".2f", "cpu_us": ".1f", "busy": ".0f"}


@dataclass(frozen=True)
class Verdict:
    """One budget and what was measured."""

    title: str
    budget: str
    measured: str
    by_cpu: str
    """The same ratio of processor times, for runs on a machine that others use too; it decides nothing."""
    kept: bool


def tables(results: Results) -> str:
    """The whole report."""
    parts = [_load_table(name, results[name]) for name in results if name != "start"]
    if "start" in results:
        parts.append(_start_table(results["start"]))
    rows = [
        f"| {one.title} | {one.budget} | {one.measured} | {one.by_cpu} | {'yes' if one.kept else '**no**'} |"
        for one in verdicts(results)
    ]
    if rows:
        head = ["| budget | at least / most | measured | by CPU time | kept |", "|---|--:|--:|--:|---|"]
        parts.append("\n".join(head + rows))
    return "\n\n".join(parts) + "\n"


def verdicts(results: Results) -> list[Verdict]:
    """Every budget that this run measured."""
    found: list[Verdict] = []
    for name, case in CASES.items():
        for target, least in case.budgets.items() if name in results else ():
            own, other = results[name][case.targets[0]], results[name][target]
            ratio, by_cpu = _ratio(own, other), _ratio(other, own, "cpu_us")
            title = f"{case.title} / {TARGETS[target].name}"
            kept = ratio is not None and ratio >= least
            found.append(Verdict(title, _times(least), _times(ratio), _times(by_cpu), kept))
    for bound in BOUNDS if "start" in results else ():
        values = results["start"]["ours"].values(bound.figure)
        unit = f" {bound.unit}".rstrip()
        measured = f"{median(values):.0f}{unit}" if values else "no figure"
        kept = bool(values) and median(values) <= bound.most
        found.append(Verdict(bound.title, f"{bound.most:.0f}{unit}", measured, "", kept))
    return found


def _load_table(name: str, figures: dict[str, Figures]) -> str:
    head = [f"**{CASES[name].title}**", ""]
    head += ["| server | calls/s | ours is | p50 ms | p99 ms | CPU µs a call | core % | MiB idle | MiB after |"]
    head += ["|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
    own = figures[CASES[name].targets[0]]
    for target, found in figures.items():
        label = TARGETS[target].name
        if found.error:
            head.append(f"| {label} | {found.error} | | | | | | | |")
            continue
        cells = [_middle(found, "rate", ",.0f"), "" if found is own else _times(_ratio(own, found))]
        cells += [_middle(found, name, form) for name, form in COLUMNS.items()]
        cells += [f"{found.idle:.0f}" if found.idle else "", f"{found.after:.0f}" if found.after else ""]
        head.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(head)


def _start_table(figures: dict[str, Figures]) -> str:
    rows = ["**Starting**", "", "| server | import ms | modules | HTTP answers after ms | stdio after ms | MiB idle |"]
    rows.append("|---|--:|--:|--:|--:|--:|")
    for target, found in figures.items():
        label = TARGETS[target].name
        names = ("import_ms", "modules", "http_ms", "stdio_ms", "idle")
        cells = [found.error, "", "", "", ""] if found.error else [_middle(found, name, ",.0f") for name in names]
        rows.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(rows)


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
