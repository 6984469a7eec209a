"""Run a command as on a bad day: `scripts/busy.py [--seed N] COMMAND...`, or `make busy RUN="make unit"`.

Every core is kept busy, and now and then the command's processes are stopped for some seconds, like a machine whose
host is short of memory. Three kinds of stops alternate: processes without children (servers, and programs that call
them), processes with children (the tests), and all of them. So each side meets a peer that is silent for longer than
any short timeout. Only descendants of the command are stopped, and processes that they stop themselves stay stopped.

Exits with the status of the command.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

SECONDS = 8.0
"""Range for the length of a stop, in seconds."""
BETWEEN = (10.0, 25.0)
"""Range for the time between two stops, in seconds."""
BURN = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    sum(range(1_000_000))"

Tree = dict[int, int]
"""Process -> its parent."""


def descendants(root: int) -> Tree:
    """Return `root` and every process below it."""
    parents: Tree = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text("utf-8", "replace").rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    found = {root: os.getpid()}
    while more := {pid: parent for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= more
    return found


def leaves(tree: Tree) -> set[int]:
    """Return processes without children."""
    return set(tree) - set(tree.values())


def inner(tree: Tree) -> set[int]:
    """Return processes with children."""
    return set(tree) & set(tree.values())


KINDS: dict[str, Callable[[Tree], set[int]]] = {"leaves": leaves, "parents": inner, "all": set}


@contextmanager
def standstill(root: int, kind: str) -> Iterator[int]:
    """Stop some descendants inside the block, and yield their number."""
    with ExitStack() as stack:
        chosen = KINDS[kind](descendants(root))
        handles: dict[int, int] = {}
        for pid in chosen:
            try:
                handles[pid] = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            stack.callback(os.close, handles[pid])
        still = descendants(root)  # a process id may have been reused before its handle was open
        mine = {pid: handle for pid, handle in handles.items() if pid in still and not stopped(pid)}
        try:
            for handle in mine.values():
                send(handle, signal.SIGSTOP)
            yield len(mine)
        finally:
            for pid, handle in mine.items():
                if not stopped(pid, twice=True):
                    send(handle, signal.SIGCONT)


def stopped(pid: int, *, twice: bool = False) -> bool:
    """Return whether a process is stopped. With `twice`, return whether another process has also stopped it."""
    try:
        text = Path(f"/proc/{pid}/status").read_text("utf-8", "replace")
    except OSError:  # it has ended
        return False
    status = dict(line.split(":\t", 1) for line in text.splitlines())
    waiting = int(status["ShdPnd"], 16) >> (signal.SIGSTOP - 1) & 1
    return status["State"].startswith("T") and (not twice or bool(waiting))


def send(handle: int, number: signal.Signals) -> None:
    """Signal a process that may have ended."""
    try:
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return


@contextmanager
def occupied() -> Iterator[None]:
    """Keep every core busy inside the block, at most until this process ends."""
    command = [sys.executable, "-c", BURN, str(os.getpid())]
    burners = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for each in burners:
            each.kill()
            each.wait()


def run(command: list[str], *, seed: int, between: tuple[float, float] = BETWEEN, seconds: float = SECONDS) -> int:
    """Run the command until it ends."""
    chance = random.Random(seed)  # noqa: S311  not a secret
    environment = {**os.environ, "BUSY_MACHINE": "1"}  # hanging tests are given more time
    with occupied(), subprocess.Popen(command, env=environment) as process:
        kinds = list(KINDS)
        while process.poll() is None:
            kinds.append(kinds.pop(0))
            try:
                process.wait(chance.uniform(*between))
            except subprocess.TimeoutExpired:
                with standstill(process.pid, kinds[-1]) as count:
                    print(f"[busy: {kinds[-1]} stand still, {count} processes]", file=sys.stderr, flush=True)
                    time.sleep(seconds)
        return process.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.randrange(1000))  # noqa: S311  not a secret
    parser.add_argument("--between", type=float, nargs=2, default=BETWEEN, metavar=("LEAST", "MOST"))
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    print(f"[busy: seed {given.seed}]", file=sys.stderr, flush=True)
    return run(given.command, seed=given.seed, between=tuple(given.between), seconds=given.seconds)


if __name__ == "__main__":
    sys.exit(main())
