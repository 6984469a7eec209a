"""Reports of failed commands: a sentence on standard error, or with ``--json`` one object on standard output.

The object is ``{"ok": false, "error": "…", "why": "…", "remedy": "…", "status": 3}``. `why` and `remedy` are optional,
and `status` is the exit status. `chat` and `doctor` use objects of their own.
"""

import sys
from collections.abc import Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from millstream._cli.help import COMMANDS

if TYPE_CHECKING:
    from cyclopts import App

_OTHER_JSON = frozenset(("run", "dev"))
"""Commands whose ``--json`` refers to the server's response."""


as_json: ContextVar[bool] = ContextVar("millstream_json", default=False)
"""Whether the caller of the command expects JSON."""


def known() -> set[str]:
    """Return the names of all commands."""
    return {name for group in COMMANDS.values() for name in group}


def wants_json(arguments: Sequence[str]) -> bool:
    """Return whether these arguments request JSON."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options and arguments[0] not in _OTHER_JSON


def tell(error: str, status: int, *, why: str = "", remedy: str = "") -> None:
    """Print a failure as JSON."""
    from millstream._cli.tables import print_json  # noqa: PLC0415  loaded only by who fails

    said: dict[str, Any] = {"error": error, "why": why, "remedy": remedy}
    print_json({"ok": False, **{name: text for name, text in said.items() if text}, "status": status})


_OTHER_NAMES = {
    "add": "install", "ask": "chat", "check": "doctor", "create": "init", "debug": "dev", "get": "read",
    "inspect": "dev", "inspector": "dev", "invoke": "call", "load": "bench", "ls": "list", "new": "init",
    "prompts": "list", "proxy": "run", "resources": "list", "serve": "run", "start": "run", "test": "doctor",
    "tools": "list",
}  # fmt: skip
"""Name of another program's command -> ours."""


class UsageError(Exception):
    """The arguments of a command are inconsistent; the message says what to write."""


def run_command(program: "App", arguments: Sequence[str]) -> None:
    """Run a command. Invalid arguments exit with status 2: as a sentence, or as an object with ``--json``.

    Raises:
        SystemExit: with the status of the command, unless it's 0.
    """
    from cyclopts import CycloptsError, UnknownCommandError, UnusedCliTokensError  # noqa: PLC0415  `program` has loaded it

    before = as_json.set(wants_json(arguments))
    try:
        program(list(arguments), exit_on_error=False, print_error=False)
    except UnusedCliTokensError as exc:
        _fail(f"Unexpected argument: {' '.join(exc.unused_tokens or ())}.", arguments)
    except UnknownCommandError as exc:
        other = _OTHER_NAMES.get(arguments[0])
        _fail(" ".join(str(exc).split()) if other is None else f'Unknown command "{arguments[0]}".', arguments, other)
    except (CycloptsError, UsageError) as exc:
        _fail(" ".join(str(exc).split()), arguments)
    except EOFError:  # Ctrl-D at a question
        if as_json.get():
            tell("Aborted.", 1)
        else:
            sys.stderr.write("Aborted.\n")
        sys.exit(1)
    finally:
        as_json.reset(before)


def _fail(text: str, arguments: Sequence[str], other: str | None = None) -> None:
    if other is not None:
        text = f"{text} Use: millstream {other}"
    remedy = f"millstream {arguments[0]} --help" if arguments[0] in known() else "millstream --help"
    if as_json.get():
        tell(text, 2, remedy=remedy)
    else:
        sys.stderr.write(f"Error: {text}\nTry: {remedy}\n")
    sys.exit(2)
