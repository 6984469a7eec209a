"""A terminal of a given width in tmux: typed input, and visible output."""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from patience import WAIT
from programs import needs

needs_tmux = needs("tmux")
COMMAND = [sys.executable, "-c", "import sys; sys.argv[0] = 'millstream'; from millstream._cli import main; main()"]


class Terminal:
    """One program on one terminal."""

    def __init__(self, socket: Path) -> None:
        self._tmux = ["tmux", "-S", str(socket), "-f", "/dev/null"]

    def start(self, command: list[str], columns: int, lines: int, env: Mapping[str, str], folder: Path) -> None:
        given = [word for name, value in env.items() for word in ("-e", f"{name}={value}")]
        size = ["-x", str(columns), "-y", str(lines)]
        # Print the exit status last, and keep the terminal open.
        shell = ["sh", "-c", 'trap : INT; "$@"; echo "ended with $?"; exec cat', "sh", *command]
        self._run("new-session", "-d", *size, *given, "-c", str(folder), *shell)

    def _run(self, *arguments: str) -> str:
        done = subprocess.run([*self._tmux, *arguments], capture_output=True, text=True, timeout=WAIT, check=True)
        return done.stdout

    def type(self, text: str) -> None:
        """Type a line and Enter."""
        self._run("send-keys", "-l", text)
        self._run("send-keys", "Enter")

    def press(self, *keys: str) -> None:
        """Press keys by name, such as ``C-c``."""
        self._run("send-keys", *keys)

    def seen(self) -> list[str]:
        """Return the lines of the terminal, including scrollback, without trailing blanks."""
        return self._run("capture-pane", "-p", "-S", "-").rstrip("\n").split("\n")

    def until(self, *wanted: str) -> list[str]:
        """Return the lines once they contain all of these texts, in this order."""
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
        """Stop the program and the terminal."""
        subprocess.run([*self._tmux, "kill-server"], capture_output=True, timeout=WAIT, check=False)


@contextmanager
def terminal(
    arguments: list[str], folder: Path, *, columns: int, lines: int = 50, env: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    """Run `millstream` with these arguments on a terminal, in this folder."""
    with TemporaryDirectory() as short:  # paths of Unix sockets must be short
        opened = Terminal(Path(short) / "tmux")
        opened.start([*COMMAND, *arguments], columns, lines, env or {}, folder)
        try:
            yield opened
        finally:
            opened.end()
