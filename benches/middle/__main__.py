"""`make middle`: the test suites of other libraries pass with Millstream between their clients and their servers.

Each suite is fetched by version into .bench/middle/, with an environment of its own there. A plugin replaces the
connection that its tests make. Failing tests have to be in exceptions.toml, and tests listed there have to fail. A test
that also fails without Millstream isn't counted.

``python -m benches.middle [WORD …] [tests/PATH …]`` runs the suites whose package has one of the words in its name, or
only some of their tests. On a busy machine, run a long suite in parts.

``python -m benches.middle typescript`` runs the end-to-end suite of the TypeScript SDK, which isn't published: see
typescript.py for what to fetch. Without its source, it's skipped. ``python -m benches.middle go`` does the same with
the Go SDK: see golang.py.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from benches.environments import make_environment
from benches.middle.golang import GoSuite
from benches.middle.typescript import Outcomes, SourceMissing, TypeScriptSuite

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / ".bench" / "middle"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
SECONDS = 10
"""Maximum seconds of one test."""
HUNG_SECONDS = 120
"""Seconds after which a process is ended if the time limit of its test has no effect, as in a loop that's closing."""
SUITE_SECONDS = 3600
STOP_SECONDS = 60
UNSTEADY = "Unsteady: "
"""Beginning of the reason of an exception that may also pass."""
FOREIGN = "Can't apply: "
"""Beginning of the reason of an exception that isn't counted, because no gateway can or may do what it expects."""


class Suite(Struct):
    """A suite of tests."""

    package: str
    """The library with its version."""
    install: list[str]
    """Requirements of the tests."""
    plugin: str
    """Module of the pytest plugin that replaces the suite's connections."""
    tests: list[str]
    options: list[str]
    """Options of pytest."""
    least: float
    """Minimum share of the tests that pass."""
    has_exceptions: bool = True
    """Whether each test that fails has to be in exceptions.toml."""
    stopped: bool = False
    """Whether a run took too long."""

    @property
    def home(self) -> Path:
        """Folder of its environment and of its tests."""
        return CACHE / self.package

    def fetch(self) -> Path:
        """Return the folder of the library's source distribution.

        Raises:
            RuntimeError: It can't be fetched.
        """
        make_environment(self.home / "venv", self.install)
        name, _, version = self.package.partition("==")
        source = self.home / f"{name}-{version}"
        if not source.is_dir():
            done = subprocess.run(
                [*PIP, "download", "--quiet", "--no-deps", "--no-binary", name, "--dest", str(self.home), self.package],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(f"can't be fetched: {done.stderr.strip().splitlines()[-1]}")
            with tarfile.open(self.home / f"{source.name}.tar.gz") as archive:
                archive.extractall(self.home, filter="data")
        return source

    def run(self, source: Path, tests: Sequence[str], *, alone: bool = False) -> Outcomes:
        """Run tests, and return their outcomes.

        Args:
            source: See `fetch`.
            tests: Files, folders, or ids of tests.
            alone: Whether to run them without Millstream.

        Raises:
            RuntimeError: pytest can't run them.
        """
        file, names, log = self.home / "outcomes.json", self.home / "tests.txt", self.home / "log"
        file.unlink(missing_ok=True)
        names.write_text("\n".join(tests), "utf-8")
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("MILLSTREAM_", "PYTEST_"))
        }
        environment |= {"OUTCOMES": str(file), "PYTHONPATH": f"{source}{os.pathsep}{ROOT}"}
        command = [str(self.home / "venv" / "bin" / "python"), "-m", "pytest", "-q", "-p", self.plugin]
        command += ["-n", "2", "-p", "no:cacheprovider", "-o", "addopts=", "--continue-on-collection-errors"]
        limits = [f"timeout={SECONDS}", "timeout_method=signal", f"faulthandler_timeout={HUNG_SECONDS}"]
        for option in (*limits, "faulthandler_exit_on_timeout=true"):
            command += ["-o", option]
        command += [*self.options, f"@{names}"]
        with (
            log.open("wb") as sink,
            subprocess.Popen(
                command, cwd=source, env=environment | ({"ALONE": "1"} if alone else {}), stdout=sink, stderr=sink
            ) as running,
        ):
            try:
                running.wait(SUITE_SECONDS)
            except subprocess.TimeoutExpired:
                self.stopped = True
                running.send_signal(signal.SIGINT)  # pytest then reports the tests that have run
                with contextlib.suppress(subprocess.TimeoutExpired):
                    running.wait(STOP_SECONDS)
                running.kill()
        if not file.is_file():
            raise RuntimeError(f"doesn't run: {log.read_text('utf-8', 'replace')[-1000:]}")
        found = json.loads(file.read_text("utf-8"))
        return {name: (outcome, why) for name, (outcome, why) in found.items()}


