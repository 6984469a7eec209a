"""Additional packages for one run. uv adds them without changing the environment."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from millstream._app.server_process.errors import CommandError

_OPTIONS = ("--with", "--with-editable")


def find_uv() -> str:
    """Return the path of uv.

    Raises:
        CommandError: Uv isn't installed.
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
        CommandError: Uv or a folder doesn't exist.
        SystemExit: On Windows, with the status of the program.
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
