"""``millstream publish``: print a server's entry for the MCP registry."""

import json as json_module
from typing import Annotated

from cyclopts import Parameter

from millstream._app.server_process.errors import CommandError
from millstream._cli.load import load
from millstream.extensions.cards import CardError, identify, registry_entry


def publish(
    target: Annotated[str, Parameter(name="FILE", help="A .py file (FILE:OBJECT for one of several), or a module.")],
    /,
    *,
    dry_run: Annotated[bool, Parameter(help="Print the entry without sending it. Required.")] = False,
    name: Annotated[str, Parameter(metavar="NAME", help="Name in the registry: com.example/shop.")] = "",
    url: Annotated[str, Parameter(metavar="URL", help="Public URL of the MCP endpoint.")] = "",
    repository: Annotated[str, Parameter(metavar="URL", help="URL of the source code.")] = "",
    json: Annotated[bool, Parameter(help="Print JSON in one line.")] = False,
) -> None:
    """Print the `server.json` of a server for the MCP registry.

    Name, version, title, description, website, and icons come from the program. `--url` and `--name` default to the
    settings `card_url` and `card_name`. Publish the file with the registry's `mcp-publisher`.

    **Example**

    - `millstream publish shop.py --dry-run --url https://shop.example.com/mcp > server.json`
    """
    if not dry_run:
        raise CommandError(
            "Millstream doesn't send anything to the registry.",
            fix="Add --dry-run, write the output into server.json, and publish it with mcp-publisher.",
        )
    definition = load(target).definition
    url, name = url or definition.settings.card_url, name or definition.settings.card_name
    if not url and not name:
        raise CommandError(
            f"{target} needs a name in the registry, such as com.example/shop.",
            why="Names in the registry begin with the domain of the owner.",
            fix="Set the name with --name, or derive it from the public URL: --url https://shop.example.com/mcp",
        )
    try:
        identity = identify(definition.name, url, name)
    except CardError as exc:
        raise CommandError(str(exc), fix="Set --url, --name, or both.") from exc
    entry = registry_entry(identity, definition.describe(), repository=repository)
    print(json_module.dumps(entry, ensure_ascii=False, indent=None if json else 2))
