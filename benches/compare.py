"""Millstream alone, or two of its source trees in turn: processor time per call of each row, without any peer.

    python -m benches --only text-16k --only chunked --rounds 3 --against ../other/src

Both trees serve the same program with the same Python on the same core at the same time, so other load on the machine
slows both. Where two measurements in a row differ by a quarter, two at once differ by a few percent. Single starts of
one tree differ by up to 10%, so each round starts its servers.
"""

import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median

from benches import http_load, processes, stdio_load
from benches.backends import run_store
from benches.held import Held
from benches.processes import ROOT, BenchError, Running
from benches.targets import TARGETS
from benches.traffic import ROWS, Row


@dataclass
class Compared:
    """The measurements of one row by tree, one value per round."""

    loads: dict[str, list[http_load.Load | stdio_load.StdioLoad]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


class Comparison:
    """Measures rows on source trees, `{"this": Path, "other": Path}`."""

    def __init__(self, trees: dict[str, Path], seconds: float, folder: Path, say: Callable[[str], None]) -> None:
        self._trees = trees
        self._seconds = seconds
        self._folder = folder
        self._say = say
        self.results: dict[tuple[str, int], Compared] = {}
        """By row and number of connections."""

    def run(self, names: list[str], rounds: int, connections: list[int]) -> None:
        """Measure the rows in turn, each with every number of connections. By default, each row has its own."""
        for name, many in [(each, many) for each in names for many in connections or [ROWS[each].connections]]:
            compared = self.results[name, many] = Compared({tree: [] for tree in self._trees})
            for _ in range(rounds):
                self._measure(ROWS[name], compared, many)
            self._say(f"{name}, {many} connections: {'  '.join(_cells(compared))}")

    def _measure(self, row: Row, compared: Compared, connections: int) -> None:
        """Load the servers of all trees at once. A tree with an error is left out from then on."""
        loads: dict[str, Future[http_load.Load | stdio_load.StdioLoad]] = {}
        with ExitStack() as stack, ThreadPoolExecutor() as threads:
            drives: dict[str, Callable[[], http_load.Load | stdio_load.StdioLoad]] = {}
            for tree in self._trees.keys() - compared.errors.keys():
                try:
                    drives[tree] = self._prepare(row, tree, connections, stack)
                except BenchError as exc:
                    compared.errors[tree] = str(exc)
            for tree, drive in drives.items():
                loads[tree] = threads.submit(drive)
            wait(loads.values())
        for tree, load in loads.items():
            try:
                compared.loads[tree].append(load.result())
            except BenchError as exc:
                compared.errors[tree] = str(exc)

    def _prepare(
        self, row: Row, tree: str, connections: int, stack: ExitStack
    ) -> Callable[[], http_load.Load | stdio_load.StdioLoad]:
        """Start what one round of a tree needs, and return a function that measures the load."""
        if row.way == "stdio":
            command, environment = self._command(row.target, tree, 0)
            return partial(stdio_load.drive, command, environment, self._seconds, handshake=True)
        options = ["--workers", str(row.workers)] if row.workers > 1 else []
        if row.store not in ("", "memory"):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            options += ["--store", stack.enter_context(run_store(row.store, Path(folder)))]
        measured = self._start(row.target, tree, options)
        stack.callback(measured.stop)
        server = measured
        if row.beside:
            server = self._start(row.target, tree, options)
            stack.callback(server.stop)
        if row.workers > 1:
            measured.settle()
        for kind, count in row.first:
            http_load.repeat(measured, kind, count)
        held = Held(measured.port)
        for kind, until, count in row.streams:
            for number in range(count):
                named = replace(kind, body=kind.body.replace("#", str(number)))
                held.open(http_load.fill(measured, named, number), until.encode())
        stack.enter_context(held)
        server.open_sessions(row.kind.sessions, row.kind.revision)
        load = http_load.apart if row.way == "apart" else http_load.quick
        return partial(load, server, row.kind, self._seconds, connections, measured=measured)

    def _command(self, target: str, tree: str, port: int) -> tuple[list[str], dict[str, str]]:
        found = TARGETS[target]
        return found.command(port), dict(found.environment) | {"PYTHONPATH": str(self._trees[tree])}

    def _start(self, target: str, tree: str, options: list[str]) -> Running:
        port = processes.free_port()
        command, environment = self._command(target, tree, port)
        log = self._folder / f"{target}-{tree}-{port}.log"
        return processes.start([*command, *options], environment, port, log, first=TARGETS[target].first)

    def table(self) -> str:
        """Return the results in Markdown."""
        names = list(self._trees)
        columns = [f"{name} µs" for name in names] + [f"{names[0]} / {name}" for name in names[1:]]
        columns += [f"{name} calls/s" for name in names]
        head = ["| row | what | at once | " + " | ".join(columns) + " |", "|---|---|--:" + "|--:" * len(columns) + "|"]
        rows = [
            f"| {name} | {ROWS[name].title} | {many} | {' | '.join(_cells(found))} |"
            for (name, many), found in self.results.items()
        ]
        return "\n".join(head + rows) + "\n"


def _cells(compared: Compared) -> list[str]:
    """The processor time on each tree, the median of the rounds' ratios to the others, and the rates."""
    loads = list(compared.loads.items())
    cells = [
        compared.errors[tree] if tree in compared.errors else f"{median(load.cpu_us for load in each):.1f}"
        for tree, each in loads
    ]
    for _, other in loads[1:]:
        ratios = [mine.cpu_us / theirs.cpu_us for mine, theirs in zip(loads[0][1], other, strict=False)]
        cells.append(f"{median(ratios):.2f}" if ratios else "")
    return cells + [f"{median(load.rate for load in each):,.0f}" if each else "" for _, each in loads]


OWN = ROOT / "src"


def trees(other: Path | None) -> dict[str, Path]:
    """Return the trees to measure: our own, and the other one.

    Raises:
        BenchError: the other folder doesn't contain the package.
    """
    if other is None:
        return {"this": OWN}
    found = [folder for folder in (other, other / "src") if (folder / "millstream" / "__init__.py").exists()]
    if not found:
        raise BenchError(f"{other} contains no package millstream")
    return {"this": OWN, "other": found[0].resolve()}
