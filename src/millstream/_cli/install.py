"""``millstream install``: add a server to the configuration of an application, or remove it.

Files are written atomically, with a backup beside the file. The name of the backup contains the server, a digest of the
new content, and whether the file existed. If the file is unchanged since, undo restores the backup or deletes the file.
Otherwise, undo reverts only the entry.
"""

import difflib
import hashlib
import json as json_module
import os
import re
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from msgspec import Struct

from millstream._app.server_process import CommandError
from millstream._cli.applications import (
    APPLICATIONS,
    ConfigurableApp,
    Launch,
    System,
    hyphenate,
    launch_of,
    merge_entries,
    name_of,
)
from millstream._cli.connect_options import pairs
from millstream._cli.errors import tell
from millstream._cli.program import Editable, Json, Packages, Yes
from millstream._cli.serve import read_file
from millstream._cli.tables import confirm, print_json, print_text, safe, style
from millstream._protocol.errors import closest_name
from millstream._protocol.json_schema import value_at
from millstream.files import PRIVATE, write_private
from millstream.gateway import _jsonc as jsonc
from millstream.gateway._jsonc import JsonSyntaxError

_ABSENT = "-absent"
"""Suffix of a backup if the file didn't exist."""


class FileChange(Struct, frozen=True, kw_only=True):
    """The old and new content of a file that differs in one entry."""

    path: Path
    under: Sequence[str]
    """Path of the entry."""
    before: str | None
    """Old content; None if the file doesn't exist."""
    after: str | None

    @property
    def nothing(self) -> bool:
        """Whether nothing changes."""
        return self.before == self.after

    def diff(self) -> str:
        """Return the change to the entry as a diff, without the rest of the file, which may contain others' keys."""
        old, new = (self._entry(each or "") for each in (self.before, self.after))
        return "".join(difflib.unified_diff(old, new, str(self.path), str(self.path), n=3))

    def _entry(self, text: str) -> list[str]:
        """Return the lines of a file that has only the entry."""
        entry = _entry_in(text, self.under)
        alone = "" if entry is None else jsonc.put("", self.under, entry)
        return [f"{line}\n" for line in alone.splitlines()]


def prepare(path: Path, under: Sequence[str], merge: Callable[[Any], dict[str, Any]]) -> FileChange:
    """Return the change that sets one entry.

    Args:
        path: The file, which may not exist yet.
        under: Path of the entry.
        merge: Returns the new entry, given the old one or None.

    Raises:
        CommandError: The file can't be read or changed safely; it's left unchanged.
    """
    before = read(path)
    text = before or ""
    try:
        old = _entry_in(text, under)
        new = merge(old)
        after = text if new == old else jsonc.put(text, under, new)  # if equal, keep the user's formatting
    except JsonSyntaxError as exc:
        raise _refusal(path, exc) from exc
    return FileChange(path=path, under=under, before=before, after=after)


def write(change: FileChange, name: str) -> Path | None:
    """Write a change, and keep a backup of the file. Return its path, or None if the file didn't exist.

    Raises:
        CommandError: The file was changed since, or can't be written.
    """
    if read(change.path) != change.before:
        raise CommandError(
            f"{change.path} was changed by another program.", fix="Nothing was written. Run the command again."
        )
    assert change.after is not None  # noqa: S101  only undo deletes files
    try:
        change.path.parent.mkdir(parents=True, exist_ok=True)
        for old in _copies(change.path, name):
            old.unlink()
        copy = _copy_path(change.path, name, change.after, absent=change.before is None)
        replace(copy, change.before or "", like=change.path)
        replace(change.path, change.after)
    except OSError as exc:
        raise CommandError(f"{exc.filename or change.path} can't be written: {exc.strerror}.") from exc
    return copy if change.before is not None else None


def prepare_undo(path: Path, under: Sequence[str]) -> tuple[FileChange, Path]:
    """Return the change that reverts the last one, and the backup that it uses.

    Raises:
        CommandError: There's no backup, or the file can't be changed safely.
    """
    name = under[-1]
    copies = _copies(path, name)
    if not copies:
        raise CommandError(
            f"There is no backup of {path} from before {name} was installed.",
            why="--undo requires the backup that install keeps beside the file.",
            fix=f"Remove {name} from the file manually.",
        )
    copy = max(copies, key=lambda each: each.stat().st_mtime_ns)
    now, old = read(path), read(copy) or ""
    if now is None:
        raise CommandError(f"The file {path} no longer exists, so there's nothing to undo.")
    absent = copy.name.endswith(_ABSENT)
    if copy == _copy_path(path, name, now, absent=absent):
        return FileChange(path=path, under=under, before=now, after=None if absent else old), copy
    try:
        entry = _entry_in(old, under)
        after = jsonc.take(now, under) if entry is None else jsonc.put(now, under, entry)
    except JsonSyntaxError as exc:
        raise _refusal(path, exc) from exc
    return FileChange(path=path, under=under, before=now, after=after), copy


