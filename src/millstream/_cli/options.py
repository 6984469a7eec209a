"""Options of several commands, and validators for numbers.

Additional packages for one run. uv adds them without changing the environment.

Environment variables from a file (``--env-file``).
"""

import math
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from millstream._app.server_process.errors import CommandError
from millstream._env_file import EnvFileError, read_env_file

EnvFile = Annotated[
    Path | None,
    Parameter(name="--env-file", metavar="FILE", help="Set the variables in this file that aren't already set."),
]
Json = Annotated[bool, Parameter(name="--json", help="Print JSON.")]
Packages = Annotated[
    list[str] | None, Parameter(name="--with", metavar="PKG", help="Run with this package; needs uv. Repeat it.")
]
Editable = Annotated[
    list[str] | None,
    Parameter(name="--with-editable", metavar="DIR", help="Run with the package in this folder; needs uv. Repeat it."),
]
Port = Annotated[
    int | None,
    Parameter(
        name=("--port", "-p"),
        metavar="PORT",
        help="Port to listen on; 0 picks a free port.",
        show_default=lambda _: "8000",
    ),
]
Yes = Annotated[bool, Parameter(name=("--yes", "-y"), help="Don't ask.")]


def finite(_: type, number: float) -> None:
    """Reject infinity and NaN, which Python parses.

    Raises:
        ValueError: the number isn't finite.
    """
    if not math.isfinite(number):
        raise ValueError(f"{number} isn't a finite number.")


def more_than_nothing(kind: type, number: float) -> None:
    """Reject numbers that aren't positive.

    Raises:
        ValueError: the number isn't above 0.
    """
    finite(kind, number)
    if number <= 0:
        raise ValueError(f"{number:g} isn't greater than 0.")


_OPTIONS = ("--with", "--with-editable")


def find_uv() -> str:
    """Return the path of uv.

    Raises:
        CommandError: uv isn't installed.
    """
    beside = Path(sys.executable).with_name("uv.exe" if os.name == "nt" else "uv")
    found = str(beside) if beside.is_file() else shutil.which("uv")
    if found is None:
        raise CommandError(
            "--with and --with-editable require uv, which isn't installed.",
            why="uv creates an environment with these packages, without changing yours.",
            fix="Install uv (pip install uv), or install the packages into your environment and leave out the options.",
        )
    return found


def with_packages(uv: str, packages: Sequence[str], editable: Sequence[str]) -> list[str]:
    """Return the start of a command that runs in this environment with additional packages."""
    words = [uv, "run", "--quiet", "--no-project", "--python", sys.executable]
    for each in packages:
        words += ["--with", each]
    for each in editable:
        folder = Path(each).resolve()
        if not folder.is_dir():
            raise CommandError(f"There is no folder {each}.", fix="--with-editable requires the folder of a package.")
        words += ["--with-editable", str(folder)]
    return words


def run_with(packages: Sequence[str], editable: Sequence[str]) -> None:
    """Restart this program with the packages, or return if there are none.

    Raises:
        CommandError: uv or a folder doesn't exist.
        SystemExit: on Windows, with the status of the program.
    """
    if not (packages or editable):
        return
    count = len(sys.argv) - 1
    start, arguments = sys.orig_argv[1 : len(sys.orig_argv) - count], sys.argv[1:]
    words = [*with_packages(find_uv(), packages, editable), "python", *start, *without_packages(arguments)]
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "posix":
        os.execv(words[0], words)  # noqa: S606  no shell
    import subprocess  # noqa: PLC0415  only without `execv`

    sys.exit(subprocess.run(words, check=False).returncode)  # noqa: S603  the user's own command


def without_packages(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without ``--with`` and ``--with-editable``."""
    words: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if word in _OPTIONS:
            next(rest, None)
        elif word.partition("=")[0] not in _OPTIONS:
            words.append(word)
    return words


def read_file(path: Path) -> dict[str, str]:
    """Return the variables of a file.

    Raises:
        CommandError: the file can't be read, or a line isn't NAME=VALUE.
    """
    try:
        return read_env_file(path)
    except EnvFileError as exc:
        fix = (
            "Check the path of the file."
            if isinstance(exc.__cause__, OSError)
            else "Correct it, or make it a # comment."
        )
        raise CommandError(str(exc), fix=fix) from exc


def use_file(path: Path | None) -> None:
    """Set the variables of a file for this program, keeping those that are already set.

    Raises:
        CommandError: the file can't be read.
    """
    if path is not None:
        for name, value in read_file(path).items():
            os.environ.setdefault(name, value)
