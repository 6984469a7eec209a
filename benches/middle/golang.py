"""The tests of the Go SDK's package ``mcp``, with the ``millstream`` command between their clients and their servers.

Check out github.com/modelcontextprotocol/go-sdk at the commit in suites.toml, and set GO_SDK to its folder. Its files
stay as they are: an overlay of the Go compiler adds connect.go, calls it where a client or a server connects, and gives
tests a real clock, because Millstream can't share the fake one of ``testing/synctest``.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from msgspec import Struct

from benches.middle.starter import open_starter
from benches.middle.typescript import Outcomes, SourceMissing

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent.parent / ".bench" / "middle"
MODULE = "github.com/modelcontextprotocol/go-sdk"
SECONDS = 60
"""Maximum seconds of one test function."""
WORKERS = 2
CHANGES = {
    "transport.go": [
        ("\treturn &InMemoryTransport{c1}, ", "\treturn pair(&InMemoryTransport{c1}, "),
        ("&InMemoryTransport{c2}\n", "&InMemoryTransport{c2})\n"),
        ("\treturn newIOConn(t.rwc), nil\n", "\tt.connectToSocket()\n\treturn newIOConn(t.rwc), nil\n"),
    ],
    "server.go": [(r"(\nfunc \(s \*Server\) Connect\(.*\{\n)", r"\1\tserveAtSocket(t)\n")],
    "client.go": [(r"(\nfunc \(c \*Client\) Connect\(.*\{\n)", r"\1\tconnectToCommand(t)\n")],
    "streamable.go": [
        (r"(\surl: +)t\.Endpoint,", r'\1throughMillstream(t.Endpoint, "/mcp"),'),
        (
            r"(\nfunc \(c \*streamableClientConn\) Close\(\).*\n\tc\.closeOnce\.Do\(func\(\) \{\n)",
            r"\1\t\tdefer leaveMillstream(c.url)\n",
        ),
    ],
    "sse.go": [
        (
            r"(\nfunc \(c \*SSEClientTransport\) Connect\(.*\{\n)",
            r'\1\tcopied := *c\n\tc = &copied\n\tc.Endpoint = throughMillstream(c.Endpoint, "/sse")\n',
        ),
        ("\t\tclose(c.done)\n", "\t\tclose(c.done)\n\t\tleaveMillstream(c.msgEndpoint.String())\n"),
    ],
}
"""File of the package -> patterns, or text, and their replacements. Each has to match once."""
CLOCK = """package synctest

import (
	"testing"
	"time"
)

func Test(t *testing.T, f func(*testing.T)) { f(t) }

func Wait() { time.Sleep(400 * time.Millisecond) }
"""


class GoSuite(Struct):
    """A checkout of the SDK."""

    package: str
    commit: str
    variable: str
    """Environment variable with the folder of the checkout."""
    least: float
    """Minimum share of the tests that pass, of those that can apply."""
    left_out: dict[str, str]
    """Pattern of names of test functions that don't run -> why."""
    has_exceptions: bool = True
    stopped: bool = False
    tests: tuple[str, ...] = ()

    @property
    def home(self) -> Path:
        """Folder of its program, sockets, and logs."""
        return CACHE / self.package

    def fetch(self) -> Path:
        """Return the folder of the package.

        Raises:
            SourceMissing: The environment variable isn't set, or Go isn't installed.
            RuntimeError: It can't be compiled.
        """
        checkout = os.environ.get(self.variable)
        if not checkout or shutil.which("go") is None:
            raise SourceMissing(
                f"needs Go, and its source: check out {MODULE} at {self.commit}, and set {self.variable} to its folder"
            )
        source = Path(checkout).resolve() / "mcp"
        self.home.mkdir(parents=True, exist_ok=True)
        overlay = self.home / "overlay.json"
        overlay.write_text(json.dumps({"Replace": make_overlay(source, self.home)}), "utf-8")
        command = ["go", "test", "-c", "-vet=off", "-overlay", str(overlay), "-o", str(self.home / "tests"), "."]
        done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"can't be compiled: {done.stderr[-1000:]}")
        return source

    def run(self, source: Path, tests: Sequence[str], *, alone: bool = False) -> Outcomes:
        """Run each test function in a process of its own, and return the outcomes of all tests without subtests.

        Args:
            source: See `fetch`.
            tests: Names of tests. Without any, all of them.
            alone: Whether to run them without Millstream.
        """
        program = self.home / "tests"
        listing = subprocess.run([program, "-test.list", "."], cwd=source, capture_output=True, text=True, check=True)
        wanted = {name.partition("/")[0] for name in tests}
        functions = [
            name
            for name in listing.stdout.split()
            if name.startswith("Test")
            and (name in wanted if wanted else not any(re.search(each, name) for each in self.left_out))
        ]
        environment = os.environ | ({"ALONE": "1"} if alone else {})
        environment["PIPE"] = json.dumps([sys.executable, "-I", "-S", str(HERE / "pipe.py")])
        outcomes: Outcomes = {}
        with open_starter(self.home / "commands") as starter, ThreadPoolExecutor(WORKERS) as pool:
            run_one = partial(run_function, program, source, environment | {"STARTER": str(starter)})
            for found in pool.map(run_one, functions):
                outcomes |= found
        return {
            name: each for name, each in outcomes.items() if not tests or {name, name.partition("/")[0]} & set(tests)
        }


