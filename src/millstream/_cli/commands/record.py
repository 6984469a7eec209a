"""``millstream record``: stand between a client and a server, and write down what they say."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from millstream._cli.connecting import Header, Login, ended, pairs
from millstream._cli.recording.between import stand_between
from millstream._cli.recording.bridge import Bridge
from millstream._cli.recording.relay import on_one_connection, relay
from millstream._cli.recording.transcript import Writer
from millstream._cli.showing import one_line
from millstream.client._errors import TargetError
from millstream.client._targets import Remote, find
from millstream.client._transports.stdio import Command


def record(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The recording: JSON Lines, added to if it's there.")],
    server: Annotated[
        list[str],
        typer.Argument(metavar="SERVER...", help="A command, a URL, a .py or .js file, or FILE.json#NAME."),
    ],
    *,
    header: Header = None,
    login: Login = False,
) -> None:
    """Record what a client and a server say to each other.

    It's a server on standard input and output, which passes everything on to the real one. So put it before the
    server's command wherever a client takes that command; for a server at a URL, too. The file is for your eyes:
    messages hold whatever the server knows.

    **Examples**

    - `millstream call "millstream record shop.jsonl shop.py" order isbn=978-0`: one call

    - `millstream record time.jsonl -- uvx mcp-server-time --local-timezone UTC`: as an application's command

    - `millstream record web.jsonl https://example.com/mcp`: for a server at a URL
    """

    async def work() -> int:
        place = find(server[0] if len(server) == 1 else server, env={}, cwd=None)
        writer = Writer(file, " ".join(server), told=lambda text: typer.echo(one_line(text), err=True))
        try:
            if isinstance(place, Remote):
                headers = pairs(header or [], ":", '--header takes "Name: value"')
                auth = None
                if login:
                    from millstream.client._oauth.flow import OAuth  # noqa: PLC0415 - only who logs in needs it

                    auth = OAuth()
                if on_one_connection(place):
                    return await relay(place, headers, writer, auth)
                return await Bridge(place, headers, writer, auth).run()
            if not isinstance(place, Command):
                raise TargetError("Only commands and URLs can be recorded.")
            return await stand_between(place, writer)
        finally:
            writer.close()

    if sys.stdin.isatty():
        typer.echo("This waits for a client on standard input: see millstream record --help. Ctrl-C ends it.", err=True)
    ended(work)
