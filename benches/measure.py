"""Runs the cases: every server is started once, then measured in turn, round after round.

Interleaving makes ratios meaningful on a machine whose speed varies: both sides of a ratio were measured within the
same few seconds. A target that fails keeps its error and the others go on.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benches import broadcast, client_load, endurance, fixed_rate, http_load, processes, startup, stdio_load
from benches.cases import BROADCASTS, CASES, FIXED_RATE, Case
from benches.processes import BenchError, Running
from benches.shop import Backend
from benches.targets import PAGE, TARGETS, present
from benches.wire import KINDS, page

STARTED = ("ours", "mcp", "typescript", "fastmcp")
ALONE = ("ours-hub",)
ENDURING = ("stalled", "mixed")
"""Cases that measure us alone."""


@dataclass
class Figures:
    """The figures of one target in one case, one value per round."""

    rounds: list[dict[str, Any]] = field(default_factory=list)
    idle: float = 0.0
    after: float = 0.0
    error: str = ""

    def values(self, name: str) -> list[float]:
        return [entry[name] for entry in self.rounds if entry.get(name) is not None]


Results = dict[str, dict[str, Figures]]
"""Figures by case and target."""


class Bench:
    """One run of the benchmark. `close` stops every server that it started."""

    def __init__(self, seconds: float, folder: Path, say: Callable[[str], None], *, duration: float = 60.0) -> None:
        self._seconds = seconds
        self._duration = duration
        self._folder = folder
        self._say = say
        self._servers: dict[str, Running] = {}
        PAGE.write_text(page(), "utf-8")
        self._backend: Backend | None = None
        self.results: Results = {}

    def run(self, names: list[str], rounds: int) -> None:
        """Measure the named cases repeatedly, one case after the other, with the targets in turn."""
        for name in names:
            targets = [target for target in _targets(name) if present(target)]
            figures = self.results[name] = {target: Figures() for target in targets}
            for number in range(1, (1 if name == "mixed" else rounds) + 1):
                for target in targets:
                    self._round(name, target, figures[target], number)
            for target, server in self._servers.items():
                if target in figures:
                    figures[target].idle, figures[target].after = server.idle, server.memory()

    def close(self) -> None:
        for server in self._servers.values():
            server.stop()
        self._servers.clear()
        if self._backend is not None:
            self._backend.close()

    def _round(self, name: str, target: str, figures: Figures, number: int) -> None:
        if figures.error:
            return
        try:
            entry = self._measure(name, target)
        except BenchError as exc:
            figures.error = str(exc)
            self._say(f"{name} {target}: {exc}")
            return
        figures.rounds.append(entry)
        shown = "  ".join(f"{key} {value:,.1f}" for key, value in entry.items() if value is not None)
        self._say(f"{name} {number} {target}: {shown}")

    def _measure(self, name: str, target: str) -> dict[str, Any]:
        log = self._folder / f"{name}-{target}.log"
        if name == "start":
            return asdict(startup.measure(target, log))
        if name == "mixed":
            return asdict(endurance.mixed(target, self._duration, log))
        if name == "stalled":
            return asdict(endurance.stalled(target, self._seconds, log))
        if name in BROADCASTS:
            return asdict(broadcast.drive(BROADCASTS[name], target, self._seconds, log))
        if name in FIXED_RATE:
            kind, server = KINDS[CASES[name].kind], self._server(target)
            return asdict(fixed_rate.drive(server, kind, self._seconds, CASES[name].connections))
        return self._load(CASES[name], target)

    def _load(self, case: Case, target: str) -> dict[str, Any]:
        if case.kind == "client-http":
            return asdict(client_load.over_http(target, self._server("ours"), self._seconds))
        if case.kind == "client-stdio":
            return asdict(client_load.over_stdio(target, self._seconds))
        if case.kind:
            kind = KINDS[case.kind]
            server = self._server(target, behind=case.kind == "shop")
            drive = http_load.drive if kind.expect else http_load.quick
            return asdict(drive(server, kind, self._seconds, case.connections))
        command, environment = TARGETS[target].command(0), dict(TARGETS[target].environment)
        handshake = target != "bare-stdio"
        return asdict(stdio_load.drive(command, environment, self._seconds, handshake=handshake))

    def _server(self, target: str, *, behind: bool = False) -> Running:
        """Start a server once; `behind` is whether it needs the shop's Redis and API."""
        if target not in self._servers:
            port = processes.free_port()
            command, environment = TARGETS[target].command(port), dict(TARGETS[target].environment)
            log, first = self._folder / f"{target}.log", TARGETS[target].first
            core = processes.SERVER_CORE if TARGETS[target].pinned else ""
            if behind:
                self._backend = self._backend or Backend(self._folder)
                self._backend.fill()
                environment |= self._backend.environment
            self._servers[target] = processes.start(command, environment, port, log, first=first, core=core)
            if not core:
                self._servers[target].settle()
        return self._servers[target]


def _targets(name: str) -> tuple[str, ...]:
    if name == "start":
        return STARTED
    if name in ENDURING:
        return ALONE
    return (CASES | BROADCASTS)[name].targets