def failures(outcomes: Outcomes) -> list[str]:
    """Return the ids of the tests that failed."""
    return [name for name, (outcome, _) in outcomes.items() if outcome == "failed"]


def find_exceptions(patterns: Mapping[str, str], outcomes: Outcomes) -> dict[str, str]:
    """Return the tests that are exceptions, and why. A pattern that ends in ``*`` is the beginning of several ids."""
    found: dict[str, str] = {}
    for pattern, why in patterns.items():
        names = [name for name in outcomes if name.startswith(pattern[:-1])] if pattern.endswith("*") else [pattern]
        found |= dict.fromkeys(names, why)
    return found


def check(suite: Suite | TypeScriptSuite | GoSuite, patterns: Mapping[str, str], some: Sequence[str] = ()) -> int:
    """Run one suite, print its results, and return the number of problems.

    Args:
        suite: The suite.
        patterns: See `find_exceptions`.
        some: The only tests to run.
    """
    source = suite.fetch()
    outcomes = suite.run(source, some or suite.tests)
    exceptions = find_exceptions(patterns, outcomes)
    failed = failures(outcomes)
    alone = set(failures(suite.run(source, failed, alone=True))) if failed else set()
    failed = [name for name in failed if name not in alone]
    again = suite.run(source, failed) if failed else {}
    unsteady = [name for name in failed if name in again and again[name][0] == "passed"]
    failed = [name for name in failed if name not in unsteady]
    foreign = sum(exceptions.get(name, "").startswith(FOREIGN) for name in failed)
    count = sum(outcome != "skipped" for outcome, _ in outcomes.values()) - len(alone) - foreign
    listed = sum(name in exceptions for name in failed) - foreign
    passed = count - len(failed) + foreign
    share = passed / max(1, count)
    print(
        f"{suite.package}: {passed} of {count} pass ({share:.2%}), {passed} of {count - listed} without exceptions; "
        f"{foreign} more can't apply, and {len(alone)} fail without Millstream, too"
    )
    problems = []
    if suite.has_exceptions:
        problems += [f"fails: {name}: {outcomes[name][1][:300]}" for name in failed if name not in exceptions]
        steady = [name for name, (outcome, _) in outcomes.items() if outcome == "passed"]
        listed_steady = [name for name in steady if not exceptions.get(name, UNSTEADY).startswith(UNSTEADY)]
        problems += [f"passes, but is an exception: {name}" for name in listed_steady]
    if share < suite.least and not some:
        problems.append(f"fewer than {suite.least:.1%} pass")
    if suite.stopped:
        problems.append(f"stopped after {SUITE_SECONDS} seconds, so some tests didn't run; run the suite in parts")
    for name in unsteady:
        print(f"  passed at the second attempt: {name}: {outcomes[name][1][:300]}")
    for problem in problems:
        print(f"  {problem}")
    return len(problems)


def main(words: Sequence[str]) -> int:
    """Run suites, and return 1 if there are problems."""
    CACHE.mkdir(parents=True, exist_ok=True)
    found = tomllib.loads((HERE / "suites.toml").read_text("utf-8"))
    suites = [
        *msgspec.convert(found["suite"], list[Suite]),
        *msgspec.convert(found["typescript"], list[TypeScriptSuite]),
        *msgspec.convert(found["go"], list[GoSuite]),
    ]
    exceptions = tomllib.loads((HERE / "exceptions.toml").read_text("utf-8"))
    problems = 0
    some = [word for word in words if word.startswith(("tests/", "scenarios/", "Test"))]
    words = [word for word in words if word not in some]
    for suite in suites:
        if words and not any(word in suite.package for word in words):
            continue
        try:
            problems += check(suite, exceptions.get(suite.package, {}), some)
        except SourceMissing as missing:
            print(f"{suite.package}: skipped: {missing}")
        except RuntimeError as error:  # try the others as well
            problems += 1
            print(f"{suite.package} {error}")
    print(f"{problems} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
