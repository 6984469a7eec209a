"""``millstream record``: forward messages between a client and a server, and write them to a file."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from millstream._cli.connect_options import Header, Login, pairs, run_to_exit
from millstream._cli.errors import UsageError
from millstream._cli.recorder import Bridge, Writer, tap
from millstream._cli.tables import one_line
from millstream.client._errors import TargetError
from millstream.client._targets import Remote, find
from millstream.client._transports.stdio import Command


def record(
    file: Annotated[Path, Parameter(name="FILE", help="The recording, in JSON Lines; an existing file is extended.")],
    /,
    *server: Annotated[
        str,
        Parameter(name="SERVER", help="A command, a URL, a .py or .js file, or FILE.json#NAME."),
    ],
    header: Header = None,
    login: Login = False,
) -> None:
    """Record the messages between a client and a server.

    The recorder is a server on standard input and output that forwards every message to the real one. Put it before
    the server's command in a client's configuration, or use it with a URL. Only you can read the file, because
    messages may contain secrets.

    **Examples**

    - `millstream call "millstream record shop.jsonl shop.py" order isbn=978-0`: one call

    - `millstream record time.jsonl -- uvx mcp-server-time --local-timezone UTC`: as an application's command

    - `millstream record web.jsonl https://example.com/mcp`: for a server at a URL
    """

    if not server:
        raise UsageError("Name the server: a command, a URL, or a file.")

    async def work() -> int:
        place = find(server[0] if len(server) == 1 else server, env={}, cwd=None)
        if isinstance(place, Remote) and (place.url.scheme in ("ws", "wss") or place.kind == "sse"):
            raise TargetError("Only Streamable HTTP can be recorded. Use an http:// or https:// URL.")
        writer = Writer(file, " ".join(server), warn=lambda text: print(one_line(text), file=sys.stderr))
        try:
            if isinstance(place, Remote):
                headers = pairs(header or [], ":", '--header must be "Name: value"')
                auth = None
                if login:
                    from millstream.client._oauth.flow import OAuth  # noqa: PLC0415 - only for logins

                    auth = OAuth()
                return await Bridge(place, headers, writer, auth).run()
            if not isinstance(place, Command):
                raise TargetError("Only commands and URLs can be recorded.")
            return await tap(place, writer)
        finally:
            writer.close()

    if sys.stdin.isatty():
        print("Waiting for a client on standard input. Press Ctrl-C to stop.", file=sys.stderr)
    run_to_exit(work)
