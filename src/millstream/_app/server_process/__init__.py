"""Serving an application: the ASGI entry, our HTTP server, the start-up panel, and the errors that every command
reports.

A command-line error has three parts: the problem, the reason, and a fix.
"""

import os
import shutil
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from millstream._config import Settings, as_typed
from millstream._protocol.errors import LocalError
from millstream._server.calls import load_secrets
from millstream._telemetry import logs
from millstream._telemetry.logs import PROGRAM, is_colored, is_foreign, user_frames
from millstream._text import fit


class CommandError(Exception):
    """Ends the command with a message in three parts; `detail` is shown verbatim (a traceback)."""

    def __init__(self, what: str, *, why: str = "", fix: str = "", detail: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix
        self.detail = detail


@contextmanager
def mark_import(source: str) -> Generator[None]:
    """Mark the import of the user's file by a command that serves its objects itself."""
    _Imports.source = source
    try:
        yield
    finally:
        _Imports.source = ""


class _Imports:
    source = ""


class RunCalled(BaseException):
    """The import of a program for another library has reached the call that serves."""

    def __init__(self, server: object) -> None:
        super().__init__()
        self.server = server


def check_not_importing(server: object = None) -> None:
    """Reject serving during the import of a file that a command serves.

    Args:
        server: The server object of a program for another library, which the command then serves unchanged.

    Raises:
        CommandError: The file is being imported.
        RunCalled: The same, with `server`.
    """
    if _Imports.source and server is not None:
        raise RunCalled(server)
    if _Imports.source:
        raise CommandError(
            f"{_Imports.source} calls run() while it's being imported.",
            why="`millstream run` imports the file first and then serves its server.",
            fix='Put the call below the line `if __name__ == "__main__":`.',
        )


def report(error: CommandError) -> None:
    """Write the message to standard error, one part per line."""
    colored = is_colored(sys.stderr)
    bold, dim, plain = ("\x1b[1;31m", "\x1b[2m", "\x1b[0m") if colored else ("", "", "")
    columns = shutil.get_terminal_size().columns if sys.stderr.isatty() else None
    lines = [fit("Error: ", error.what, columns).replace("Error:", f"{bold}Error:{plain}", 1)]
    if error.detail:
        lines += [f"{dim}{error.detail.rstrip()}{plain}", ""]
    if error.why:
        lines.append(fit("  Cause: ", error.why, columns))
    if error.fix:
        lines.append(fit("  Fix:   ", as_typed(error.fix), columns))
    sys.stderr.write("\n".join(lines) + "\n")


def set_up_logs(settings: Settings, level: str = "") -> None:
    """Set up logging as configured; `level` overrides the setting.

    Raises:
        CommandError: The log file can't be written.
    """
    try:
        logs.configure_as(settings, level=level)
    except ValueError as exc:
        raise CommandError(
            str(exc), fix="Set MILLSTREAM_LOG_FILE to a file in a folder that you can write to."
        ) from exc


def check_key(settings: Settings) -> None:
    """Check the key for session ids before anything listens.

    Raises:
        CommandError: The key is invalid; the message suggests a fix.
    """
    try:
        load_secrets(settings.secret_key)
    except (ValueError, LocalError) as exc:
        raise CommandError(str(exc), why="It seals session ids, so it must be secret.") from exc
    if settings.peer and not settings.secret_key.strip():
        raise CommandError(
            "The setting peer needs a secret that all machines have.",
            why="They recognize each other by it.",
            fix="Set MILLSTREAM_SECRET_KEY to the same secret on all machines.",
        )


@contextmanager
def convert_start_errors(name: str) -> Generator[None]:
    """Convert errors while a server starts inside the block.

    Raises:
        CommandError: The start failed. Includes the traceback for the user's code, or for ours if the error is
            internal.
    """
    try:
        yield
    except CommandError:
        raise
    except Exception as exc:
        frames = user_frames(exc)
        if isinstance(exc, OWN_ERRORS) and Path(frames[-1].filename).is_relative_to(PROGRAM):
            raise CommandError(f"{name} couldn't start.", why=str(exc)) from exc
        what = f"{name} couldn't start: {type(exc).__name__}."
        raise CommandError(what, fix=fix_of(exc, frames), detail=show_failure(exc, frames)) from exc


OWN_ERRORS = (ValueError, TypeError, ImportError, LocalError)
"""Errors raised by our own checks. Their messages are complete."""


def fix_of(exc: BaseException, frames: list[traceback.FrameSummary]) -> str:
    """Return what to do about an error in the user's code: set a missing variable, or correct the place."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(exc.__traceback__)]
    if isinstance(exc, KeyError) and files and files[-1] in (os.__file__, "<frozen os>"):
        name = exc.args[0]
        return (
            f"Set {name}. A command that starts the server, such as `millstream list`, doesn't pass on your shell's "
            f"variables: add --env {name}=VALUE"
        )
    return f"Correct {place_of(exc, frames)}."


def place_of(exc: BaseException, frames: list[traceback.FrameSummary]) -> str:
    """Describe the location of an error in the user's code."""
    if isinstance(exc, SyntaxError) and exc.filename and exc.lineno:
        return f"line {exc.lineno} of {_brief(exc.filename)}"
    if frames and not is_foreign(frames[-1].filename):
        return f"line {frames[-1].lineno} of {_brief(frames[-1].filename)}"
    return "the error shown above"


def _brief(file: str) -> str:
    """Return the path of a file in the working directory as users type it, or else its name."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name


def show_failure(exc: BaseException, frames: list[traceback.FrameSummary]) -> str:
    """Return these frames and the error, after its causes. Causes inside this package are left out."""
    cause = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
    causes = user_frames(cause) if cause is not None else []
    if cause is None or (causes and Path(causes[0].filename).is_relative_to(PROGRAM)):
        before = ""
    else:
        before = f"{show_failure(cause, causes)}\nWhich led to:\n\n"
    lines = traceback.format_exception_only(exc)
    home = type(exc).__module__
    if home.startswith("millstream."):  # the location doesn't help the developer
        lines[-1] = lines[-1].removeprefix(f"{home}.")
    return before + "".join([*traceback.format_list(frames), *lines])
