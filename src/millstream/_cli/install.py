"""``millstream install``: add a server to the configuration of an application, or remove it.

An entry starts a command, or names a URL. See `millstream.client._applications` for each application's form.

Files are written atomically, with a backup beside the file. The name of the backup contains the server, a digest of the
new content, and whether the file existed. If the file is unchanged since, undo restores the backup or deletes the file.
Otherwise, undo reverts only the entry.
"""

import difflib
import hashlib
import json as json_module
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from cyclopts import Parameter
from msgspec import Struct

from millstream import _jsonc as jsonc
from millstream._app.server_process import CommandError
from millstream._cli.connect_options import Header, pairs
from millstream._cli.errors import report_error
from millstream._cli.program import Editable, Json, Packages, Yes
from millstream._cli.serve import read_file, with_packages
from millstream._cli.tables import confirm, print_json, print_text, safe, style
from millstream._http.client.url import parse_url
from millstream._jsonc import JsonSyntaxError
from millstream._modules import SCRIPTS, is_module, python_path, split_target
from millstream._protocol.json_schema import value_at
from millstream._suggestions import closest_name
from millstream.client._applications import APPLICATIONS, ConfigurableApp, Launch, System, hyphenate, merge_entries
from millstream.client._errors import TargetError
from millstream.client._targets import is_plain_program
from millstream.files import PRIVATE, write_private

_SET = re.compile(r"/mcp/([a-z0-9_-]{1,20})/?$")
"""The end of a path with the name of a set of items. Longer names may be secrets."""


def launch_of(
    target: str,
    *,
    env: Mapping[str, str],
    headers: Mapping[str, str],
    packages: Sequence[str] = (),
    editable: Sequence[str] = (),
) -> Launch:
    """Return how to reach a server in a file or at a URL, or a gateway to the servers that a file lists.

    Paths are absolute, because applications run in other folders.

    Raises:
        CommandError: The file doesn't exist or isn't a server, an option doesn't fit the target, or the packages need
            uv, which isn't installed.
    """
    if "://" in target:
        try:
            url = parse_url(target)
        except TargetError as exc:
            raise CommandError(str(exc)) from exc
        if url.scheme not in ("http", "https"):
            raise CommandError("Applications can't use WebSockets.", fix="Use the server's http or https URL.")
        if packages or editable:
            raise CommandError(
                "Packages can't be added to a server at a URL.",
                why="It already runs elsewhere.",
                fix="Leave out --with and --with-editable.",
            )
        if env:
            raise CommandError("Variables can't be set for a server at a URL.", fix="Send headers: --header NAME:VALUE")
        return Launch(url=str(url), headers=headers)
    source, name = split_target(target)
    path = Path(source)
    module = not path.is_file() and is_module(target, Path.cwd())
    if not path.is_file() and not module:
        fix = "Use a .py, .js, .json, or .toml file, a module, or a URL like https://example.com/mcp."
        raise CommandError(f"{path} is a folder." if path.is_dir() else f"There is no file {path}.", fix=fix)
    python = "python" if packages or editable else sys.executable
    words = _run_words(python, "run", target) if module else _words(path.resolve(), name, python)
    if packages or editable:
        words = with_packages(packages, editable) + words
    if headers:
        raise CommandError("Headers can't be sent to a server in a file.", fix="Set variables: --env NAME=VALUE")
    if path.suffix not in SCRIPTS:
        env = {**python_path(*([Path.cwd()] if module else [])), **env}
    return Launch(command=words[0], args=tuple(words[1:]), env=env)


def _words(path: Path, name: str, python: str) -> list[str]:
    if path.suffix in SCRIPTS:
        return [shutil.which("node") or "node", str(path)]
    gateway = path.suffix in (".json", ".toml")
    if not gateway and path.suffix != ".py":
        raise CommandError(
            f"{path.name} is neither Python nor JavaScript, nor a list of servers.",
            fix="Use a .py, .js, .json, or .toml file, or a URL.",
        )
    if not gateway and not name and python == sys.executable and _has_no_server(path):
        return [python, str(path)]
    return _run_words(python, "gateway" if gateway and not name else "run", f"{path}:{name}" if name else str(path))


def _run_words(python: str, command: str, target: str) -> list[str]:
    program = Path(sys.executable).with_name("millstream.exe" if os.name == "nt" else "millstream")
    own = python == sys.executable and program.is_file()
    return [*([str(program)] if own else [python, "-m", "millstream"]), command, target, "--transport", "stdio"]


