"""Millstream alone, or two of its source trees in turn: processor time per call of each row, without any peer.

    python -m benches --only text-16k --only chunked --rounds 3 --against ../other/src

Both trees serve the same program with the same Python on the same core at the same time, so other load on the machine
slows both. Where two measurements in a row differ by a quarter, two at once differ by a few percent.
"""

import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from benches import http_load, processes
from benches.backends import run_store
from benches.held import Held
from benches.processes import ROOT, BenchError, Running
from benches.targets import TARGETS
from benches.traffic import ROWS, Row


@dataclass
class Compared:
    """The measurements of one row by tree, one value per round."""

    loads: dict[str, list[http_load.Load]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


class Comparison:
    """Measures rows on source trees, `{"this": Path, "other": Path}`. `close` stops every server that it started."""

    def __init__(self, trees: dict[str, Path], seconds: float, folder: Path, say: Callable[[str], None]) -> None:
        self._trees = trees
        self._seconds = seconds
        self._folder = folder
        self._say = say
        self._servers: dict[tuple[str, str], Running] = {}
        self.results: dict[tuple[str, int], Compared] = {}
        """By row and number of connections."""

    def run(self, names: list[str], rounds: int, connections: list[int]) -> None:
        """Measure the rows in turn, each with every number of connections. By default, each row has its own."""
        for name, many in [(each, many) for each in names for many in connections or [ROWS[each].connections]]:
            compared = self.results[name, many] = Compared({tree: [] for tree in self._trees})
            for _ in range(rounds):
                self._measure(ROWS[name], compared, many)
            self._say(f"{name}, {many} connections: {'  '.join(_cells(compared))}")

    def close(self) -> None:
        for server in self._servers.values():
            server.stop()
        self._servers.clear()

    def _measure(self, row: Row, compared: Compared, connections: int) -> None:
        """Load the servers of all trees at once. A tree with an error is left out from then on."""
        servers: dict[str, tuple[Running, Running]] = {}
        loads: dict[str, Future[http_load.Load]] = {}
        with ExitStack() as stack:
            for tree in self._trees.keys() - compared.errors.keys():
                try:
                    servers[tree] = self._prepare(row, tree, stack)
                except BenchError as exc:
                    compared.errors[tree] = str(exc)
            with ThreadPoolExecutor() as threads:
                for tree, (server, measured) in servers.items():
                    loads[tree] = threads.submit(
                        http_load.quick, server, row.kind, self._seconds, connections, measured=measured
                    )
        for tree, load in loads.items():
            try:
                compared.loads[tree].append(load.result())
            except BenchError as exc:
                compared.errors[tree] = str(exc)

    def _prepare(self, row: Row, tree: str, stack: ExitStack) -> tuple[Running, Running]:
        """Return the server that gets the load, and the one whose processor time counts, ready for one round."""
        if not (row.store or row.first or row.streams):
            server = self._server(row.target, tree)
            server.open_sessions(row.kind.sessions, row.kind.revision)
            return server, server
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
        return server, measured

    def _server(self, target: str, tree: str) -> Running:
        key = (target, tree)
        if key not in self._servers:
            self._servers[key] = self._start(target, tree, [])
        return self._servers[key]

    def _start(self, target: str, tree: str, options: list[str]) -> Running:
        port, found = processes.free_port(), TARGETS[target]
        environment = dict(found.environment) | {"PYTHONPATH": str(self._trees[tree])}
        log = self._folder / f"{target}-{tree}-{port}.log"
        return processes.start([*found.command(port), *options], environment, port, log, first=found.first)

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
