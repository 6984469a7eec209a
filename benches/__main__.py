"""`python -m benches`: run the cases and print the tables; `make bench` installs the peers first.

Exits with 1 if the run exceeded a budget.
"""

import argparse
import json
import platform
import shutil
import sys
import sysconfig
import tempfile
from dataclasses import asdict
from pathlib import Path

from benches.broadcast import PROGRAM
from benches.cases import BROADCASTS, CASES, FIXED_RATE, ORDINARY, PUBLISHED
from benches.compare import Comparison, trees
from benches.measure import ENDURING, Bench
from benches.processes import ROOT, raise_file_limit
from benches.report import tables, verdicts
from benches.targets import ENVIRONMENT, PYTHON, left_out
from benches.traffic import ROWS

PAGE = ROOT / "benches" / "RESULTS.md"
MARK = "<!-- figures of Python {}: written by `make bench ARGS=--write` -->\n"


def main() -> int:
    """Measure the requested cases, and print and write the results."""
    names = [*CASES, *BROADCASTS, *ENDURING, "start"]
    groups = {name.partition("-")[0] for name in (*BROADCASTS, *ORDINARY, *FIXED_RATE)}
    rows = {*ROWS, *(name.partition("-")[0] for name in ROWS)} - set(names) - groups
    parser = argparse.ArgumentParser(prog="python -m benches", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, choices=range(1, 51), metavar="1-50")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one measurement, at most 60")
    parser.add_argument(
        "--only",
        action="append",
        choices=[*names, *groups, "page", *rows],
        metavar="CASE",
        help=", ".join([*CASES, *sorted(groups), *ENDURING, "start", "page", *ROWS]),
    )
    parser.add_argument("--duration", type=float, default=60.0, help="seconds of the mixed load")
    parser.add_argument(
        "--against", type=Path, metavar="SRC", help="compare with the source tree of this folder, without any peer"
    )
    parser.add_argument(
        "--connections",
        type=int,
        action="append",
        choices=range(1, 1025),
        metavar="1-1024",
        help="connections of the rows without a peer, instead of their own numbers; may be repeated",
    )
    parser.add_argument("--json", type=Path, help="write every round's figures to this file")
    parser.add_argument("--write", action="store_true", help="put the tables into benches/RESULTS.md")
    options = parser.parse_args()
    if "page" in (options.only or ()):
        options.only += PUBLISHED
    wanted = set(options.only or rows if options.against else options.only or names)
    if wanted <= rows:
        return alone(options, [name for name in ROWS if {name, name.partition("-")[0]} & wanted])
    if options.against or wanted & rows:
        parser.error(f"Only {', '.join(ROWS)} are measured without a peer; no other case can be combined with them.")
    only = set(options.only or ())
    return measure(options, [name for name in names if not only or {name, name.partition("-")[0]} & only])


def measure(options: argparse.Namespace, chosen: list[str]) -> int:
    """Measure cases beside their peers."""
    missing = [name for name in ("wrk", "taskset") if shutil.which(name) is None]
    if missing or not Path(PYTHON).exists() or not PROGRAM.exists():
        sys.exit(f"Not ready ({', '.join(missing) or 'no peers'}): start this with `make bench`.")
    for line in (f"Measured with {interpreter()}.", *left_out()):
        say(line)
    raise_file_limit()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(min(options.seconds, 60.0), Path(folder), say, duration=options.duration)
        try:
            bench.run(chosen, options.rounds)
        finally:
            bench.close()
    text = f"{describe(options)}\n\n{tables(bench.results)}"
    print(text)
    if options.json:
        every = {case: {name: asdict(found) for name, found in each.items()} for case, each in bench.results.items()}
        options.json.write_text(json.dumps(every, indent=1) + "\n", "utf-8")
    if options.write:
        python = ".".join(platform.python_version_tuple()[:2])
        PAGE.write_text(placed(PAGE.read_text("utf-8"), python, text), "utf-8")
    return 0 if all(verdict.kept for verdict in verdicts(bench.results)) else 1


def alone(options: argparse.Namespace, names: list[str]) -> int:
    """Measure rows of our server, on one or two source trees."""
    if shutil.which("wrk") is None or shutil.which("taskset") is None:
        sys.exit("Install wrk and taskset first: scripts/apt wrk util-linux")
    raise_file_limit()
    with tempfile.TemporaryDirectory() as folder:
        found = Comparison(trees(options.against), min(options.seconds, 60.0), Path(folder), say)
        found.run(names, options.rounds, options.connections or [])
    print(f"{processor()}, {interpreter()}\n\n{found.table()}")
    return 1 if any(row.errors for row in found.results.values()) else 0


def say(line: str) -> None:
    """Print the progress."""
    print(line, file=sys.stderr, flush=True)


def placed(page: str, python: str, text: str) -> str:
    """Return the page with this Python's tables replaced, and those of other Pythons unchanged."""
    mark = MARK.format(python)
    before, _, after = page.partition(mark)
    start = MARK.partition("{}")[0]
    _, other, later = after.partition(start)
    return f"{before.rstrip()}\n\n{mark}\n{text.rstrip()}\n" + (f"\n{other}{later}" if other else "")


def describe(options: argparse.Namespace) -> str:
    """Describe the command and the machine, for every table."""
    implied = PUBLISHED if "page" in (options.only or ()) else ()
    chosen = "".join(f" --only {name}" for name in options.only or () if name not in implied)
    lasting = "" if options.duration == 60 else f" --duration {options.duration:g}"
    version = "".join(f" VERSION={name}" for name in ENVIRONMENT.split("-")[1:])
    command = f'make bench{version} ARGS="--rounds {options.rounds} --seconds {options.seconds:g}{lasting}{chosen}"'
    release = ".".join(platform.release().split(".")[:2])
    return f"`{command}` on {processor()}, {platform.system()} {release}, {interpreter()}"


def interpreter() -> str:
    """Describe this Python, and whether it was optimized with a profile, which makes it up to a third faster."""
    # Debian optimizes its builds like this, but their configuration doesn't show it.
    debian = sys.base_prefix == "/usr" or ".pythons" in Path(sys.base_prefix).parts
    profiled = debian or "--enable-optimizations" in str(sysconfig.get_config_var("CONFIG_ARGS"))
    return f"Python {platform.python_version()} {'with' if profiled else 'without'} profile-guided optimization"


def processor() -> str:
    """Return the processor's name, if the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
