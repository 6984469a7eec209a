"""The command line that starts this program again, for workers, which are distinguished by an environment variable."""

import sys
from pathlib import Path

from millstream._app.server_process.errors import CommandError


def own_command() -> list[str]:
    """Return the interpreter, its options, and the program's arguments, as they were given.

    Raises:
        CommandError: the program isn't in a file that could run again.
    """
    main = sys.modules["__main__"]
    file, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    _, *arguments = sys.orig_argv
    if file is None and spec is None and "-c" not in arguments:
        raise CommandError(
            "Several workers require a program that can be started again.",
            why="This program isn't in a file. It was typed in, or came from standard input.",
            fix="Put it into a file and start that file.",
        )
    if file is not None and spec is None:
        # The program may have changed its directory since; Python has made the file name absolute.
        name = Path(file).name
        place = next((index for index, each in enumerate(arguments) if Path(each).name == name), None)
        if place is not None:
            arguments[place] = str(Path(file).absolute())
    return [sys.executable, *arguments]
