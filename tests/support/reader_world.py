"""Follow a page of the documentation: write its files and type its commands.

The reader starts in an empty folder, with an environment that has the package from its wheel. A page is a sequence of
steps: a file to write, or a command and its output. A free port replaces ``8000`` everywhere.
"""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import sysconfig
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple, Self

from patience import WAIT
from processes import ROOT, free_port, wait_for_port
from scripts.docs import blocks

FILE_LANGUAGES = frozenset(("python", "html", "ini", "js", "json", "yaml", "nginx", "toml"))
"""Languages of blocks that the reader saves."""
SERVERS = re.compile(
    r"(\w+=\S+ )*(millstream (run|dev|gateway (?!accept|add|remove)) ?(?!.*--transport stdio)|uvicorn "
    r"|python several_workers)"
)
"""Commands that run until they're stopped."""
SLOW = re.compile(r"^Waiting for a response from .*\n", re.MULTILINE)
"""What commands print on a busy machine, before their output."""
ESCAPES = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")
PIP_SCRIPTS = ("uvicorn", "pytest")
"""Scripts that pip would install beside ``millstream``."""


INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}
"""The first message of a client."""


class FileBlock(NamedTuple):
    """A block to append to a file."""

    name: str
    body: str


class TypedCommand(NamedTuple):
    """A command, its output if the page shows it, and at a terminal, the prompts with their answers."""

    command: str
    printed: str = ""
    answers: tuple[tuple[str, str], ...] = ()


class TextBlock(NamedTuple):
    """Other text, which the test handles."""

    body: str


Step = FileBlock | TypedCommand | TextBlock


def steps(text: str) -> Iterator[Step]:
    """Yield the steps of a page.

    A text block after a shell block is the output of its last line. A text block that starts with a prompt is a
    terminal: commands after ``$``, each with its output.
    """
    last: list[str] = []
    for block in blocks(text):
        printed = block.body.strip("\n") if block.language in ("", "text") else None
        if last and (printed is None or printed.startswith("$ ")):
            yield TypedCommand(last.pop())
        if block.language in FILE_LANGUAGES:
            yield FileBlock(Path(block.source.partition("#")[0]).name.removesuffix(".example"), block.body)
        elif block.language == "sh":
            *before, end = block.body.splitlines()
            yield from map(TypedCommand, before)
            last.append(end)
        elif printed is not None and printed.startswith("$ "):
            for each in printed.removeprefix("$ ").split("\n$ "):
                yield TypedCommand(*each.split("\n", 1))
        elif printed is not None:
            if last and SERVERS.match(last[0]):
                yield TypedCommand(last.pop())
            yield TypedCommand(last.pop(), printed) if last else TextBlock(printed)
    if last:
        yield TypedCommand(last.pop())


def install(home: Path) -> Path:
    """Create an environment with the package from its wheel. Dependencies come from the tests' environment."""
    uv = [sys.executable, "-m", "uv", "--quiet", "--offline"]
    environment = home / ".venv"
    for arguments in (
        ["build", "--wheel", "--out-dir", str(home), str(ROOT)],
        ["venv", "--python", sys.executable, str(environment)],
        ["pip", "install", "--no-deps", "--python", str(environment), "--find-links", str(home), "millstream"],
    ):
        subprocess.run([*uv, *arguments], check=True, timeout=WAIT, cwd=home)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"), "utf-8")
    for name in PIP_SCRIPTS:
        script = environment / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{environment}/bin/python" -m {name} "$@"\n')
        script.chmod(0o755)
    return environment


