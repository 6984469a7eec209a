"""Environment variables from a file (``--env-file``)."""

import os
from pathlib import Path

from millstream._app.server_process.errors import CommandError
from millstream._env_file import EnvFileError, read_env_file


def read_file(path: Path) -> dict[str, str]:
    """Return the variables of a file.

    Raises:
        CommandError: The file can't be read, or a line isn't NAME=VALUE.
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
        CommandError: The file can't be read.
    """
    if path is not None:
        for name, value in read_file(path).items():
            os.environ.setdefault(name, value)