def undo(change: FileChange, copy: Path) -> None:
    """Write the change that `prepare_undo` returned.

    Raises:
        CommandError: The file can't be written.
    """
    try:
        if change.after is None:
            change.path.unlink()
        else:
            replace(change.path, change.after)
        copy.unlink()
    except OSError as exc:
        raise CommandError(f"{exc.filename or change.path} can't be written: {exc.strerror}.") from exc


def read(path: Path) -> str | None:
    """Return the text of a file with its original line ends, or None if it doesn't exist.

    Raises:
        CommandError: The file isn't text, can't be read, or isn't a regular file, which could block.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CommandError(
                f"{path} isn't a regular file.",
                why="An application's configuration is a file, or a link to one.",
                fix="Check it, and move it elsewhere.",
            )
        return path.read_bytes().decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError as exc:
        raise CommandError(f"{path} isn't UTF-8 text.", fix="It was left unchanged. Check it in an editor.") from exc
    except OSError as exc:
        raise CommandError(f"{path} can't be read: {exc.strerror}.") from exc


def replace(path: Path, text: str, *, like: Path | None = None) -> None:
    """Write a file atomically, preserving links and modes.

    Args:
        path: The file.
        text: Its content, with line ends.
        like: File whose mode a new file gets. By default, only you can read it, because it may contain keys.

    Raises:
        OSError: The file can't be written.
    """
    target = Path(os.path.realpath(path))
    model = target if target.exists() else like
    mode = model.stat().st_mode & 0o7777 if model is not None and model.exists() else PRIVATE
    write_private(target, text.encode(), mode=mode)


def _mark(name: str) -> str:
    plain = re.sub(r"[^\w-]", "_", name)
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _copy_path(path: Path, name: str, written: str, *, absent: bool) -> Path:
    digest = hashlib.sha256(written.encode()).hexdigest()[:16]
    return path.with_name(f"{path.name}.before-{_mark(name)}.{digest}{_ABSENT if absent else ''}")


def _copies(path: Path, name: str) -> list[Path]:
    start = f"{path.name}.before-{_mark(name)}."
    if not path.parent.is_dir():
        return []
    return [
        each for each in path.parent.iterdir() if each.name.startswith(start) and "." not in each.name[len(start) :]
    ]


def _refusal(path: Path, exc: JsonSyntaxError) -> CommandError:
    return CommandError(
        f"{path} can't be changed: {exc}.",
        why="The file was left unchanged.",
        fix="Correct it in an editor, or print the entry with --client json and add it manually.",
    )


def _entry_in(text: str, path: Sequence[str]) -> Any:
    if not text.strip("\ufeff \t\r\n"):
        return None
    return value_at(jsonc.read(text).value, path)


PRINTED = "json"
"""Pseudo-application that prints the entry, for applications that aren't listed."""


def install(  # noqa: PLR0913  the options of the command
    target: Annotated[str, Parameter(name="FILE_OR_URL")],
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
    name: Annotated[str, Parameter(alias="-n", metavar="NAME")] = "",
    variable: Annotated[list[str] | None, Parameter(name=("--env", "-v"), metavar="NAME=VALUE")] = None,
    env_file: Annotated[Path | None, Parameter(alias="-f")] = None,
    header: Annotated[list[str] | None, Parameter(alias="-H", metavar="HEADER")] = None,
    packages: Packages = None,
    editable: Editable = None,
    project: bool = False,
    undo_last: Annotated[bool, Parameter(name="--undo")] = False,
    dry_run: bool = False,
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

    Args:
        target: A .py or .js file (FILE:OBJECT for one of several), servers.json or gateway.toml, or a URL.
        name: Name of the server in the application.
        variable: Set an environment variable of the server; repeatable.
        env_file: Set the variables in this file.
        header: For a URL: header of each request, "Name: value". Repeat it.
        project: Write the configuration of this folder instead of your own, if the application supports it.
        undo_last: Undo the last install of this server.
        dry_run: Show the change, and write nothing.
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
    env = {**(read_file(env_file) if env_file else {}), **pairs(variable, "=", "--env must be NAME=VALUE")}
    launch = launch_of(
        target,
        env=env,
        headers=pairs(header, ":", '--header must be "Name: value"'),
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
        CommandError: The application is unknown, or has no per-folder configuration.
    """
    application = APPLICATIONS.get(key)
    if application is None:
        near = closest_name(key, APPLICATIONS) or next((each for each in APPLICATIONS if key.startswith(each)), None)
        raise CommandError(
            f"{key} isn't a supported application.",
            fix=f"{f'Did you mean {near}? ' if near else ''}Use one of: {', '.join(APPLICATIONS)}.",
        )
    if not project:
        return application.place(system_here()), application
    if not application.project:
        raise CommandError(f"{application.title} has no per-folder configuration.", fix="Leave out --project.")
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
