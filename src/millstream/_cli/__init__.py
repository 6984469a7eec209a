"""The ``millstream`` command.

`main` imports only what the requested command needs, so that stdio servers and help start quickly. To make ``millstream
run FILE`` respond quickly, its simple cases are parsed here, without a command-line library. Everything else, such as
help or an invalid option, is left to `millstream._cli.run`.
"""

import gc
import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

from millstream._cli.errors import open_streams, report_error, status_without_output, wants_json
from millstream._cli.help import OVERVIEW, print_version, show
from millstream._cli.signals import INTERRUPTED, ending_in_order

LEVELS = ("debug", "info", "warning", "error", "critical")
OPTIONS = ("--transport", "--log-level")
HTTP_OPTIONS = ("--host", "--port", "-p", "--workers", "--serve", "--store", "--log-level")
_AT_TERMINAL = (
    "Waiting for an MCP client on standard input. Clients usually start this command. To serve HTTP, leave out "
    "--transport stdio. Press Ctrl-C to stop.\n"
)


def plain_stdio(arguments: Sequence[str]) -> tuple[str, str] | None:
    """Return target and log level of ``run TARGET --transport stdio [--log-level LEVEL]``, or None for others."""
    target, options = _plain_run(arguments, OPTIONS)
    level = options.get("--log-level", "").lower()
    plain = target and options.get("--transport") == "stdio" and level in ("", *LEVELS)
    return (target, level) if plain else None


def plain_http(arguments: Sequence[str]) -> tuple[str, str | None, int | None, dict[str, Any]] | None:
    """Return the arguments of `serve_http` for ``run TARGET`` with options that are parsed here, or None for others."""
    target, options = _plain_run(arguments, HTTP_OPTIONS)
    port, workers = options.get("--port", options.get("-p")), options.get("--workers", "1")
    level = options.get("--log-level")
    plain = target and f"{port or 0}{workers}".isdecimal() and 1 <= int(workers) <= 1000
    if not plain or level not in (None, *LEVELS[:-1]):
        return None
    more = {"serve": options.get("--serve", ""), "store": options.get("--store", ""), "settings": {"log_level": level}}
    return target, options.get("--host"), None if port is None else int(port), {"workers": int(workers), **more}


def _plain_run(arguments: Sequence[str], known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return the target and options of ``run``, or an empty target if one is unknown, repeated, or has no value."""
    options: dict[str, str] = {}
    targets: list[str] = []
    rest = iter(arguments[1:])
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name in known and name not in options:
            options[name] = value if equals else next(rest, "")
        else:
            targets.append(argument)
    complete = all(value[:1] not in ("", "-") for value in (*targets, *options.values()))
    return targets[0] if arguments[:1] == ["run"] and len(targets) == 1 and complete else "", options


def serve_stdio(target: str, log_level: str, *, settings: Mapping[str, object] = {}) -> None:
    """Load a server and serve it over standard input and output until the client closes them.

    Output of the user's code during import and start-up goes to standard error.
    """
    # Imported here, because other commands don't need them.
    with gc_paused():
        from millstream._app.server_process import set_up_logs  # noqa: PLC0415
        from millstream._app.server_process.launch import run_stdio  # noqa: PLC0415
        from millstream._cli.load import load  # noqa: PLC0415
        from millstream._transports.stdio import off_stdout  # noqa: PLC0415

    with off_stdout() as private:
        server = load(target)
        server.definition.configure(serve=(), **settings)
        set_up_logs(server.settings, log_level)
        if sys.stdin is not None and sys.stdin.isatty():  # pyright: ignore[reportUnnecessaryComparison]  it may be closed
            sys.stderr.write(_AT_TERMINAL)
        run_stdio(server.runtimes, private)


@contextmanager
def gc_paused() -> Generator[None]:
    """Pause the garbage collector in the block and exclude the imported objects from later collections.

    Repeated scans of 65,000 objects take a fifth of a server's start-up time, and find little garbage. Use it only for
    our own modules, because other programs may create garbage during their import.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


_SERVING = (["run"], ["dev"], ["gateway"])
"""Commands that handle signals themselves."""


def serve_file(file: str, name: str = "") -> None:
    """Serve a file on stdio for a client that starts it. A file without a server runs as a separate program, which may
    speak the protocol itself: ``serve_file("shop.py")``

    Args:
        file: The path.
        name: Name of the server in the file, if there are several.
    """
    sys.argv[1:] = ["run", f"{file}:{name}" if name else file, "--transport", "stdio"]
    main(program="" if name else file)


def _run_program(file: str) -> NoReturn:
    command = [sys.executable, file]
    if os.name == "nt":  # Windows can't replace a process
        import subprocess  # noqa: PLC0415  elsewhere, it isn't needed

        sys.exit(subprocess.call(command))  # noqa: S603  the user's own file
    os.execv(sys.executable, command)  # noqa: S606  as above


def main(*, program: str = "") -> None:
    """Run the command. On failure, exit with status 1 and a message.

    Args:
        program: A file to run instead, if it has no server.
    """
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
        if program and type(exc).__name__ == "NoServer":  # the command's module may not be loaded
            _run_program(program)
        if wants_json():
            report_error(exc.what, 1, why=exc.why, remedy=exc.fix)
        else:
            report(exc)
        sys.exit(1)


def _obey(arguments: Sequence[str]) -> None:
    if arguments[:1] in (["--help"], ["-h"]) or list(arguments) in ([], ["help"]):
        show(*OVERVIEW)
        sys.exit(0 if arguments else 2)
    if arguments[0] in ("--version", "-V", "version") and set(arguments[1:]) <= {"--json"}:
        print_version(as_json="--json" in arguments)
        return
    if arguments[0] == "help":
        arguments = [*arguments[1:], "--help"]
    if http := plain_http(arguments):
        with gc_paused():
            from millstream._cli.serve import serve_http  # noqa: PLC0415 - see above

        target, host, port, options = http
        serve_http(target, host, port, **options)
        return
    with gc_paused():
        from millstream._cli.program import print_help, program, run_command  # noqa: PLC0415 - see above

        command = program(arguments[0])
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    group = len(words) == 1 and arguments[0] in command and command[arguments[0]].default_command is None
    if group or ({"--help", "-h"} & set(words) and arguments[0] in command):
        print_help(command, arguments)
        return
    run_command(command, arguments)
