"""``millstream completion``: a script that completes commands, options, and choices in a shell."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from millstream._app.server_process.errors import CommandError


class Shell(StrEnum):
    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def completion(
    shell: Annotated[
        Shell | None,
        Parameter(name="SHELL", help="Your shell: bash, zsh, or fish. Detected from SHELL by default."),
    ] = None,
    /,
    *,
    install: Annotated[bool, Parameter(name="--install", help="Install it in your shell's folder.")] = False,
) -> None:
    """Print a script that completes commands, options, and choices in your shell, or install it.

    **Examples**

    - `millstream completion --install`

    - `millstream completion bash > /etc/bash_completion.d/millstream`: for all users
    """
    from millstream._cli.program import program  # noqa: PLC0415  the program imports this module

    app = program()
    chosen: Literal["bash", "zsh", "fish"] = (shell or _own_shell()).value
    if not install:
        sys.stdout.write(app.generate_completion(prog_name="millstream", shell=chosen))
        return
    try:
        path = app.install_completion(shell=chosen)
    except OSError as exc:
        raise CommandError(f"{exc.filename} can't be written: {exc.strerror}.") from exc
    print(f"Wrote {path}. Open a new shell to use it.")


def _own_shell() -> Shell:
    name = Path(os.environ.get("SHELL", "")).name
    if name not in list(Shell):
        raise CommandError("Your shell couldn't be detected.", fix="Name it: bash, zsh, or fish.")
    return Shell(name)
