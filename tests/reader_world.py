"""Somebody who reads a page of the documents and does what it says: writes its files, and types its commands.

The folder is empty, and has an environment with the package from its wheel. A page has steps, in the order in which
it shows them: a file to write, or a command with what it prints. ``8000`` is a free port, wherever the page says it.
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

FILE_LANGUAGES = frozenset(("python", "ini", "js", "json", "yaml", "nginx"))
"""The languages of blocks that one saves."""
SERVERS = re.compile(r"(\w+=\S+ )*(millstream (run|dev) (?!.*--transport stdio)|uvicorn |python several_workers)")
"""Commands that go on until they are stopped."""
ESCAPES = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")
PIP_SCRIPTS = ("uvicorn", "pytest")
"""Commands that pip would put beside ``millstream``."""


INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}
"""What a client says first to a server that it has started."""


class FileBlock(NamedTuple):
    """A block that goes into a file, behind what is there."""

    name: str
    body: str


class TypedCommand(NamedTuple):
    """A command, what it prints where the page says so, and at a terminal, what is asked and what one answers."""

    command: str
    printed: str = ""
    answers: tuple[tuple[str, str], ...] = ()


class TextBlock(NamedTuple):
    """Text that is neither: the test says what becomes of it."""

    body: str


Step = FileBlock | TypedCommand | TextBlock


def steps(text: str) -> Iterator[Step]:
    """What a page has one do.

    A text block behind a shell block is what the last line of that prints. A text block that begins with a prompt is
    a terminal: commands behind ``$``, and what each prints.
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
    """An environment with the package from its wheel; what it needs comes from the environment of the tests."""
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
    """Somebody with an empty folder."""

    def __init__(self, folder: Path, environment: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / ".venv").symlink_to(environment)
        self.folder = folder
        self.port = free_port()
        self.places: dict[str, str] = {}
        """What the page calls something -> what it's called here."""
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
        """What pip installed: pytest has the plugins that the page says, and no others."""
        plugins = [f"{name.replace('-', '_')}.plugin" for name in packages if name.startswith("pytest-")]
        self.variables["PYTEST_PLUGINS"] = ",".join(plugins) or self.variables["PYTEST_PLUGINS"]

    def localize(self, text: str) -> str:
        """A text of the page with the ports and places of this machine."""
        for name, place in self.places.items():
            text = text.replace(name, place)
        return re.sub(r"\b8000\b", str(self.port), text)

    def write(self, step: FileBlock) -> None:
        """Save a block."""
        with (self.folder / step.name).open("a", encoding="utf-8") as file:
            file.write(f"{self.localize(step.body)}\n\n")

    def type(self, step: TypedCommand) -> None:
        """Do what a line says, and compare what it prints."""
        command = self.localize(step.command)
        if command.startswith("export "):
            name = command.split()[1].partition("=")[0]
            self.variables[name] = self.run(f'{command}\nprintf %s "${name}"')
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
        """A command that ends by itself, with a status of 0."""
        done = subprocess.run(
            ["bash", "-c", command], input=given, capture_output=True, text=True, timeout=WAIT, cwd=self.folder,
            env=self.variables, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, command: str) -> None:
        """A server. The one before is stopped, because both would want the same port."""
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
        """Press Ctrl-C where the server runs."""
        self._running.close()

    def check_output(self, command: str, wanted: str) -> None:
        """A command until it has printed what the page shows: some go on for ever. Others have to end well."""
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
            return output.read_text("utf-8", "replace")

        try:
            until(lambda: fits(printed(), wanted), process, command, printed, wanted)
        finally:
            _end(process)

    def run_at_terminal(self, command: str, wanted: str, answers: tuple[tuple[str, str], ...]) -> None:
        """A command at a terminal. Each answer is typed once the text before it is there."""
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
            with suppress(OSError):  # nothing yet, or nothing any more
                while more := os.read(ours, 65536):
                    seen += more
            return ESCAPES.sub("", seen.decode("utf-8", "replace")).replace("\r", "")

        at = 0
        try:
            for asked, answer in answers:
                until(lambda: asked in printed()[at:], process, command, printed)  # noqa: B023  called at once
                at = printed().index(asked, at) + len(asked)
                if "word" in asked or "confirmation" in asked:  # the question is there a moment before the echo is off
                    until(lambda: not termios.tcgetattr(ours)[3] & termios.ECHO, process, command, printed)
                os.write(ours, f"{answer}\n".encode())
            until(lambda: fits(printed(), wanted), process, command, printed, wanted)
        finally:
            _end(process)
            os.close(ours)


def fits(printed: str, wanted: str) -> bool:
    """Whether a command printed what the page shows, where ``…`` stands for anything."""
    lines = "\n".join(line.rstrip() for line in printed.split("\n")).strip()
    return re.fullmatch(".*?".join(map(re.escape, wanted.strip().split("…"))), lines, re.DOTALL) is not None


def until(
    true: Callable[[], bool],
    process: "subprocess.Popen[bytes]",
    command: str,
    printed: Callable[[], str],
    wanted: str = "",
) -> None:
    """Return once something is true. Fails when the command has ended and it isn't, or the time is over."""
    deadline = time.monotonic() + WAIT
    while True:
        ended = process.poll() is not None
        if true():
            return
        what = f"{command}\nprinted:\n{printed()}\nand the page says:\n{wanted}"
        assert not ended, f"{what}\nIt ended with {process.returncode}."
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