class Reader:
    """A reader in an empty folder."""

    def __init__(self, folder: Path, environment: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / ".venv").symlink_to(environment)
        self.folder = folder
        self.port = free_port()
        self.places: dict[str, str] = {}
        """Text on the page -> its local replacement."""
        self.variables = {
            "PATH": f"{environment / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(folder),
            "MILLSTREAM_PORT": str(self.port),
            "NO_COLOR": "1",
            "TERM": "dumb",
            "COLUMNS": "200",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_PLUGINS": "",
        }
        self._running = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def set_installed(self, *packages: str) -> None:
        """Enable the pytest plugins among the packages that the page installs, and no others."""
        plugins = [f"{name.replace('-', '_')}.plugin" for name in packages if name.startswith("pytest-")]
        self.variables["PYTEST_PLUGINS"] = ",".join(plugins) or self.variables["PYTEST_PLUGINS"]

    def localize(self, text: str) -> str:
        """Replace the page's ports and places with local ones."""
        for name, place in self.places.items():
            text = text.replace(name, place)
        return re.sub(r"\b8000\b", str(self.port), text)

    def write(self, step: FileBlock) -> None:
        """Append a block to its file."""
        with (self.folder / step.name).open("a", encoding="utf-8") as file:
            file.write(f"{self.localize(step.body)}\n\n")

    def type(self, step: TypedCommand) -> None:
        """Run a command and compare its output."""
        command = self.localize(step.command)
        if command.startswith("export "):
            name = command.split()[1].partition("=")[0]
            self.variables[name] = self.run(f'{command}\nprintf %s "${name}"')
        elif command.startswith("unset "):
            del self.variables[command.split()[1]]
        elif command.endswith("--transport stdio"):
            answer = json.loads(self.run(command, given=f"{json.dumps(INITIALIZE)}\n"))
            assert answer["result"]["protocolVersion"] == "2025-11-25"
        elif SERVERS.match(command):
            self.start(command)
        elif step.answers:
            self.run_at_terminal(command, self.localize(step.printed), step.answers)
        else:
            self.check_output(command, self.localize(step.printed))

    def run(self, command: str, *, given: str = "") -> str:
        """Run a command that exits with status 0, and return its output."""
        done = subprocess.run(
            ["bash", "-c", command], input=given, capture_output=True, text=True, timeout=WAIT, cwd=self.folder,
            env=self.variables, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, command: str) -> None:
        """Start a server. The previous one is stopped, because both use the same port."""
        self.stop()
        if command.startswith("uvicorn "):
            command = f"{command} --port {self.port}"
        assignments = re.match(r"(?:\w+=\S+ )*", command)
        assert assignments is not None
        log = self.folder / "server.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                ["bash", "-c", f"{assignments[0]} exec {command[assignments.end():]}"], cwd=self.folder,
                env=self.variables, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
            )  # fmt: skip
        self._running.callback(_stop, process)
        wait_for_port(process, self.port, log)

    def stop(self) -> None:
        """Stop the server."""
        self._running.close()

    def check_output(self, command: str, wanted: str) -> None:
        """Run a command until it prints what the page shows. Without output to wait for, it must succeed."""
        if not wanted:
            self.run(command)
            return
        output = self.folder / "output"
        with output.open("wb") as sink:
            process = subprocess.Popen(
                ["bash", "-c", command], cwd=self.folder, env=self.variables, stdin=subprocess.DEVNULL, stdout=sink,
                stderr=sink, start_new_session=True,
            )  # fmt: skip

        def printed() -> str:
            return SLOW.sub("", output.read_text("utf-8", "replace"))

        try:
            until(lambda: fits(printed(), wanted), process, command, printed, wanted)
        finally:
            _end(process)

    def run_at_terminal(self, command: str, wanted: str, answers: tuple[tuple[str, str], ...]) -> None:
        """Run a command at a terminal, and type each answer after its prompt appears."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=self.folder, env=self.variables, stdin=theirs, stdout=theirs,
            stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        os.set_blocking(ours, False)
        seen = b""

        def printed() -> str:
            nonlocal seen
            with suppress(OSError):  # no output yet, or end of output
                while more := os.read(ours, 65536):
                    seen += more
            return ESCAPES.sub("", seen.decode("utf-8", "replace")).replace("\r", "")

        at = 0
        try:
            for asked, answer in answers:
                until(lambda: asked in printed()[at:], process, command, printed)  # noqa: B023  called at once
                at = printed().index(asked, at) + len(asked)
                if "word" in asked or "confirmation" in asked:  # the prompt appears shortly before echo is turned off
                    until(lambda: not termios.tcgetattr(ours)[3] & termios.ECHO, process, command, printed)
                os.write(ours, f"{answer}\n".encode())
            until(lambda: fits(printed(), wanted), process, command, printed, wanted)
        finally:
            _end(process)
            os.close(ours)


def fits(printed: str, wanted: str) -> bool:
    """Return whether the output matches the page, where ``…`` matches anything."""
    lines = "\n".join(line.rstrip() for line in printed.split("\n")).strip()
    return re.fullmatch(".*?".join(map(re.escape, wanted.strip().split("…"))), lines, re.DOTALL) is not None


def until(
    true: Callable[[], bool],
    process: "subprocess.Popen[bytes]",
    command: str,
    printed: Callable[[], str],
    wanted: str = "",
) -> None:
    """Wait until a condition is true. Fail if the command ends before, or if the wait times out."""
    deadline = time.monotonic() + WAIT
    while True:
        ended = process.poll() is not None
        if true():
            return
        what = f"{command}\nprinted:\n{printed()}\nbut the page shows:\n{wanted}"
        assert not ended, f"{what}\nIt exited with status {process.returncode}."
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait(WAIT)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.wait(WAIT)
