"""A separate program that ends processes after their parent process has died, even by SIGKILL.

`ProcessPool` starts one watchdog per worker and writes process groups to its standard input: ``+PID`` for a new one,
``-PID`` for one that has ended. The kernel closes that pipe when the worker ends, and the watchdog then ends the
remaining groups. On Linux, it also ends daemons that left their group: those with its first argument in their
environment, which they inherit. It doesn't import anything from Millstream, so it starts fast and stays small.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_GRACE = 2.0
"""Seconds for a group to end after standard input has closed, and again after SIGTERM."""
_TICK = 0.05


def main(lines: Iterable[bytes], mark: bytes) -> None:
    """Process `lines` until they end, then end every remaining group, and every process with `mark`."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    groups: dict[int, bytes] = {}
    for line in lines:
        leader = int(line[1:])
        if line[:1] == b"+":
            groups[leader] = _start_time(leader)
        else:
            groups.pop(leader, None)
    for number in (0, signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _GRACE
        if number:
            for leader, started in list(groups.items()):
                _send(leader, started, number)
            for daemon in _find_marked(mark):
                with suppress(OSError):
                    os.kill(daemon, number)
        while number != signal.SIGKILL and time.monotonic() < deadline:
            groups = {leader: started for leader, started in groups.items() if _send(leader, started, 0)}
            if not groups and not (number and _find_marked(mark)):
                break
            time.sleep(_TICK)


def _find_marked(mark: bytes) -> list[int]:
    """Return the processes with a variable in their environment, on systems with /proc."""
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def _send(leader: int, started: bytes, number: int) -> bool:
    """Send a signal to a group and return whether it still exists. Its id may have been reused."""
    now = _start_time(leader)
    if now and now != started:
        return False
    with suppress(OSError):
        os.killpg(leader, number)
        return True
    return False


def _start_time(pid: int) -> bytes:
    """Return the start time of a process, on systems with /proc, or empty if it has ended."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19]
    return b""


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.argv[1].encode())
