"""The ``millstream`` command.

`main` imports only what the requested command needs, so that stdio servers and help start quickly. It parses the first
words itself, without a command-line library.
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext

from millstream._cli.errors import as_json, open_streams, run_command, status_without_output, tell, wants_json
from millstream._cli.help import print_overview, print_version
from millstream._cli.signals import INTERRUPTED, ending_in_order
from millstream._cli.stdio import gc_paused, plain_http, plain_stdio, serve_stdio

_SERVING = (["run"], ["dev"], ["gateway"])
"""Commands that handle signals themselves."""


def main() -> None:
    """Run the command; exit with status 1 and a message on failure."""
    arguments = sys.argv[1:]
    try:
        if stdio := plain_stdio(arguments):
            serve_stdio(*stdio)
            return
        open_streams()
        try:
            with nullcontext() if arguments[:1] in _SERVING else ending_in_order():
                _obey(arguments)
        finally:
            sys.stdout.flush()  # while a full disk can still be reported
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except OSError as exc:
        status = status_without_output(exc)
        if status is None:
            raise
        sys.exit(status)
    except Exception as exc:
        from millstream._app.server_process import CommandError, report  # noqa: PLC0415 - already loaded

        if not isinstance(exc, CommandError):
            raise
        if wants_json(arguments):
            before = as_json.set(True)
            tell(exc.what, 1, why=exc.why, remedy=exc.fix)
            as_json.reset(before)
        else:
            report(exc)
        sys.exit(1)


def _obey(arguments: Sequence[str]) -> None:
    if arguments[:1] in (["--help"], ["-h"]) or list(arguments) in ([], ["help"]):
        print_overview()
        sys.exit(0 if arguments else 2)
    if arguments[0] in ("--version", "-V", "version") and set(arguments[1:]) <= {"--json"}:
        print_version(as_json="--json" in arguments)
        return
    if arguments[0] == "help":
        arguments = [*arguments[1:], "--help"]
    if http := plain_http(arguments):
        with gc_paused():
            from millstream._cli.serve import serve_http  # noqa: PLC0415 - see above

        target, host, port, level = http
        serve_http(target, host, port, settings={"log_level": level})
        return
    with gc_paused():
        from millstream._cli.program import print_help, program  # noqa: PLC0415 - see above

        command = program(arguments[0])
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    group = len(words) == 1 and arguments[0] in command and command[arguments[0]].default_command is None
    if group or ({"--help", "-h"} & set(words) and arguments[0] in command):
        print_help(command, arguments)
        return
    run_command(command, arguments)
