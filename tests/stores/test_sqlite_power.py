import asyncio
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from programs import require_program

WRITER = Path(__file__).with_name("sqlite_writer.py")
CALL = re.compile(r"^(\d+) +(\w+)\((\d+)(.*)$")
RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)$")
ENTRY = re.compile(r"run:\d+:\d+")


def steps(lines: Iterable[str]) -> Iterator[tuple[str, int, set[str]]]:
    """Return (call, descriptor, entries written) in the order in which calls ended. Writes count from their start."""
    open_calls: dict[str, int] = {}
    for line in lines:
        begun, resumed = CALL.match(line), RESUMED.match(line)
        if begun is not None:
            thread, call, descriptor, rest = begun.groups()
            if call != "fdatasync":
                yield call, int(descriptor), set(ENTRY.findall(rest))
            elif "unfinished" in rest:
                open_calls[thread] = int(descriptor)
            elif rest.rstrip().endswith("= 0"):
                yield call, int(descriptor), set()
        elif resumed is not None and resumed[2] == "fdatasync" and resumed[3].rstrip().endswith("= 0"):
            yield "fdatasync", open_calls[resumed[1]], set()


def acknowledged_too_early(lines: Iterable[str]) -> tuple[int, set[str]]:
    """Return the number of acknowledged entries, and those that a power loss at that moment would lose."""
    written: defaultdict[int, set[str]] = defaultdict(set)
    safe: set[str] = set()
    early: set[str] = set()
    acknowledged = 0
    for call, descriptor, entries in steps(lines):
        if call == "pwrite64":
            written[descriptor] |= entries
        elif call == "fdatasync":
            safe |= written.pop(descriptor, set())
        elif descriptor == 1:
            acknowledged += len(entries)
            early |= entries - safe
    return acknowledged, early


def test_strace_records_are_parsed() -> None:
    lines = [
        '7 pwrite64(5, "..run:1:0..run:2:0..", 100, 0) = 100',
        "8 fdatasync(5 <unfinished ...>",
        '7 write(1, "[1, \\"run:1:0\\"]", 9) = 9',
        "8 <... fdatasync resumed>) = 0",
        '7 write(1, "[2, \\"run:2:0\\"]", 9) = 9',
        '7 pwrite64(6, "..run:3:0..", 100, 0) = 100',
        "7 fdatasync(6) = -1 EIO (Input/output error) (INJECTED)",
        '7 write(1, "[3, \\"run:3:0\\"]", 9) = 9',
    ]
    assert acknowledged_too_early(lines) == (3, {"run:1:0", "run:3:0"})


@pytest.mark.server
@pytest.mark.parametrize("durability", ["full", "normal"])
async def test_full_durability_syncs_before_acknowledging(tmp_path: Path, durability: str) -> None:
    strace = require_program("strace")
    record = tmp_path / "record"
    url = f"sqlite:///{tmp_path}/store.db?durability={durability}"
    command = [
        strace, "-f", "-qq", "-s", "10000000", "-e", "trace=pwrite64,fdatasync,write", "-o", str(record),
        sys.executable, str(WRITER), url, "run", "30",
    ]  # fmt: skip
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    acknowledged, early = acknowledged_too_early(record.read_text("utf-8", "replace").splitlines())
    assert acknowledged == 16 * 30
    assert bool(early) is (durability == "normal")
