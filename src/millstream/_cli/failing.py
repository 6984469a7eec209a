"""How a command says that it failed: a sentence on standard error, or with ``--json`` one object on standard output.

The object is ``{"ok": false, "error": "…", "why": "…", "remedy": "…", "status": 3}``. `why` and `remedy` are there if
the sentence has them, and `status` is the exit status. `chat` and `doctor` say the same in their own objects.
"""

import sys
from collections.abc import Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from millstream._cli.help import COMMANDS

if TYPE_CHECKING:
    from typer import Typer

_OTHER_JSON = frozenset(("run", "dev"))
"""Commands whose ``--json`` is about what the server answers."""


as_json: ContextVar[bool] = ContextVar("millstream_json", default=False)
"""Whoever ran the command reads JSON."""


def known() -> set[str]:
    """The commands."""
    return {name for group in COMMANDS.values() for name in group}


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether whoever gave these arguments reads JSON."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options and arguments[0] not in _OTHER_JSON


def tell(error: str, status: int, *, why: str = "", remedy: str = "") -> None:
    """Print a failure as JSON."""
    from millstream._cli.showing import print_json  # noqa: PLC0415  loaded only by who fails

    said: dict[str, Any] = {"error": error, "why": why, "remedy": remedy}
    print_json({"ok": False, **{name: text for name, text in said.items() if text}, "status": status})


def obey(program: "Typer", arguments: Sequence[str]) -> None:
    """Run a command for somebody who reads JSON: wrong arguments end as an object, too.

    Raises:
        SystemExit: with the status of the command.
    """
    import typer  # noqa: PLC0415  `program` has loaded it

    before = as_json.set(True)
    try:
        status = typer.main.get_command(program).main(list(arguments), prog_name="millstream", standalone_mode=False)
    except typer.Abort:
        status = 1
        tell("Aborted.", status)
    except Exception as exc:
        told: Any = exc  # wrong use; typer doesn't export the class of these errors
        if not hasattr(exc, "format_message"):
            raise
        status = told.exit_code
        remedy = f"millstream {arguments[0]} --help" if arguments[0] in known() else "millstream --help"
        tell(" ".join(told.format_message().split()), status, remedy=remedy)
    finally:
        as_json.reset(before)
    sys.exit(status if isinstance(status, int) else 0)
