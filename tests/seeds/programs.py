"""Runs the seeds' commands and programs against a server, and reads their output while it arrives."""

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from patience import WAIT
from processes import NODE

HERE = Path(__file__).resolve().parent
PATIENCE = 0.25
"""How long a stream may stay silent before what should reach it is done once more."""


def at(text: str, port: int) -> str:
    """Return a command or program with the port of the test's server."""
    return text.replace("localhost:8000", f"localhost:{port}").replace("sse-mcp-server:8000", f"localhost:{port}")


async def shell(command: str, port: int) -> str:
    """Run a command of a seed to its end, and return its output."""
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", at(command, port), stdin=DEVNULL, stdout=PIPE, stderr=PIPE
    )
    try:
        printed, said = await asyncio.wait_for(process.communicate(), WAIT)
    finally:
        await _end(process)
    assert process.returncode == 0, said.decode()
    return printed.decode()


async def shell_json(command: str, port: int) -> Any:
    """Run a command whose output is JSON."""
    return json.loads(await shell(command, port))


class Program:
    """A running program, and the lines it printed."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.lines: list[str] = []

    async def line(self) -> str:
        """Return the next line. Fail if the program has ended."""
        assert self._process.stdout is not None
        line = (await self._process.stdout.readline()).decode()
        assert line, f"the program ended: {''.join(self.lines)}"
        self.lines.append(line)
        return line

    async def until(self, wanted: Callable[[str], bool], again: Callable[[], Awaitable[Any]] | None = None) -> str:
        """The first line that is wanted.

        Args:
            wanted: asked for every line.
            again: done first, and whenever the program was silent; for what only reaches a program that has connected.
        """
        async with asyncio.timeout(WAIT):
            while True:
                if again is not None:
                    await again()
                try:
                    async with asyncio.timeout(PATIENCE if again is not None else None):
                        while not wanted(line := await self.line()):
                            pass
                        return line
                except TimeoutError:
                    continue


@asynccontextmanager
async def running(*command: str) -> AsyncIterator[Program]:
    """Run a program in the block."""
    process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT)
    try:
        yield Program(process)
    finally:
        await _end(process)


def shell_program(command: str, port: int) -> Any:
    """Run a command of a seed that prints until it's stopped."""
    return running("bash", "-c", f"exec {at(command, port)} --silent --show-error")


def python_program(source: str, port: int) -> Any:
    """Run a Python program of a seed."""
    return running(sys.executable, "-u", "-c", at(source, port))


def browser_script(source: str, port: int) -> Any:
    """Run a page's script of a seed in Node, with a minimal document."""
    return running(NODE, "--experimental-eventsource", "--no-warnings", str(HERE / "page.cjs"), at(source, port))


async def _end(process: Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()
