"""``millstream replay``: play a recording, as its server or as its client."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from msgspec import structs

from millstream._cli.connecting import FAILED, Json, Way, connects, with_client
from millstream._cli.ending import carry_out
from millstream._cli.recording.acting import Actor
from millstream._cli.recording.comparing import Compared, answers, compare, repeatable
from millstream._cli.recording.transcript import exchanges, load
from millstream._cli.showing import one_line, print_json, print_text
from millstream.client._client import Client


@connects(server=False)
def replay(
    way: Way,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A recording that millstream record made.")],
    *,
    against: Annotated[
        str, typer.Option("--against", metavar="SERVER", help="Send the requests to this server, and compare.")
    ] = "",
    ignore: Annotated[
        list[str] | None, typer.Option("--ignore", metavar="NAME", help="Don't compare members of this name.")
    ] = None,
    json: Json = False,
) -> None:
    """Play a recording.

    On its own, it's a server on standard input and output that answers as the recorded one did, so you can test a
    client with it. With `--against`, it sends the recorded requests to a server and shows where the answers differ;
    the
    exit status is 1 if they do.

    **Examples**

    - `millstream list "millstream replay shop.jsonl"`

    - `millstream replay shop.jsonl --against shop.py --ignore created`
    """
    said = load(file)
    found = exchanges(said)
    if not against:
        if sys.stdin.isatty():
            typer.echo(
                "This waits for a client on standard input: see millstream replay --help. Ctrl-C ends it.", err=True
            )
        carry_out(Actor(found).run())
        return

    async def work(client: Client) -> int:
        compared = [await compare(client, each, ignore or ()) for each in repeatable(found)]
        differ = [each for each in compared if each.difference]
        if json:
            print_json({"requests": len(compared), "differences": [_shown(each) for each in differ]})
        else:
            for each in compared:
                mark = "DIFFERS" if each.difference else "same"
                print_text(one_line(f"{mark}  {each.method} {each.params or ''}")[:200])
                if each.difference:
                    print_text(each.difference)
            print_text(f"{len(compared)} requests, {len(differ)} with another answer.")
        return FAILED if differ else 0

    with_client(lambda: structs.replace(way, target=against).client(elicit=answers(said)), work)


def _shown(compared: Compared) -> dict[str, Any]:
    return {"method": compared.method, "params": compared.params, "difference": compared.difference}
