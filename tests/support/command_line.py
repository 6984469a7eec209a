"""Runs commands in this process, and examines their options."""

import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any
from unittest import mock

from cyclopts import App

from millstream._app.server_process import CommandError
from millstream._cli import main
from millstream._cli.connect_options import _ServerOutput
from millstream._cli.help import OVERVIEW, as_text
from millstream._cli.program import program, run_command

__all__ = ["CommandError", "program"]


def overview() -> str:
    """Return what `millstream --help` prints."""
    return as_text(*OVERVIEW)


@dataclass
class Result:
    """The outcome of a command."""

    exit_code: int
    stdout: str
    stderr: str
    exception: BaseException | None

    @property
    def output(self) -> str:
        """Standard output, followed by errors."""
        return self.stdout + self.stderr


class CliRunner:
    """Runs commands without a terminal."""

    def invoke(
        self, app: App, words: list[str], input: str | bytes | None = None, env: Mapping[str, str | None] | None = None
    ) -> Result:
        """Run a command. Errors that `main` would report are in `exception`. A variable that's None is unset."""
        with mock.patch.object(sys, "argv", ["millstream", *words]):
            return _run(lambda: run_command(app, words), input, env)


def run_in_process(*words: str, input: str = "", env: Mapping[str, str | None] | None = None) -> Result:
    """Run `millstream` with these words. All that a process of its own adds to this is its start."""
    with mock.patch.object(sys, "argv", ["millstream", *words]):
        done = _run(main, input, env)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@contextmanager
def _restored_loggers() -> Iterator[None]:
    """Undo what a command changes at loggers: ``--debug`` shows messages, for example."""
    loggers = [logging.getLogger(name) for name in (None, "millstream.client.messages")]
    before = [(list(each.handlers), each.level, each.propagate) for each in loggers]
    try:
        yield
    finally:
        for each, (handlers, level, propagate) in zip(loggers, before, strict=True):
            each.handlers[:], each.propagate = handlers, propagate
            each.setLevel(level)


def _run(command: Callable[[], None], input: str | bytes | None, env: Mapping[str, str | None] | None) -> Result:
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)]
    given = io.TextIOWrapper(io.BytesIO(input.encode() if isinstance(input, str) else input or b""), "utf-8")
    code, error = 0, None
    changed = {**os.environ, **(env or {})}
    variables = {name: value for name, value in changed.items() if value is not None}
    with (
        redirect_stdout(streams[0]),
        redirect_stderr(streams[1]),
        mock.patch.object(sys, "stdin", given),
        mock.patch.dict(os.environ, variables, clear=True),
        mock.patch.multiple(_ServerOutput, shown=False, explained=False),  # each command is a process elsewhere
        _restored_loggers(),
    ):
        try:
            command()
        except SystemExit as exc:
            code, error = (exc.code if isinstance(exc.code, int) else 1 if exc.code else 0), exc
        except Exception as exc:
            code, error = 1, exc
    out, err = (stream.buffer.getvalue().decode() for stream in streams)  # type: ignore[attr-defined]  # a BytesIO
    return Result(code, out, err, error)


def names_of(app: App) -> list[str]:
    """Return the command names of a program or group."""
    return [name for name in app if not name.startswith("-")]


def commands() -> Iterator[tuple[str, App]]:
    """Return every command by its full name, including the commands of groups."""
    app = program()
    for name in names_of(app):
        below = names_of(app[name])
        yield from [(f"{name} {each}", app[name][each]) for each in below] or [(name, app[name])]


def parameters(command: App) -> list[Any]:
    """Return the arguments and options of a command, in order."""
    return [
        each for each in command.assemble_argument_collection(parse_docstring=True) if not each.children
    ]  # of a group of options


def options(command: App) -> list[str]:
    """Return the first name of each option."""
    return [each.names[0] for each in parameters(command) if each.names and each.names[0].startswith("-")]


def long_options(command: App) -> list[str]:
    """Return the options with two dashes, without negative flags."""
    names = [name for each in parameters(command) for name in (each.parameter.name or each.names[:1])]
    return [name for name in names if name.startswith("--")]
