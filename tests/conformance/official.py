"""Runs the official conformance suite (an npm package) against a server, and reads its results.

A scenario fails if one of its checks is a FAILURE. A selection includes its number of scenarios, because a run with
fewer scenarios proves nothing.
"""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from patience import WAIT
from processes import NODE

FOLDER = Path(__file__).resolve().parent
SUITE = FOLDER / "node_modules" / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
KEEP_ALIVE = FOLDER / "keep_alive.cjs"
"""Module that Node loads first, so that servers keep idle connections for `KEEP_ALIVE_MS`."""
PATIENT = FOLDER / "patient.cjs"
"""Module that Node loads first, so that the suite's timeouts tolerate a stalled machine."""


@dataclass(frozen=True)
class Selection:
    """A command of the suite, and its number of scenarios."""

    arguments: tuple[str, ...]
    scenarios: int


@dataclass(frozen=True)
class Check:
    """One entry of a scenario's `checks.json`."""

    scenario: str
    id: str
    status: str
    text: str


@dataclass(frozen=True)
class Report:
    """Results of a run of the official suite."""

    exit_code: int
    printed: str
    checks: tuple[Check, ...]

    @property
    def scenarios(self) -> set[str]:
        return {check.scenario for check in self.checks}

    def having(self, *statuses: str) -> list[Check]:
        """Return the checks with one of the statuses."""
        return [check for check in self.checks if check.status in statuses]


SELECTIONS = {
    "scored-2025-11-25": Selection(("--requirements", "2025-11-25"), 33),
    "scored-2026-07-28": Selection(("--requirements", "2026-07-28"), 50),
    "all-2025-03-26": Selection(("--suite", "all", "--spec-version", "2025-03-26"), 1),
    "all-2025-06-18": Selection(("--suite", "all", "--spec-version", "2025-06-18"), 27),
    "all-2025-11-25": Selection(("--suite", "all", "--spec-version", "2025-11-25"), 33),
    "all-2026-07-28": Selection(("--suite", "all", "--spec-version", "2026-07-28"), 40),
    "skills-enumeration": Selection(("--scenario", "sep-2640-skills-enumeration"), 1),
    "skills-manifest": Selection(("--scenario", "sep-2640-skills-manifest"), 1),
    "skills-directory": Selection(("--scenario", "sep-2640-skills-directory"), 1),
}


def run_suite(url: str, selection: Selection, output: Path) -> Report:
    """Run the suite, and read all scenarios' checks from `output`."""
    suite = [NODE, "--require", str(PATIENT), str(SUITE)]
    patience = f"{WAIT * 1000:.0f}"
    command = [*suite, "server", "--url", url, *selection.arguments, "--timeout", patience, "-o", str(output)]
    environment = {**os.environ, "PATIENCE_MS": patience}
    done = subprocess.run(
        command, cwd=FOLDER, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=5 * WAIT, check=False,
    )  # fmt: skip  # fifty scenarios
    return Report(done.returncode, done.stdout + done.stderr, tuple(read_checks(output)))


def read_checks(output: Path) -> list[Check]:
    """Return all scenarios' checks; a scenario's folder is `server-NAME-TIME`."""
    found: list[Check] = []
    for file in sorted(output.glob("server-*/checks.json")):
        scenario = re.sub(r"-\d{4}-\d\d-\d\dT[\d-]+Z$", "", file.parent.name).removeprefix("server-")
        for check in json.loads(file.read_text("utf-8")):
            text = check.get("errorMessage") or check.get("description") or ""
            found.append(Check(scenario, check["id"], check["status"], text))
    return found
