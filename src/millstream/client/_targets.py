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

from millstream._http.client.url import Url, parse_url
from millstream._protocol.errors import Confidential, closest_name
from millstream.client._errors import TargetError
from millstream.client._transports import ServerObject, TransportFactory
from millstream.client._transports.stdio import Command

_RUN_CODE = "from millstream._cli import main; main()"
_SERVE_CODE = "import sys; from millstream._cli import serve_file; serve_file(*sys.argv[1:])"
_SCRIPTS = (".js", ".mjs", ".cjs")
_FILES = (".py", ".toml", ".json", ".jsonc", *_SCRIPTS)
SERVER_TABLES = ("mcpServers", "servers", "context_servers", "mcp_servers", "amp.mcpServers")
"""Members of files that list servers: `servers` in VS Code, `context_servers` in Zed, `mcp_servers` in Codex, and
`mcpServers` in Claude, Cursor, and most others.
"""
_OTHER_TABLES = (*SERVER_TABLES[1:], "mcp")


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
        target: A URL; a command as a string or list; a `.py` or `.js` file; a ``gateway.toml``; a `.json` file with
            `mcpServers`, followed by ``#name`` if it has several; such a configuration as a dict; or a server object.
        env: Environment variables for a command.
        cwd: Working directory of a command.

    Raises:
        TargetError: The target doesn't name exactly one server.
    """
    base = Command((), env, cwd)
    if isinstance(target, Path):
        return _file(target, "", base)
    if isinstance(target, str):
        return _text(target.strip(), base)
    if isinstance(target, Mapping):
        return _from_configuration(target, "", "the configuration", base)
    if isinstance(target, Sequence):
        return _command(target, base)
    if isinstance(target, TransportFactory) or hasattr(target, "running"):
        return target
    raise TargetError(f"{type(target).__name__} isn't a server. Use a URL, a command, a script, or a Server.")


def _text(text: str, base: Command) -> Place:
    if not text:
        raise TargetError("There is no server to connect to: the target is empty.")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        return Remote(parse_url(text))
    split = re.fullmatch(r"(.*\.py):([^\W\d]\w*)|([^#]*)#(.*)", text)  # "shop.py:admin" or "servers.json#web"
    source, name = (split[1] or split[3], split[2] or split[4]) if split else (text, "")
    path = Path(source)
    if path.suffix in _FILES and (not re.search(r"\s", text) or path.is_file()):
        return _file(path, name, base)
    if not re.search(r"\s", text) and not shutil.which(text):
        _check_no_file(text)
    if re.fullmatch(r"(localhost|[\w.-]+\.[a-z]{2,}|\d+(\.\d+){3})(:\d+)?(/\S*)?", text) and not shutil.which(text):
        raise TargetError(f"{text} is neither a file nor a command. If it's a URL, write http://{text}")
    try:
        words = shlex.split(text, posix=os.name != "nt")
    except ValueError as exc:
        raise TargetError(f"The command {text!r} can't be parsed: {exc}.") from exc
    return _command(words, base)


def _check_no_file(text: str) -> None:
    """Raise a helpful error if a word names a file or folder instead of a program."""
    if os.path.isdir(text):  # noqa: PTH112  unlike a Path, it accepts names of any length
        raise TargetError(f"{text} is a folder. Use a .py, .js, or .json file in it, a command, or a URL.")
    if os.path.isfile(text):  # noqa: PTH113
        raise TargetError(
            f"{text} isn't a program. Use a .py, .js, or .json file, a command, or a running server's URL."
        )
    if os.path.isfile(f"{text}.py"):  # noqa: PTH113
        raise TargetError(f"There is no program {text!r}. Did you mean {text}.py?")


def nearest_file(path: Path) -> str:
    """Return a hint for a missing file: the closest name beside it, or what to check."""
    near = closest_name(path.name, [each.name for each in path.parent.glob(f"*{path.suffix}")])
    return f"Did you mean {path.parent / near}?" if near else "Check the path; it is relative to the working directory."


def _command(words: Sequence[str], base: Command) -> Command:
    if not words:
        raise TargetError("A command needs a program and its arguments.")
    return replace(base, argv=tuple(words))


def _file(path: Path, name: str, base: Command) -> Place:
    if not path.is_file():
        raise TargetError(f"There is no file {path}. {nearest_file(path)}")
    if path.suffix in (".json", ".jsonc") and not needs_gateway(path, name):
        return _from_configuration(read_json(path), name, str(path), base)
    if path.suffix in (".toml", ".json", ".jsonc"):
        argv: tuple[str, ...] = (sys.executable, "-P", "-c", _RUN_CODE, "run", str(path), "--transport", "stdio")
        return replace(base, argv=argv, ours=True)
    if path.suffix == ".py":  # its `__main__` block may serve HTTP, or nothing
        advice = (
            f'{path.name} has no server: write `from millstream import Server` and `mcp = Server("{path.stem}")` in it.'
        )
        if not name and is_plain_program(path):
            return replace(base, argv=(sys.executable, str(path)), advice=advice)
        argv = (sys.executable, "-P", "-c", _SERVE_CODE, str(path), *([name] if name else []))
        return replace(base, argv=argv, ours=True, advice=advice)
    if path.suffix in _SCRIPTS:
        return replace(base, argv=("node", str(path)))
    return replace(base, argv=(str(path),))


def read_json(path: Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        TargetError: It can't be read.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise TargetError(f"{path} isn't valid JSON: {exc}.") from exc


def needs_gateway(path: Path, name: str = "") -> bool:
    """Return whether a JSON file is one that only the gateway reads: it has comments, or no `mcpServers` but another
    application's list.

    Args:
        path: Path of the file.
        name: Name of the one server to use, or empty.

    Raises:
        TargetError: A server is named in such a file.
    """
    text = path.read_text("utf-8", "replace")
    try:
        given = json.loads(text)
        found = isinstance(given, dict) and "mcpServers" not in given and not given.keys().isdisjoint(_OTHER_TABLES)
    except ValueError:
        commented = re.search(r"^[ \t]*+//|/\*", text, re.MULTILINE) is not None
        found = commented and any(f'"{each}"' in text for each in (*SERVER_TABLES, "mcp"))
    if found and name:
        raise TargetError(f"The servers of {path} are used together. Leave #{name} out; tools have the server's name.")
    return found


def is_plain_program(file: str | Path, seen: frozenset[Path] = frozenset()) -> bool:
    """Return whether a file, with the files beside it, imports only the standard library. Then it can't have a server,
    and may speak the protocol while it's imported.
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
            is_local = beside not in seen and beside != path and beside.is_file()  # not itself: a package has its name
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