def make_overlay(source: Path, home: Path) -> dict[str, str]:
    """Write the files that differ, and return them by the path that they have for the compiler.

    Args:
        source: Folder of the package.
        home: Folder to write to.

    Raises:
        RuntimeError: A pattern of `CHANGES` doesn't match.
    """
    clock = source.parent / "internal" / "realtime" / "synctest.go"
    changed = {source / "millstream.go": (HERE / "connect.go").read_text("utf-8"), clock: CLOCK}
    for name, changes in CHANGES.items():
        text = (source / name).read_text("utf-8")
        for old, new in changes:
            is_pattern = old.startswith("(")
            text, count = re.subn(old, new, text) if is_pattern else (text.replace(old, new), text.count(old))
            if count != 1:
                raise RuntimeError(f"has changed: {old!r} matches {name} {count} times")
        changed[source / name] = text
    for file in source.glob("*_test.go"):
        text = file.read_text("utf-8")
        if '"testing/synctest"' in text:
            changed[file] = text.replace('"testing/synctest"', f'synctest "{MODULE}/internal/realtime"')
    overlay: dict[str, str] = {}
    for number, (path, text) in enumerate(changed.items()):
        overlay[str(path)] = str(home / f"{number}.go")
        (home / f"{number}.go").write_text(text, "utf-8")
    return overlay


def run_function(program: Path, source: Path, environment: dict[str, str], function: str) -> Outcomes:
    """Run a test function, and return the outcomes of its tests that have no subtests. A test is skipped unless it, or
    a test that contains it, connects a client to a server.
    """
    command = [program, "-test.run", f"^{function}$", "-test.v", "-test.timeout", f"{SECONDS}s"]
    done = subprocess.run(
        command, cwd=source, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    output = done.stdout.decode("utf-8", "replace")
    current, connected = "", set[str]()
    found, reasons = dict[str, str](), dict[str, list[str]]()
    for line in output.splitlines():
        if match := re.match(r"=== (?:RUN|CONT|NAME)\s+(\S+)", line):
            current = match[1]
            found.setdefault(current, "failed")  # a test without an end hangs
        elif match := re.match(r"\s*--- (PASS|FAIL|SKIP): (\S+)", line):
            found[match[2]] = {"PASS": "passed", "FAIL": "failed", "SKIP": "skipped"}[match[1]]
        elif line == "CONNECTED":
            connected.add(current)
        else:
            reasons.setdefault(current, []).append(line.strip())
    outcomes: Outcomes = {}
    for name, outcome in found.items():
        if any(other.startswith(f"{name}/") for other in found):
            continue
        is_between = any(name == each or name.startswith(f"{each}/") for each in connected)
        outcomes[name] = outcome if is_between else "skipped", " ".join(filter(None, reasons.get(name, [])))[:500]
    return outcomes