def _has_no_server(path: Path) -> bool:
    """Return whether a file has no server, so only Python can run it. This loads the file."""
    if is_plain_program(path):
        return True
    command = [sys.executable, "-P", "-c", _LOAD_CODE, str(path)]
    done = subprocess.run(  # noqa: S603  the user's own file
        command, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    return done.returncode == _NO_SERVER


_NO_SERVER = 3
_LOAD_CODE = f"""
import sys
from millstream._cli.load import NoServer, load
try:
    load(sys.argv[1])
except NoServer:
    sys.exit({_NO_SERVER})
"""


def name_of(target: str) -> str:
    """Return the default name of a server: the file, or the first part of the host, with the set at its URL."""
    if "://" in target:
        host = urlsplit(target).hostname or "server"
        parts = [part for part in host.split(".") if part not in ("www", "mcp", "api")]
        name = parts[0] if parts and not host.replace(".", "").isdigit() else "server"
        chosen = _SET.search(urlsplit(target).path)
        return f"{name}-{chosen[1]}" if chosen else name
    source, name = split_target(target)
    return hyphenate(name if name and Path(source).suffix == ".toml" else Path(source).stem)


_ABSENT = "-absent"
"""Suffix of a backup if the file didn't exist."""


class FileChange(Struct, frozen=True):
    """The old and new content of a file, which differ in one entry."""

    path: Path
    under: Sequence[str]
    """Path of the entry."""
    before: str | None
    """Old content, or None if the file doesn't exist."""
    after: str | None
    """New content; None to delete the file, which only undo does."""
    copy: Path | None = None
    """The backup that undo restores, and then deletes."""

    def diff(self) -> str:
        """Return the change to the entry as a diff, without the rest of the file, which may contain others' keys."""
        old, new = (self._entry(each or "") for each in (self.before, self.after))
        return "".join(difflib.unified_diff(old, new, str(self.path), str(self.path)))

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
    with _refuse_broken(path):
        old = _entry_in(text, under)
        new = merge(old)
        after = text if new == old else jsonc.put(text, under, new)  # if equal, keep the user's formatting
    return FileChange(path, under, before, after)


def write(change: FileChange, name: str) -> None:
    """Write a change, and keep a backup of the file, or delete the one that undo has used.

    Raises:
        CommandError: The file was changed since, or can't be written.
    """
    path = change.path
    if read(path) != change.before:
        raise CommandError(f"{path} was changed by another program.", fix="Nothing was written. Run the command again.")
    try:
        if change.copy is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            for old in _copies(path, name):
                old.unlink()
            copy = _copy_path(path, name, change.after or "", absent=change.before is None)
            replace(copy, change.before or "", like=path)
        if change.after is None:
            path.unlink()
        else:
            replace(path, change.after)
        if change.copy is not None:
            change.copy.unlink()
    except OSError as exc:
        raise CommandError(f"{exc.filename or path} can't be written: {exc.strerror}.") from exc


def prepare_undo(path: Path, under: Sequence[str]) -> FileChange:
    """Return the change that reverts the last one.

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
    after: str | None
    if copy == _copy_path(path, name, now, absent=absent):
        after = None if absent else old
    else:
        with _refuse_broken(path):
            entry = _entry_in(old, under)
            after = jsonc.take(now, under) if entry is None else jsonc.put(now, under, entry)
    return FileChange(path, under, now, after, copy)


def read(path: Path) -> str | None:
    """Return the text of a file with its original line endings, or None if it doesn't exist.

    Raises:
        CommandError: The file isn't text, can't be read, or isn't a regular file, which could block.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CommandError(
                f"{path} isn't a regular file.",
                why="An application's configuration must be a regular file or a link to one.",
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
        text: Its content, with line endings.
        like: File whose mode a new file gets. By default, only you can read it, because it may contain keys.

    Raises:
        OSError: The file can't be written.
    """
    target = Path(os.path.realpath(path))
    model = target if target.exists() else like
    mode = model.stat().st_mode & 0o7777 if model is not None and model.exists() else PRIVATE
    write_private(target, text.encode(), mode=mode)


def _copy_path(path: Path, name: str, written: str, *, absent: bool) -> Path:
    digest = hashlib.sha256(written.encode()).hexdigest()[:16]
    return path.with_name(f"{path.name}.before-{quote(name, '')}.{digest}{_ABSENT if absent else ''}")


def _copies(path: Path, name: str) -> list[Path]:
    start = f"{path.name}.before-{quote(name, '')}."
    return [each for each in path.parent.glob(f"{start}*") if "." not in each.name[len(start) :]]


@contextmanager
def _refuse_broken(path: Path) -> Generator[None]:
    """Convert syntax errors when the block reads a file."""
    try:
        yield
    except JsonSyntaxError as exc:
        raise CommandError(
            f"{path} can't be changed: {exc}.",
            why="The file was left unchanged.",
            fix="Correct it in an editor, or print the entry with --client json and add it manually.",
        ) from exc


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
            metavar="APPLICATION",
            help=f"The application: {', '.join(APPLICATIONS)}; {PRINTED} prints the entry.",
        ),
    ] = "",
    name: Annotated[str, Parameter(alias="-n")] = "",
    variable: Annotated[tuple[str, ...], Parameter(name=("--env", "-v"), metavar="NAME=VALUE")] = (),
    env_file: Annotated[Path | None, Parameter(alias="-f")] = None,
    header: Header = (),
    packages: Packages = (),
    editable: Editable = (),
    project: bool = False,
    undo: bool = False,
    dry_run: bool = False,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Add a server to an application's configuration.

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
        header: For a URL: send a header with each request, "Name: value"; repeatable.
        project: Write the configuration of this folder instead of your own, if the application supports it.
        undo: Undo the last install of this server.
        dry_run: Show the change, and write nothing.
    """
    name = " ".join(name.split())
    launch = Launch()
    if not undo:
        env = {**(read_file(env_file) if env_file else {}), **pairs(variable, "=", "--env must be NAME=VALUE")}
        headers = pairs(header, ":", '--header must be "Name: value"')
        launch = launch_of(target, env=env, headers=headers, packages=packages, editable=editable)
    key = client or only_one_here(system_here())
    if key == PRINTED and not undo:
        called = hyphenate(name or name_of(target))
        _tell_name("some applications", called, name, json=json)
        entry = APPLICATIONS["claude-code"].entry(called, launch)
        sys.stdout.write(json_module.dumps({"mcpServers": {called: entry}}, indent=2, ensure_ascii=False) + "\n")
        return
    path, application = place_of(key, project=project)
    called = application.named(name or name_of(target))
    fields = {"application": application.title, "name": called, "file": str(path)}
    if undo:
        if application.snippet:
            raise CommandError(
                f"install prints entries for {application.title}, and doesn't write its file.",
                fix=f"Remove {called} from {path}.",
            )
        change = prepare_undo(path, (application.under, called))
        done = f"Undid the last install of {called} in {path}."
    else:
        _tell_name(application.title, called, name, json=json)
        entry = application.entry(called, launch)
        if application.snippet:
            snippet = application.snippet(application.under, called, entry)
            if json:
                print_json({"result": "printed", **fields, "snippet": snippet})
            else:
                sys.stdout.write(f"{snippet}\n")
                print_text(safe(f"Add this to {path}. {application.afterwards}"), sys.stderr)
            return
        change = prepare(path, (application.under, called), lambda old: merge_entries(old, entry))
        done = f"Added {called} to {application.title}. {application.afterwards}"
    result = "undone" if undo else "installed"
    if change.before == change.after:
        result, done = "unchanged", f"{path} already has this entry for {called}, so nothing was changed."
    elif confirm_change(change, dry_run=dry_run, yes=yes, json=json):
        write(change, called)
    else:
        result, done = "shown", "Nothing was written."
    if json:
        print_json({"result": result, **fields, "diff": change.diff()})
        return
    print_text(done, sys.stderr if dry_run else None)


def system_here() -> System:
    """Return the properties of this machine."""
    kinds = {"win32": "windows", "darwin": "macos"}
    return System(kind=kinds.get(sys.platform, "linux"), home=Path.home(), variables=os.environ)


def only_one_here(system: System) -> str:
    """Return the only installed application, for commands without --client.

    Raises:
        CommandError: No application, or more than one, was found.
    """
    places = {key: application.place(system) for key, application in APPLICATIONS.items()}
    # The home folder always exists.
    here = [
        key
        for key, place in places.items()
        if place.is_file() or (place.parent != system.home and place.parent.is_dir())
    ]
    if len(here) == 1:
        return here[0]
    if here:
        raise CommandError(
            f"Several applications are installed: {', '.join(here)}.", fix=f"Choose one: --client {here[0]}"
        )
    raise CommandError(
        "No supported application was found on this machine.",
        why=f"Looked for {', '.join(APPLICATIONS)}.",
        fix=f"Specify yours, as in --client claude. For other applications, print the entry: --client {PRINTED}",
    )


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
            fix=f"{f'Did you mean {near}? ' if near else ''}Use one of: {', '.join(APPLICATIONS)}. "
            "In other applications, such as ChatGPT, add the server's URL in the settings.",
        )
    if not project:
        return application.place(system_here()), application
    if not application.project:
        raise CommandError(f"{application.title} has no per-folder configuration.", fix="Leave out --project.")
    return Path.cwd() / application.project, application


def _tell_name(application: str, called: str, name: str, *, json: bool) -> None:
    if name and called != name and not json:
        text = f'The server is named {called}, because {application} doesn\'t support the name "{name}".'
        print_text(safe(text), sys.stderr)


def confirm_change(change: FileChange, *, dry_run: bool, yes: bool, json: bool) -> bool:
    """Show the change and return whether to make it. Without `yes`, ask.

    Raises:
        SystemExit: The change was declined.
    """
    if not json:
        for line in change.diff().splitlines():
            sys.stdout.write(style(safe(line), {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")) + "\n")
    if dry_run or yes:
        return not dry_run
    if json or not somebody_looks():
        text = "Nothing was written, because there's no terminal to prompt on."
        report_error(text, 2, remedy="Use --yes.", shown=text)
        raise SystemExit(2)
    if not confirm("Write this?"):
        print("Nothing was written.", file=sys.stderr)
        raise SystemExit(1)
    return True


def somebody_looks() -> bool:
    """Return whether standard input is a terminal."""
    return sys.stdin.isatty()
