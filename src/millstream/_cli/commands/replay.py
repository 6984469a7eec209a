"""``millstream replay``: a server that answers from a recording."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from millstream._cli.recorder.replayer import Replayer
from millstream._cli.recorder.transcript import exchanges, load
from millstream._cli.signals import carry_out


def replay(
    file: Annotated[Path, Parameter(name="FILE", help="A file created by `millstream record`.")],
    /,
) -> None:
    """Serve a recording on standard input and output.

    Requests get the recorded responses, so you can test a client without the server.

    **Example**

    - `millstream call "millstream replay shop.jsonl" order isbn=978-0`
    """
    found = exchanges(load(file))
    if sys.stdin.isatty():
        print("Waiting for a client on standard input. Press Ctrl-C to stop.", file=sys.stderr)
    carry_out(Replayer(found).run())
