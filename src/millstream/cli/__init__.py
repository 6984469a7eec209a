"""The ``millstream`` command.

`main` looks for the one command whose start-up time matters, serving over stdio, before it imports what the others
need.
"""

import sys

from millstream.app.serving.errors import CommandError, report
from millstream.cli.stdio import plain_stdio, serve_stdio


def main() -> None:
    """Entry point of the command; exits 1 with a message when it cannot do what it was asked."""
    try:
        if stdio := plain_stdio(sys.argv[1:]):
            serve_stdio(*stdio)
        else:
            from millstream.cli.program import app  # noqa: PLC0415 - not for stdio: see above

            app()
    except CommandError as exc:
        report(exc)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
