"""A terminal of a given width that a program runs in, by tmux: what a person types and sees."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from patience import WAIT

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux isn't installed; `make test` installs it")
COMMAND = [sys.executable, "-c", "import sys; sys.argv[0] = 'millstream'; from millstream._cli import main; main()"]


class Terminal:
    """One program at one terminal."""

    def __init__(self, socket: Path) -> None:
        self._tmux = ["tmux", "-S", str(socket), "-f", "/dev/null"]

    def start(self, command: list[str], columns: int, lines: int, env: Mapping[str, str], folder: Path) -> None:
        given = [word for name, value in env.items() for word in ("-e", f"{name}={value}")]
        size = ["-x", str(columns), "-y", str(lines)]
        # The status of the program is the last thing to be seen, and stays there.
        shell = ["sh", "-c", 'trap : INT; "$@"; echo "ended with $?"; exec cat', "sh", *command]
        self._run("new-session", "-d", *size, *given, "-c", str(folder), *shell)

    def _run(self, *arguments: str) -> str:
        done = subprocess.run([*self._tmux, *arguments], capture_output=True, text=True, timeout=WAIT, check=True)
        return done.stdout

    def type(self, text: str) -> None:
        """A line and the Enter key."""
        self._run("send-keys", "-l", text)
        self._run("send-keys", "Enter")

    def press(self, *keys: str) -> None:
        """Keys by their names, such as ``C-c``."""
        self._run("send-keys", *keys)

    def seen(self) -> list[str]:
        """The lines of the terminal, with those that have scrolled away, without blanks at their ends."""
        return self._run("capture-pane", "-p", "-S", "-").rstrip("\n").split("\n")

    def until(self, *wanted: str) -> list[str]:
        """The lines, once all of these texts are among them in this order."""
        deadline = time.monotonic() + WAIT
        while True:
            lines = self.seen()
            text, at = "\n".join(lines), 0
            for each in wanted:
                at = text.find(each, at)
                if at < 0:
                    break
                at += len(each)
            else:
                return lines
            assert time.monotonic() < deadline, f"{wanted!r} didn't appear:\n{text}"
            time.sleep(0.02)

    def end(self) -> None:
        """End the program and the terminal."""
        subprocess.run([*self._tmux, "kill-server"], capture_output=True, timeout=WAIT, check=False)


@contextmanager
def terminal(
    arguments: list[str], folder: Path, *, columns: int, lines: int = 50, env: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    """`millstream` with these arguments at a terminal, in this folder."""
    with TemporaryDirectory() as short:  # the path of a socket has little room
        opened = Terminal(Path(short) / "tmux")
        opened.start([*COMMAND, *arguments], columns, lines, env or {}, folder)
        try:
            yield opened
        finally:
            opened.end()
