"""``millstream install``: add a server to the configuration of an application, or remove it."""

import json as json_module
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from millstream._app.server_process.errors import CommandError
from millstream._cli.connect_options import pairs
from millstream._cli.errors import tell
from millstream._cli.installer.applications import APPLICATIONS, ConfigurableApp, System, merge_entries
from millstream._cli.installer.change import FileChange, prepare, prepare_undo, undo, write
from millstream._cli.installer.launch import Launch, hyphenate, launch_of, name_of
from millstream._cli.options import Editable, Json, Packages, Yes
from millstream._cli.tables import confirm, print_json, print_text, safe, style
from millstream._cli.variables import read_file
from millstream._protocol.errors import closest_name

PRINTED = "json"
"""Pseudo-application that prints the entry, for applications that aren't listed."""


def install(  # noqa: PLR0913  the options of the command
    target: Annotated[
        str,
        Parameter(
            name="FILE_OR_URL",
            help="A .py or .js file (FILE:OBJECT for one of several), servers.json or gateway.toml, or a URL.",
        ),
    ],
    /,
    *,
    client: Annotated[
        str,
        Parameter(
            name="--client",
            metavar="APPLICATION",
            help=f"The application: {', '.join(APPLICATIONS)}; {PRINTED} prints the entry.",
        ),
    ] = "",
    name: Annotated[
        str, Parameter(name=("--name", "-n"), metavar="NAME", help="Name of the server in the application.")
    ] = "",
    variable: Annotated[
        list[str] | None,
        Parameter(
            name=("--env", "-v"),
            metavar="NAME=VALUE",
            help="Set an environment variable of the server; repeatable.",
        ),
    ] = None,
    env_file: Annotated[
        Path | None, Parameter(name=("--env-file", "-f"), metavar="FILE", help="Set the variables in this file.")
    ] = None,
    header: Annotated[
        list[str] | None,
        Parameter(
            name=("--header", "-H"),
            metavar="HEADER",
            help='For a URL: header of each request, "Name: value". Repeat it.',
        ),
    ] = None,
    packages: Packages = None,
    editable: Editable = None,
    project: Annotated[
        bool,
        Parameter(
            help="Write the configuration of this folder instead of your own, if the application supports it.",
        ),
    ] = False,
    undo_last: Annotated[bool, Parameter(name="--undo", help="Undo the last install of this server.")] = False,
    dry_run: Annotated[bool, Parameter(help="Show the change, and write nothing.")] = False,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Add a server to the configuration of an application.

    It shows the change, and asks before writing. The rest of the file is preserved: other servers, comments, order. A
    backup is kept beside the file, and `--undo` reverts the change. For Codex and Goose, whose files aren't JSON, it
    prints the entry and the file that you add it to.

    **Examples**

    - `millstream install shop.py --client claude`

    - `millstream install shop.py --client vscode --project -v SHOP_KEY=secret`

    - `millstream install https://example.com/mcp --client cursor --header "Authorization: Bearer KEY"`

    - `millstream install shop.py --client claude --undo`
    """
    name = " ".join(name.split())
    key = client or only_one_here(system_here())
    if undo_last:
        path, application = place_of(key, project=project)
        called = application.named(name or name_of(target))
        if application.snippet:
            raise CommandError(
                f"install prints entries for {application.title}, and doesn't write its file.",
                fix=f"Remove {called} from {path}.",
            )
        change, copy = prepare_undo(path, (application.under, called))
        if confirm_change(change, dry_run=dry_run, yes=yes, json=json):
            undo(change, copy)
        _tell(change, application, called, "undone", dry_run=dry_run, json=json)
        return
    env = {**(read_file(env_file) if env_file else {}), **pairs(variable or [], "=", "--env must be NAME=VALUE")}
    launch = launch_of(
        target,
        env=env,
        headers=pairs(header or [], ":", '--header must be "Name: value"'),
        packages=packages or (),
        editable=editable or (),
    )
    _check(launch, env, header or [], [*(packages or ()), *(editable or ())])
    if key == PRINTED:
        called = hyphenate(name) if name else name_of(target)
        _tell_name("some applications", called, name, json=json)
        entry = APPLICATIONS["claude-code"].entry(called, launch)
        sys.stdout.write(json_module.dumps({"mcpServers": {called: entry}}, indent=2, ensure_ascii=False) + "\n")
        return
    path, application = place_of(key, project=project)
    called = application.named(name or name_of(target))
    _tell_name(application.title, called, name, json=json)
    entry = application.entry(called, launch)
    if application.snippet:
        _print_snippet(application.snippet(application.under, called, entry), application, called, path, json=json)
        return
    change = prepare(path, (application.under, called), lambda old: merge_entries(old, entry))
    if confirm_change(change, dry_run=dry_run, yes=yes, json=json):
        write(change, called)
    _tell(change, application, called, "installed", dry_run=dry_run, json=json)


def system_here() -> System:
    """Return the properties of this machine."""
    kinds = {"win32": "windows", "darwin": "macos"}
    return System(kind=kinds.get(sys.platform, "linux"), home=Path.home(), variables=os.environ)


def only_one_here(system: System) -> str:
    """Return the only installed application, for commands without --client.

    Raises:
        CommandError: No application, or more than one, was found.
    """
    here = [key for key, application in APPLICATIONS.items() if _is_there(application, system)]
    if len(here) == 1:
        return here[0]
    if here:
        raise CommandError(
            f"Several applications are installed: {', '.join(here)}.", fix=f"Choose one: --client {here[0]}"
        )
    raise CommandError(
        "No supported application was found on this machine.",
        why=f"Looked for {', '.join(APPLICATIONS)}.",
        fix=f"Name yours, as in --client claude. For other applications, print the entry: --client {PRINTED}",
    )


def _is_there(application: ConfigurableApp, system: System) -> bool:
    place = application.place(system)
    return place.is_file() or (place.parent != system.home and place.parent.is_dir())


def place_of(key: str, *, project: bool) -> tuple[Path, ConfigurableApp]:
    """Return the configuration file of an application.

    Raises:
        CommandError: The application is unknown, or has no configuration per folder.
    """
    application = APPLICATIONS.get(key)
    if application is None:
        near = closest_name(key, APPLICATIONS)
        raise CommandError(
            f"{key} isn't a supported application.",
            fix=f"{f'Did you mean {near}? ' if near else ''}Use one of: {', '.join(APPLICATIONS)}.",
        )
    if not project:
        return application.place(system_here()), application
    if not application.project:
        raise CommandError(f"{application.title} has no configuration per folder.", fix="Leave out --project.")
    return Path.cwd() / application.project, application


def _check(launch: Launch, env: dict[str, str], headers: list[str], packages: list[str]) -> None:
    if launch.url and packages:
        raise CommandError(
            "Packages can't be added to a server at a URL.",
            why="It already runs elsewhere.",
            fix="Leave out --with and --with-editable.",
        )
    if launch.url and env:
        raise CommandError("Variables can't be set for a server at a URL.", fix="Send headers: --header NAME:VALUE")
    if headers and not launch.url:
        raise CommandError("Headers can't be sent to a server in a file.", fix="Set variables: --env NAME=VALUE")


def _tell_name(application: str, called: str, name: str, *, json: bool) -> None:
    if name and called != name and not json:
        text = f'The server is named {called}, because {application} doesn\'t support the name "{name}".'
        print_text(safe(text), sys.stderr)


def _print_snippet(snippet: str, application: ConfigurableApp, name: str, path: Path, *, json: bool) -> None:
    if json:
        fields = {"result": "printed", "application": application.title, "name": name, "file": str(path)}
        print_json({**fields, "snippet": snippet})
        return
    sys.stdout.write(f"{snippet}\n")
    print_text(safe(f"Add this to {path}. {application.afterwards}"), sys.stderr)


def confirm_change(change: FileChange, *, dry_run: bool, yes: bool, json: bool) -> bool:
    """Show the change, and ask whether to make it.

    Raises:
        Exit: The change was declined.
    """
    if change.nothing:
        return False
    if not json:
        for line in change.diff().splitlines():
            sys.stdout.write(style(safe(line), {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")) + "\n")
    if dry_run or yes:
        return not dry_run
    if json or not somebody_looks():
        text = "Nothing was written, because there's no terminal to ask on."
        tell(text, 2, remedy="Use --yes.", shown=text)
        raise SystemExit(2)
    if not confirm("Write this?"):
        print("Nothing was written.", file=sys.stderr)
        raise SystemExit(1)
    return True


def somebody_looks() -> bool:
    """Return whether standard input is a terminal."""
    return sys.stdin.isatty()


def _tell(change: FileChange, application: ConfigurableApp, name: str, done: str, *, dry_run: bool, json: bool) -> None:
    result = "unchanged" if change.nothing else "shown" if dry_run else done
    if json:
        found: dict[str, Any] = {"result": result, "application": application.title, "name": name}
        print_json({**found, "file": str(change.path), "diff": change.diff()})
        return
    sentences = {
        "unchanged": f"{change.path} already has this entry for {name}, so nothing was changed.",
        "shown": "Nothing was written.",
        "installed": f"Added {name} to {application.title}. {application.afterwards}",
        "undone": f"Reverted {change.path} to its state before {name} was installed.",
    }
    print_text(sentences[result], sys.stderr if dry_run else None)
