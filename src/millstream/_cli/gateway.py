"""``millstream gateway``: serve the upstreams of a file, edit the file, and accept changed definitions."""

import asyncio
import difflib
import json as json_module
import os
import re
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import App, Parameter

from millstream._app.server_process import CommandError
from millstream._cli.errors import UsageError
from millstream._cli.install import read, replace
from millstream._cli.program import Json, Yes
from millstream._cli.run import DEFAULTS, ServeOptions
from millstream._cli.tables import confirm, print_json, print_text, report
from millstream._gateway.catalog.catalog import AcceptedFile, Catalog, Description, digest_of, fetch
from millstream._gateway.files.read import contains, load_file, parse, toml_statements
from millstream._gateway.files.values import ConfigError, GatewayConfig
from millstream._gateway.options.upstream import UpstreamConfig
from millstream._gateway.questions.abilities import ALL_ABILITIES
from millstream._protocol.errors import LocalError
from millstream._suggestions import suggest
from millstream._text import escape
from millstream.client import Client, ClientError, Options, TargetError, parse_url
from millstream.client._targets import VARIABLE, UnsetVariable
from millstream.files import lock_folder

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


Name = Annotated[str, Parameter(name="NAME", help="Name of the upstream.")]
TomlFile = Annotated[Path, Parameter(help="The gateway.toml.")]


_TRUST = 'trust = "follow"  # changed definitions are logged; with "pin", they also wait until you accept them\n'


@gateway.command
def add(
    name: Name,
    /,
    *target: Annotated[str, Parameter(name="URL_OR_COMMAND", help="Its URL, or its command. Options come after --.")],
    file: TomlFile = Path("gateway.toml"),
    json: Json = False,
) -> None:
    """Add an upstream to a gateway.toml, which is created if it doesn't exist.

    The rest of the file stays as it is. A command starts in the folder of the file.

    **Examples**

    - `millstream gateway add shop https://shop.example.com/mcp`

    - `millstream gateway add time -- uvx mcp-server-time --local-timezone UTC`
    """
    if not target:
        raise UsageError("Add a URL or a command: millstream gateway add NAME URL_OR_COMMAND")
    first, *rest = target
    is_url = "://" in first
    if is_url and rest:
        raise UsageError(f"Unexpected argument: {rest[0]}. A URL is one argument.")
    value = json_module.dumps(target if rest else first, ensure_ascii=False).replace("\x7f", "\\u007f")
    key = name if re.fullmatch(r"[\w-]+", name, re.ASCII) else json_module.dumps(name, ensure_ascii=False)
    table = f"[upstreams.{key}]\n{'url' if is_url else 'command'} = {value}\n{_TRUST if is_url else ''}"

    def insert(text: str, upstreams: Mapping[str, object]) -> str:
        if name in upstreams:
            fix = f"Choose another name, or remove it: millstream gateway remove {name}"
            raise CommandError(f"{file} already has an upstream {name}.", fix=fix)
        if is_url and not VARIABLE.search(first):
            parse_url(first)
        before = f"{text}\n" if text and not text.endswith("\n") else text
        _check(file, "\n" * (before.count("\n") + 1) + table)  # an unset variable above would hide a mistake here
        added = f"\n{table}" if before else table
        line_break = re.search(r"\r?\n", before)
        return before + (added if line_break is None else added.replace("\n", line_break[0]))

    _edit(file, insert, create=True)
    report(f"Added {escape(name)} to {file}.", {"added": name, "file": str(file)}, json=json)


@gateway.command
def remove(name: Name, /, *, file: TomlFile = Path("gateway.toml"), json: Json = False) -> None:
    """Remove an upstream, with its tables, from a gateway.toml.

    The rest of the file stays as it is.

    **Example**

    - `millstream gateway remove shop`
    """

    def cut(text: str, upstreams: Mapping[str, object]) -> str:
        if name not in upstreams:
            known = suggest(name, tuple(upstreams)) if upstreams else "it has none."
            raise CommandError(f"{file} has no upstream {name}; {known}")
        after = _remove(text, name)
        left = tomllib.loads(after).get("upstreams", {})
        if left != {each: value for each, value in upstreams.items() if each != name}:
            raise CommandError(f"{file} lists several upstreams in one value.", fix=f"Remove {name} in an editor.")
        return after

    _edit(file, cut)
    report(f"Removed {escape(name)} from {file}.", {"removed": name, "file": str(file)}, json=json)


