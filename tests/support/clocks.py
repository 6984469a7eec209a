"""Wall clocks that differ and change while processes run, set by a preloaded library."""

import mmap
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from programs import require_program

_ROWS = 64
_SOURCE = Path(__file__).parents[1] / "scale" / "shifted_clock.c"


def clock_library(folder: Path) -> Path:
    """Return the library. `make test` installs a compiler if possible."""
    library = folder / "shifted_clock.so"
    if not library.exists():
        command = [require_program("cc"), "-shared", "-fPIC", "-O2", "-o", str(library), str(_SOURCE), "-ldl"]
        subprocess.run(command, check=True)
    return library


class Clocks:
    """The clocks of a program and its child processes. The first process is the program."""

    def __init__(self, folder: Path, name: str) -> None:
        path = folder / f"{name}.clocks"
        path.write_bytes(bytes(8 * _ROWS))
        self.environment = {"LD_PRELOAD": str(clock_library(folder)), "CLOCK_TABLE": str(path)}
        with path.open("r+b") as file:
            self._table = mmap.mmap(file.fileno(), 8 * _ROWS)

    def set(self, first: int, others: Sequence[int]) -> None:
        """Move the clock of the first process by this many seconds, and the others in turn."""
        shifts = [first, *(others[number % len(others)] for number in range(_ROWS - 2))]
        self._table[8:] = struct.pack(f"{_ROWS - 1}q", *shifts)

    def command(self, command: Sequence[str]) -> list[str]:
        """Return a command that runs with these clocks."""
        return ["env", *(f"{name}={value}" for name, value in self.environment.items()), *command]
