"""The TypeScript SDK's end-to-end suite, with the ``millstream`` command between its clients and its servers.

The suite isn't part of a published package. Check out github.com/modelcontextprotocol/typescript-sdk at the commit in
suites.toml, run ``pnpm install --frozen-lockfile --ignore-scripts`` there, and set TYPESCRIPT_SDK to its folder. Its
files stay as they are: vitest.config.mjs puts wire.ts in the place of the function that connects.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from benches.middle.starter import open_starter

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent.parent / ".bench" / "middle"
SECONDS = 60
"""Maximum seconds of one test."""
SUITE_SECONDS = 3600
STOP_SECONDS = 60
WORKERS = 4
SPECIAL = frozenset(r"\^$.|?*+()[]{}")
"""Characters that have a meaning in a regular expression of JavaScript."""
Outcomes = dict[str, tuple[str, str]]
"""Id of a test -> "passed", "failed", or "skipped", and why."""


class SourceMissing(Exception):
    """There's no source code of a suite on this machine. The message says what to fetch."""


class TypeScriptSuite(Struct):
    """A checkout of the SDK."""

    package: str
    commit: str
    variable: str
    """Environment variable with the folder of the checkout."""
    least: float
    """Minimum share of the tests that pass."""
    catalog: bool = False
    """Whether Millstream merges lists instead of relaying."""
    has_exceptions: bool = True
    """Whether each test that fails has to be in exceptions.toml."""
    stopped: bool = False
    """Whether a run took too long."""
    tests: tuple[str, ...] = ()

    @property
    def home(self) -> Path:
        """Folder of its sockets, logs, and results."""
        return CACHE / self.package

    def fetch(self) -> Path:
        """Return the folder of the suite.

        Raises:
            SourceMissing: The environment variable isn't set.
            RuntimeError: Its folder isn't an installed checkout.
        """
        checkout = os.environ.get(self.variable)
        if not checkout:
            raise SourceMissing(
                f"needs its source: check out github.com/modelcontextprotocol/typescript-sdk at {self.commit}, run "
                f"pnpm install --frozen-lockfile --ignore-scripts there, and set {self.variable} to its folder"
            )
        suite = Path(checkout).resolve() / "test" / "e2e"
        if not (suite / "node_modules" / ".bin" / "vitest").exists():
            raise RuntimeError(f"isn't installed: there's no vitest in {suite}")
        return suite

    def run(self, source: Path, tests: Sequence[str], *, alone: bool = False) -> Outcomes:
        """Run tests, and return their outcomes.

        Args:
            source: See `fetch`.
            tests: Files of scenarios or ids of tests. Without any, all tests that connect.
            alone: Whether to run them without Millstream.

        Raises:
            RuntimeError: vitest can't run them.
        """
        if not tests:
            files = sorted(source.glob("scenarios/*.test.ts"))
            tests = [str(file.relative_to(source)) for file in files if "await wire(" in file.read_text("utf-8")]
        self.home.mkdir(parents=True, exist_ok=True)
        file, log = self.home / "outcomes.json", self.home / "log"
        file.unlink(missing_ok=True)
        names = [escape(name.partition(": ")[2]) for name in tests if ": " in name]
        command = ["node_modules/.bin/vitest", "run", "--config", str(HERE / "vitest.config.mjs"), "--reporter=json"]
        command += [
            f"--outputFile={file}",
            f"--maxWorkers={WORKERS}",
            *sorted({name.partition(": ")[0] for name in tests}),
        ]
        command += ["-t", f"^({'|'.join(names)})$"] if names else []
        environment = os.environ | {"SUITE": str(source), "SECONDS": str(SECONDS)}
        environment["PIPE"] = json.dumps([sys.executable, "-I", "-S", str(HERE / "pipe.py")])
        environment |= ({"ALONE": "1"} if alone else {}) | ({"CATALOG": "1"} if self.catalog else {})
        with open_starter(self.home / "commands") as starter, log.open("wb") as sink:
            environment["STARTER"] = str(starter)
            with subprocess.Popen(command, cwd=source, env=environment, stdout=sink, stderr=sink) as running:
                try:
                    running.wait(SUITE_SECONDS)
                except subprocess.TimeoutExpired:
                    self.stopped = True
                    running.send_signal(signal.SIGINT)  # vitest then reports the tests that have run
                    try:
                        running.wait(STOP_SECONDS)
                    except subprocess.TimeoutExpired:
                        running.kill()
        if not file.is_file():
            raise RuntimeError(f"doesn't run: {log.read_text('utf-8', 'replace')[-1000:]}")
        return read_outcomes(source, json.loads(file.read_text("utf-8")))


def escape(text: str) -> str:
    """Escape text for a regular expression of JavaScript."""
    return "".join(f"\\{character}" if character in SPECIAL else character for character in text)


def read_outcomes(source: Path, report: dict[str, list[dict[str, object]]]) -> Outcomes:
    """Return the outcomes in vitest's JSON report. The id of a test is its file and its full name."""
    outcomes: Outcomes = {}
    for result in report["testResults"]:
        file = Path(str(result["name"])).relative_to(source)
        for test in result["assertionResults"]:  # type: ignore[attr-defined]
            name = f"{file}: {test['fullName']}"
            if outcomes.get(name, ("",))[0] == "failed":  # some tests have the same name
                continue
            status = test["status"] if test["status"] in ("passed", "failed") else "skipped"
            outcomes[name] = status, " ".join(test["failureMessages"])[:500]
    return outcomes