def _edit(file: Path, change: Callable[[str, Mapping[str, object]], str], *, create: bool = False) -> None:
    """Replace the text of a file under a lock, after checking the new text.

    Args:
        change: Returns the new text for the old one and its upstreams.
        create: Whether to create the file if it doesn't exist.

    Raises:
        CommandError: The file can't be read or written, or would contain a mistake. It's left as it is.
    """
    if file.suffix != ".toml":
        raise CommandError(f"{file} isn't a .toml file.", fix="Edit a gateway.toml: --file FILE")
    try:
        with lock_folder(file.absolute().parent):
            before = read(file)
            if before is None and create:
                before = ""
            if before is None:
                raise CommandError(f"There is no file {file}.", fix="Create it, or name another one with --file.")
            text = before.removeprefix("\ufeff")
            _check(file, text, syntax_only=True)
            after = change(text, tomllib.loads(text).get("upstreams", {}))
            _check(file, after)
            replace(file, before[: len(before) - len(text)] + after)
    except (ConfigError, TargetError, UnicodeError) as exc:
        raise CommandError(str(exc), why=f"{file} was left as it is.") from exc
    except FileNotFoundError as exc:
        raise CommandError(f"There is no folder {file.parent}.", fix="Create it, or name another file.") from exc
    except OSError as exc:
        raise CommandError(f"{exc.filename or file} can't be written: {exc.strerror}.") from exc


def _check(file: Path, text: str, *, syntax_only: bool = False) -> None:
    """Check a file's text. Variables that the gateway will have may be missing here.

    Raises:
        ConfigError: It has a mistake.
    """
    try:
        parse(file, text, os.environ)
    except ConfigError as exc:
        accepts_rest = syntax_only or isinstance(exc.__cause__, UnsetVariable)
        if isinstance(exc.__cause__, tomllib.TOMLDecodeError) or not accepts_rest:
            raise


def _remove(text: str, name: str) -> str:
    """Return a document without an upstream. Comments before and after it stay, and so do blank lines but one."""
    kept: list[str] = []
    rest = ""  # comments and blank lines that may belong to what follows
    inside = False
    for start, end, source in toml_statements(text):
        line = text[start:end]
        if line.strip()[:1] in ("", "#"):
            if inside:
                rest += line
            else:
                kept.append(line)
        elif contains(tomllib.loads(source), ("upstreams", name)):
            if not inside and kept and not kept[-1].strip():
                kept.pop()
            inside, rest = True, ""
        else:
            kept.append(rest + line)
            inside, rest = False, ""
    return "".join(kept) + rest


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
        items = list(found.pinned())
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


async def _lists(config: UpstreamConfig) -> Catalog:
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
        found = await fetch(
            client.conversation,
            max_bytes=config.max_catalog_bytes,
            failures=failures,
            warn=lambda text: print_text(text, sys.stderr),
        )
    for kind, error in failures.items():
        print_text(f"Its {kind} can't be listed: {error}", sys.stderr)
    return found


def _show(kind: str, name: str, before: Description | None, after: Description) -> None:
    print(f"{kind} {escape(name)}:")
    lines = _lines(after)
    if before is not None:
        lines = list(difflib.unified_diff(_lines(before), lines, "accepted", "offered", lineterm=""))
    print("\n".join(lines))


def _lines(definition: Description) -> list[str]:
    text = msgspec.json.format(msgspec.json.encode(definition, order="sorted"), indent=2).decode()
    return [escape(line) for line in text.splitlines()]


def _confirm() -> bool:
    if not sys.stdin.isatty():
        raise CommandError(
            "Nothing was accepted, because there's no terminal to prompt on.",
            fix="Review the change, then run the command again with --yes.",
        )
    return confirm("Accept?")
