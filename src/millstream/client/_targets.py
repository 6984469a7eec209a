"""Targets of a client: a URL, a command, a script, a server object, or an entry of a configuration file."""

import ast
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from msgspec import Struct
from msgspec.structs import replace

from millstream._confidential import Confidential
from millstream._http.client.url import Url, parse_url
from millstream._modules import CONFIGURATIONS, SCRIPTS, is_module, python_path, split_target
from millstream._protocol.json_schema import is_array, is_object
from millstream._protocol.jsonrpc import MALFORMED
from millstream._suggestions import closest_name
from millstream.client._applications import SERVER_TABLES, URLS
from millstream.client._errors import TargetError
from millstream.client._transports import ServerObject, TransportFactory
from millstream.client._transports.stdio import Command
from millstream.files import read_env_file

_RUN_CODE = "from millstream._cli import main; main()"
_SERVE_CODE = "import sys; from millstream._cli import serve_file; serve_file(*sys.argv[1:])"
_FILES = (".py", *CONFIGURATIONS, *SCRIPTS)
_OF_URLS, _OF_COMMANDS = ("headers", "type"), ("command", "args", "cwd", "env", "envFile")
"""Members of a server's entry. Others aren't read, so their variables needn't be set."""

VARIABLE = re.compile(r"\$(\$)?\{(?:env:)?([^{}]*)\}")
"""A variable in a configuration file."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Remote(Confidential, Struct, frozen=True):
    """A server at a URL: ``Remote(parse_url("https://example.com/mcp"))``."""

    url: Url
    headers: Mapping[str, str] = {}
    kind: str = ""
    """``sse`` or ``http`` if a configuration specifies it."""


Place = Remote | Command | ServerObject | TransportFactory
"""The address of a server."""
Target = str | Path | Sequence[str] | Mapping[str, Any] | ServerObject | TransportFactory
"""Everything that `find_server` accepts."""


def find_server(target: Target, *, env: Mapping[str, str], cwd: str | None) -> Place:
    """Return the address of a target's server: ``find_server("uvx mcp-server-time", env={}, cwd=None)``.

    Args:
        target: A URL; a command as a string or list; a `.py` or `.js` file; a module; a ``gateway.toml``; a `.json`
            file with `mcpServers`, followed by ``#name`` if it has several; such a configuration, or one of its
            entries, as a dict; or a server object.
        env: Environment variables for a command.
        cwd: Working directory of a command, and the folder of a relative file.

    Raises:
        TargetError: The target doesn't identify exactly one server.
    """
    base = Command((), env, cwd)
    if isinstance(target, Path):
        return _file(_locate(target, base), "", base)
    if isinstance(target, str):
        return _text(target.strip(), base)
    if isinstance(target, Mapping):
        entry = not target.keys().isdisjoint(("command", *URLS))
        return _from_configuration(
            {"mcpServers": {"server": target}} if entry else target, "", "the configuration", base
        )
    if isinstance(target, Sequence):
        return _command(target, base)
    if isinstance(target, TransportFactory) or hasattr(target, "running"):
        return target
    raise TargetError(f"{type(target).__name__} isn't a server. Use a URL, a command, a script, or a Server.")


def _locate(source: str | Path, base: Command) -> Path:
    """Return the path of a file for a process that may start in another folder."""
    return Path(source) if base.cwd is None else Path(base.cwd).expanduser().absolute() / source


def _text(text: str, base: Command) -> Place:
    if not text:
        raise TargetError("There is no server to connect to: the target is empty.")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        return Remote(parse_url(text))
    source, name = split_target(text)
    path = _locate(source, base)
    if path.suffix in _FILES and (not re.search(r"\s", text) or path.is_file()):
        return _file(path, name, base)
    if is_module(text, _locate("", base)):
        return _run(text, base)
    if not re.search(r"\s", text) and not shutil.which(text):
        _check_no_file(text, base.cwd or "")
    if re.fullmatch(r"(localhost|[\w.-]+\.[a-z]{2,}|\d+(\.\d+){3})(:\d+)?(/\S*)?", text) and not shutil.which(text):
        raise TargetError(f"{text} is neither a file, a module, nor a command. If it's a URL, write http://{text}")
    try:
        words = shlex.split(text, posix=os.name != "nt")
    except ValueError as exc:
        raise TargetError(f"The command {text!r} can't be parsed: {exc}.") from exc
    return _command(words, base)


def _check_no_file(text: str, folder: str) -> None:
    """Raise a helpful error if a word is the path of a file or folder instead of a program."""
    path = os.path.join(os.path.expanduser(folder), text)  # noqa: PTH111, PTH118  unlike a Path, it accepts any length
    if os.path.isdir(path):  # noqa: PTH112
        raise TargetError(f"{text} is a folder. Use a .py, .js, or .json file in it, a command, or a URL.")
    if os.path.isfile(path) and not os.access(path, os.X_OK):  # noqa: PTH113
        raise TargetError(
            f"{text} isn't a program. Use a .py, .js, or .json file, a command, or a running server's URL."
        )
    if os.path.isfile(f"{path}.py"):  # noqa: PTH113
        raise TargetError(f"There is no program {text!r}. Did you mean {text}.py?")


def nearest_file(path: Path) -> str:
    """Return a hint for a missing file: the closest name in its folder, or what to check."""
    near = closest_name(path.name, [each.name for each in path.parent.glob(f"*{path.suffix}")])
    if near:
        return f"Did you mean {path.parent / near}?"
    return "Check the path." if path.is_absolute() else "Check the path. It's relative to the current folder."


def _command(words: Sequence[str], base: Command) -> Command:
    if not words:
        raise TargetError("A command needs a program and its arguments.")
    return replace(base, argv=tuple(words))


def _run(target: str, base: Command) -> Command:
    """Return the command that serves a configuration file or a module on stdio."""
    argv = (sys.executable, "-P", "-c", _RUN_CODE, "run", target, "--transport", "stdio")
    return replace(base, argv=argv, env={**python_path(), **base.env}, ours=True)


def _file(path: Path, name: str, base: Command) -> Place:
    if not path.is_file():
        raise TargetError(f"There is no file {path}. {nearest_file(path)}")
    if path.suffix in (".json", ".jsonc") and not needs_gateway(path):
        return _from_configuration(read_json(path), name, str(path), base, path.parent)
    if path.suffix in CONFIGURATIONS:
        return _run(f"{path}#{name}" if name else str(path), base)
    if path.suffix == ".py":  # its `__main__` block may serve HTTP, or nothing
        advice = (
            f'{path.name} has no server: write `from millstream import Server` and `mcp = Server("{path.stem}")` in it.'
        )
        base = replace(base, env={**python_path(), **base.env})
        if not name and is_plain_program(path):
            return replace(base, argv=(sys.executable, str(path)), advice=advice)
        argv = (sys.executable, "-P", "-c", _SERVE_CODE, str(path), *([name] if name else []))
        return replace(base, argv=argv, ours=True, advice=advice)
    if path.suffix in SCRIPTS:
        return replace(base, argv=("node", str(path)))
    return replace(base, argv=(str(path),))


def read_json(path: Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        TargetError: It can't be read.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, *MALFORMED) as exc:
        raise TargetError(f"{path} isn't valid JSON: {exc}.") from exc


def needs_gateway(path: Path) -> bool:
    """Return whether a JSON file is one that only the gateway reads: it has comments, or no `mcpServers` but another
    application's list.

    Args:
        path: Path of the file.

    Raises:
        TargetError: It can't be read.
    """
    try:
        text = path.read_text("utf-8", "replace")
    except OSError as exc:
        raise TargetError(f"{path} can't be read: {exc.strerror or exc}.") from exc
    try:
        given = json.loads(text)
        return isinstance(given, dict) and "mcpServers" not in given and not given.keys().isdisjoint(SERVER_TABLES)
    except MALFORMED:
        commented = re.search(r"^[ \t]*+//|/\*", text, re.MULTILINE) is not None
        return commented and any(f'"{each}"' in text for each in SERVER_TABLES)


def is_plain_program(file: str | Path, seen: frozenset[Path] = frozenset()) -> bool:
    """Return whether a file and its neighbors import only the standard library. If so, it can't define a `Server`,
    but it may speak the protocol itself as soon as it's imported.
    """
    path = Path(file)
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [each.name.partition(".")[0] for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["" if node.level else str(node.module).partition(".")[0]]
        else:
            continue
        for name in names:
            beside = path.parent / f"{name}.py"
            is_local = beside not in seen and beside != path and beside.is_file()  # a package has the file's own name
            if name not in sys.stdlib_module_names and beside not in seen and not is_local:
                return False
            if is_local and not is_plain_program(beside, seen | {path, beside}):
                return False
    return True


def mcp_servers(configuration: Any, source: str = "The configuration") -> dict[str, Any]:
    """Return the entries of `mcpServers`, by name: ``mcp_servers(json.loads(text), "mcp.json")``.

    Args:
        configuration: The configuration that applications share, as a mapping. Its entries aren't checked.
        source: Name of the configuration in errors.

    Raises:
        TargetError: There are no entries.
    """
    found = cast("dict[str, Any]", configuration).get("mcpServers") if isinstance(configuration, Mapping) else None
    if not isinstance(found, Mapping) or not found:
        raise TargetError(f'{source} has no servers: it needs {{"mcpServers": {{"name": {{…}}}}}}.')
    return dict(cast("Mapping[str, Any]", found))


def _from_configuration(given: Any, name: str, source: str, base: Command, folder: Path | None = None) -> Place:
    """Resolve one server of a configuration, in the format of desktop applications.

    Args:
        given: The configuration.
        name: Name of the server, or empty if there's only one.
        source: Name of the configuration in errors.
        base: Environment and working directory.
        folder: The file's folder, for replacing variables.
    """
    entries = mcp_servers(given, source)
    if not name:
        if len(entries) > 1:
            first = next(iter(entries))
            together = f", or serve them all: millstream gateway {source}" if source.endswith(".json") else "."
            choice = f"Choose one: {source}#{first}{together}"
            if folder is None:
                choice = f'Pass one of them: {{"mcpServers": {{"{first}": {{…}}}}}}.'
            raise TargetError(f"{source} has several servers: {', '.join(entries)}. {choice}")
        name = next(iter(entries))
    if name not in entries:
        raise TargetError(f"{source} has no server {name!r}. It has: {', '.join(entries)}.")
    entry = entries[name]
    if not isinstance(entry, Mapping):
        raise TargetError(f'The server {name!r} of {source} must be an object: {{"url": …}} or {{"command": …}}.')
    fields = cast("Mapping[str, Any]", entry)
    variables: dict[str, str] = {}
    try:
        url = _expand(next(filter(None, map(fields.get, URLS)), None), folder)
        is_url = isinstance(url, str) and url != ""
        used = {each: _expand(fields.get(each), folder) for each in (_OF_URLS if is_url else _OF_COMMANDS)}
        if folder is not None and (file := used.get("envFile")):
            variables = read_env_file(folder / Path(str(file)).expanduser())
    except ValueError as exc:
        raise TargetError(f"The server {name!r} of {source} can't be used: {exc}") from exc
    if is_url:
        return Remote(parse_url(url), _texts(used["headers"], name), str(used["type"] or ""))
    command: Any = used["command"]
    arguments: Any = used["args"] or []
    if not isinstance(command, str) or not isinstance(arguments, list):
        raise TargetError(
            f"The server {name!r} of {source} needs a url, or a command with a list of args. "
            f"It has: {', '.join(map(str, fields)) or 'nothing'}."
        )
    words = [command, *map(as_text, cast("list[object]", arguments))]
    variables |= _texts(used["env"], name) | dict(base.env)
    return Command(tuple(words), variables, str(used["cwd"]) if used["cwd"] else base.cwd)


def _expand(value: Any, folder: Path | None) -> Any:
    if folder is None:
        return value
    if isinstance(value, str):
        return expand_variables(value, os.environ, folder)
    if is_array(value):
        return [_expand(each, folder) for each in value]
    return {name: _expand(each, folder) for name, each in value.items()} if is_object(value) else value


def _texts(given: Any, name: str) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TargetError(f"The headers or variables of the server {name!r} must be an object.")
    return as_texts(cast("Mapping[str, object]", given))


def as_text(value: object) -> str:
    """Return an argument or the value of a variable or header as text. Some clients accept numbers and booleans."""
    return value if isinstance(value, str) else json.dumps(value)


def as_texts(values: Mapping[str, object]) -> dict[str, str]:
    """Return variables or headers as text, without those that are null."""
    return {str(key): as_text(each) for key, each in values.items() if each is not None}


class UnsetVariable(ValueError):
    """A variable in a configuration file has neither a value nor a default."""


def expand_variables(text: str, variables: Mapping[str, str], folder: Path) -> str:
    """Replace ``${NAME}`` in a text of a configuration file: ``expand_variables("${HOST}:80", os.environ, Path())``.

    ``${NAME:-text}`` has a default, and ``$${`` is a literal ``${``.

    Args:
        variables: Values by name.
        folder: The folder of the file.

    Raises:
        ValueError: A variable isn't set.
    """

    def replace(found: re.Match[str]) -> str:
        if found[1]:
            return found[0][1:]
        name, default_given, default = found[2].partition(":-")
        if name.startswith("input:"):
            raise ValueError(
                f"{found[0]} asks the user for input, which works only in editors. Set a variable, and write ${{NAME}}."
            )
        if name in ("workspaceFolder", "userHome"):
            return str(folder.resolve() if name == "workspaceFolder" else Path.home())
        if not _NAME.fullmatch(name):
            raise ValueError(f"{found[0]} isn't a valid variable: write ${{NAME}}, or $${{ for the text ${{")
        value = variables.get(name)
        if value:
            return value
        if default_given or value is not None:
            return default
        near = closest_name(name, [each for each in variables if each.isupper()])
        hint = f" (did you mean {near}?)" if near else ""
        raise UnsetVariable(f"the variable {name} isn't set{hint}. Set it, or write ${{{name}:-default}}.")

    return VARIABLE.sub(replace, text)