def _from_configuration(given: Any, name: str, source: str, base: Command) -> Place:
    """Resolve one server of a configuration, in the format of desktop applications."""
    entries = mcp_servers(given, source)
    if not name:
        if len(entries) > 1:
            first = next(iter(entries))
            together = f", or serve them all: millstream gateway {source}" if source.endswith(".json") else "."
            raise TargetError(
                f"{source} has several servers: {', '.join(entries)}. Choose one: {source}#{first}{together}"
            )
        name = next(iter(entries))
    if name not in entries:
        raise TargetError(f"{source} has no server {name!r}. It has: {', '.join(entries)}.")
    entry = entries[name]
    if not isinstance(entry, Mapping):
        raise TargetError(f'The server {name!r} of {source} must be an object: {{"url": …}} or {{"command": …}}.')
    fields = cast("Mapping[str, Any]", entry)
    url = fields.get("url") or fields.get("serverUrl")
    if isinstance(url, str):
        return Remote(parse_url(url), _texts(fields.get("headers"), name), str(fields.get("type") or ""))
    command: Any = fields.get("command")
    arguments: Any = fields.get("args") or []
    if not isinstance(command, str) or not isinstance(arguments, list):
        raise TargetError(
            f"The server {name!r} of {source} needs a url, or a command with a list of args. "
            f"It has: {', '.join(map(str, fields)) or 'nothing'}."
        )
    words = [command, *map(str, cast("list[object]", arguments))]
    where = fields.get("cwd")
    return Command(tuple(words), _texts(fields.get("env"), name) | dict(base.env), str(where) if where else base.cwd)


def _texts(given: Any, name: str) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TargetError(f"The headers or variables of the server {name!r} must be an object.")
    return {str(key): str(value) for key, value in cast("Mapping[object, object]", given).items()}
