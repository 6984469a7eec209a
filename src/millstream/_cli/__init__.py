"""The ``millstream`` command.

`main` loads no more than the command needs that was asked for: a desktop client waits for a stdio server, and a person
for help. So the first words are read here, before any command-line library.
"""

import sys

from millstream._cli.help import overview
from millstream._cli.stdio import plain_stdio, serve_stdio


def main() -> None:
    """Entry point of the command; exits 1 with a message when it cannot do what it was asked."""
    arguments = sys.argv[1:]
    try:
        if arguments in ([], ["--help"], ["-h"], ["help"]):
            sys.stdout.write(overview())
            sys.exit(0 if arguments else 2)
        if arguments[:1] in (["--version"], ["version"]):
            import millstream  # noqa: PLC0415 - see above

            version = millstream.__version__
            sys.stdout.write(f'{{"version": "{version}"}}\n' if "--json" in arguments else f"millstream {version}\n")
        elif stdio := plain_stdio(arguments):
            serve_stdio(*stdio)
        else:
            from millstream._cli.program import program  # noqa: PLC0415 - see above

            program(arguments[0] if arguments else "")(prog_name="millstream")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as exc:
        from millstream._app.serving.errors import CommandError, report  # noqa: PLC0415 - who raises it has loaded it

        if not isinstance(exc, CommandError):
            raise
        report(exc)
        sys.exit(1)
