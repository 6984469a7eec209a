"""``millstream gateway``: serve the upstreams of a file, and accept changed definitions."""

import asyncio
import difflib
import sys
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import App, Parameter

from millstream._app.server_process import CommandError
from millstream._cli.program import Yes
from millstream._cli.run import DEFAULTS, ServeOptions
from millstream._cli.tables import confirm, print_json, print_text
from millstream._protocol.errors import LocalError, escape, suggest
from millstream.client import Client, ClientError, Options
from millstream.gateway import _catalog as catalog
from millstream.gateway._catalog import AcceptedFile, digest_of, pinned_items
from millstream.gateway._config import ConfigError, GatewayConfig, load_file
from millstream.gateway._questions import ALL_ABILITIES
from millstream.gateway._upstream_config import UpstreamConfig

gateway = App(
    name="gateway",
    help="""Serve other MCP servers and APIs at one address.

    Every client can use every server of the file, regardless of revisions and transports.

    **Examples**

    - `millstream gateway servers.json`: http://127.0.0.1:8000/mcp

    - `millstream gateway gateway.toml --port 9000 --serve web`: with a policy, credentials, and pages

    - `millstream gateway ~/.cursor/mcp.json --transport stdio`: one server for a desktop client
    """,
)

File = Annotated[
    Path,
    Parameter(name="FILE", help="A gateway.toml, or the configuration of an application, such as one with mcpServers."),
]


@gateway.default
def serve(file: File, /, *, options: ServeOptions = DEFAULTS) -> None:
    """Serve the upstreams of a file."""
    if not file.is_file():
        fix = "Use a gateway.toml, or a JSON file with mcpServers."
        if ":/" in str(file):
            fix += " For one server: millstream run URL"
        raise CommandError(f"{file} is a folder." if file.is_dir() else f"There is no file {file}.", fix=fix)
    if file.suffix not in (".toml", ".json", ".jsonc"):
        raise CommandError(f"{file} isn't a .toml or .json file.", fix=f"Use one. For a program: millstream run {file}")
    options.start(str(file))


@gateway.command
def accept(file: File, upstream: str, tool: str = "", /, *, yes: Yes = False, json: bool = False) -> None:
    """Accept the current definitions of an upstream with `trust = "pin"` and its tools, resources, and prompts.

    Shows each definition that differs from the accepted one, and adds those that you accept to gateway.lock, beside
    FILE. Running gateways reload it.

    **Example**

    - `millstream gateway accept gateway.toml shop order`

    Args:
        upstream: Name of the upstream.
        tool: Name of the item. By default, all changed ones.
        json: Print changes as JSON; accept them with --yes.
    """
    try:
        config, kept = _find_pinned(load_file(file), upstream, file)
        found = asyncio.run(_lists(config))
        items = list(pinned_items(found))
        names = tuple(name for _, name, _ in items)
        if tool and tool not in names:
            raise CommandError(f"{upstream} has no {tool}; {suggest(tool, names)}")
        rows: list[dict[str, object]] = []
        for kind, name, definition in items:
            before = kept.of(upstream).get(kind, {}).get(name)
            if (tool and name != tool) or (before is not None and digest_of(before) == digest_of(definition)):
                continue
            rows.append({"kind": kind, "name": name, "accepted": before, "offered": definition})
            if not json:
                _show(kind, name, before, definition)
            if yes or (not json and _confirm()):
                kept.accept(upstream, kind, {name: definition})
                if not json:
                    print(f"Accepted {escape(name)}.")
    except (ConfigError, LocalError, ClientError, OSError) as exc:
        raise CommandError(str(exc)) from exc
    if json:
        print_json({"changed": rows, "written": yes and bool(rows)})
    elif not rows:
        print("Nothing has changed.")


def _find_pinned(config: GatewayConfig, name: str, file: Path) -> tuple[UpstreamConfig, AcceptedFile]:
    """Return a pinned upstream and its accepted definitions."""
    upstreams = {each.name: each for each in config.upstreams}
    if name not in upstreams:
        raise CommandError(f"{file} has no upstream {name}; {suggest(name, tuple(upstreams))}")
    found = upstreams[name]
    pins = found.policy.pins if found.policy is not None else ""
    if found.trust != "pin" or not pins:
        raise CommandError(f"{name} isn't pinned.", fix=f'Write trust = "pin" under [upstreams.{name}].')
    return found, AcceptedFile(pins)


async def _lists(config: UpstreamConfig) -> catalog.Catalog:
    if config.openapi is not None or config.auth is not None:
        raise CommandError(
            f"This command can't list {config.name}, because it's an API or needs its own credentials.",
            fix='Use new_items = "accept", and restart the gateway with an empty store to accept everything.',
        )
    options = Options(
        env=config.env,
        cwd=config.cwd,
        connect_timeout=config.connect_timeout,
        cache=False,
        extra_capabilities=msgspec.json.decode(
            ALL_ABILITIES
        ),  # as the gateway does, because servers list by capabilities
    )
    async with Client(
        config.target, options=options, headers=config.headers, timeout=config.timeout, revision=config.revision
    ) as client:
        failures: dict[str, ClientError] = {}
        found = await catalog.fetch(
            client.conversation,
            max_bytes=config.max_catalog_bytes,
            failures=failures,
            warn=lambda text: print_text(text, sys.stderr),
        )
    for kind, error in failures.items():
        print_text(f"Its {kind} can't be listed: {error}", sys.stderr)
    return found


def _show(kind: str, name: str, before: catalog.Description | None, after: catalog.Description) -> None:
    print(f"{kind} {escape(name)}:")
    lines = _lines(after)
    if before is not None:
        lines = list(difflib.unified_diff(_lines(before), lines, "accepted", "offered", lineterm=""))
    print("\n".join(lines))


def _lines(definition: catalog.Description) -> list[str]:
    text = msgspec.json.format(msgspec.json.encode(definition, order="sorted"), indent=2).decode()
    return [escape(line) for line in text.splitlines()]


def _confirm() -> bool:
    if not sys.stdin.isatty():
        raise CommandError(
            "Nothing was accepted, because there's no terminal to prompt on.",
            fix="Review the change, then run the command again with --yes.",
        )
    return confirm("Accept?")
