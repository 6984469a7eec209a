"""Finds the server for a target: ``shop.py``, ``shop.py:mcp``, ``shop``, or ``shop:mcp``.

A file is imported under a special name, so that ``if __name__ == "__main__"`` doesn't run, and a file such as
``logging.py`` doesn't hide another module. Errors refer to the user's code, not to the import system.
"""

import difflib
import importlib
import importlib.machinery
import importlib.util
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import millstream
from millstream._app import Server
from millstream._app.server_process.errors import CommandError, RunCalled, mark_import, place_of, show_failure
from millstream._cli.compatible_imports import compatible_imports
from millstream._cli.from_source import from_source
from millstream._config import VariableError
from millstream._protocol.errors import LocalError, MissingExtra
from millstream._telemetry.logs import user_frames
from millstream.gateway._programs import ProgramError, library_of

T = TypeVar("T")

_SCRIPTS = (".js", ".mjs", ".cjs")
_CONFIGURATIONS = (".toml", ".json")
"""Extensions of gateway configuration files."""
CUSTOMARY_NAMES = ("mcp", "server", "app")


def load(target: str) -> Server:
    """Return the server for ``FILE[:OBJECT]`` or ``module[:object]``.

    Raises:
        CommandError: The file, module, or object doesn't exist, can't be imported, or is ambiguous, or an environment
            variable is invalid.
    """
    if is_elsewhere(target):
        return _load_upstream(target)
    source, name = split_target(target)
    _check_source(source)
    if Path(source).suffix in _CONFIGURATIONS:
        return _load_gateway(Path(source))
    with compatible_imports() as imports:
        try:
            return _import(source, name)
        except CommandError as exc:
            if not imports.replace_sdk(exc.__cause__):
                raise
        return _import(source, name)


def _import(source: str, name: str) -> Server:
    try:
        module = load_file(Path(source)) if _is_path(source) else load_module(source)
    except RunCalled as call:
        return _server(call.server) or _adopt(call.server, source)
    return pick(vars(module), name, source)


def check_target(target: str) -> None:
    """Check that a file exists before anything starts, without importing it.

    Raises:
        CommandError: It doesn't exist.
    """
    if is_elsewhere(target):
        return
    source, _ = split_target(target)
    _check_source(source)
    if _is_path(source):
        _check_file(Path(source))


def is_elsewhere(target: str) -> bool:
    """Return whether a target isn't imported: a URL, a command, a program, or a Node script."""
    if "://" in target or Path(target).suffix in _SCRIPTS or _is_program(target):
        return True
    words, source = target.split(), split_target(target)[0]
    if len(words) < 2 or Path(source).is_file():
        return False
    return Path(source).suffix != ".py" or shutil.which(words[0]) is not None


def _is_program(target: str) -> bool:
    """Return whether a target is an executable file or a program on the PATH. Modules take precedence."""
    if Path(target).suffix in (".py", *_CONFIGURATIONS) or shutil.which(target) is None:
        return False
    package = target.partition(".")[0]
    path = [str(Path.cwd()), *sys.path]
    return not package.isidentifier() or importlib.machinery.PathFinder.find_spec(package, path) is None


def _check_source(source: str) -> None:
    if not source.strip() or source.startswith(":") or source.endswith(":"):
        raise CommandError(
            f"{source!r} isn't a file name.", fix="Name a file, and optionally an object in it: shop.py:mcp"
        )


def _is_path(source: str) -> bool:
    """Return whether a source is a file rather than a module."""
    path = Path(source)
    return path.suffix == ".py" or path.name != source or path.is_file()


def folder_of(target: str) -> Path:
    """Return the folder of a program without importing it."""
    path = Path(split_target(target)[0])
    return path.resolve().parent if path.is_file() else Path.cwd()


def split_target(target: str) -> tuple[str, str]:
    """Split ``"shop.py:mcp"`` into ``("shop.py", "mcp")``. Other colons belong to the path."""
    source, colon, name = target.rpartition(":")
    dotted = all(word.isidentifier() for word in name.split("."))  # such as mcp.app, which an error explains
    return (source, name) if colon and source and dotted else (target, "")


def load_file(path: Path) -> ModuleType:
    """Import a file, with its directory first on the path, like ``python FILE``."""
    _check_file(path)
    path = path.resolve()
    if path.stem == "millstream":
        sys.stderr.write(
            "Warning: Rename millstream.py. Otherwise, `python millstream.py` and other files in the folder import it "
            "instead of the package.\n"
        )
    name = f"_served_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CommandError(
            f"{path.name} isn't a Python file.",
            fix="Use a file that ends in .py, the name of a module, or a program that may be executed.",
        )
    module = importlib.util.module_from_spec(from_source(spec))
    sys.modules[name] = module  # dataclasses look up their module when they resolve annotations
    sys.path.insert(0, str(path.parent))
    try:
        with mark_import(path.name):
            spec.loader.exec_module(module)
    except CommandError:
        raise
    except (Exception, SystemExit) as exc:
        raise _import_failure(path.name, exc) from exc
    return module


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise CommandError(f"{path} is a folder.", fix=f"Name a file in it: millstream run {path / 'server.py'}")
    if not path.is_file():
        raise CommandError(
            f"There is no file {path}.", why=f"Looked in {path.resolve().parent}.", fix=_nearest_file(path)
        )


def load_module(name: str) -> ModuleType:
    """Import a module by its dotted name, looking in the current directory first."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        with mark_import(name):
            return importlib.import_module(name)
    except CommandError:
        raise
    except (Exception, SystemExit) as exc:
        if isinstance(exc, ModuleNotFoundError) and exc.name and f"{name}.".startswith(f"{exc.name}."):
            raise CommandError(
                f"There is no module {name}.",
                why=f"Looked in {Path.cwd()} and in the packages of {sys.executable}.",
                fix=f"Check the spelling, or use the file: millstream run {name.replace('.', '/')}.py",
            ) from exc
        raise _import_failure(name, exc) from exc


def pick(namespace: Mapping[str, object], name: str, source: str) -> Server:
    """Return the server called `name`, or the only one, or the one called ``mcp``, ``server``, or ``app``."""
    servers = {key: server for key, value in namespace.items() if (server := _server(value)) is not None}
    if not servers:
        programs = {key: value for key, value in namespace.items() if library_of(value)}
        if programs:
            return _adopt(_choose(namespace, programs, name, source), source)
    if servers or name:
        return _choose(namespace, servers, name, source)
    hosts = [key for key, value in namespace.items() if _can_mount(value)]
    raise CommandError(
        f"{source} has no millstream.Server.",
        why="The file was imported, but none of its global names is a server.",
        fix=_mount_hint(source, hosts[0])
        if hosts
        else f'If a function creates its server, run it as a command: millstream run "python {source}"'
        if any(_library(value) in ("mcp", "mcp_types", "fastmcp") for value in namespace.values())
        else 'Create one at the top level of the file: mcp = Server("my-server")',
    )


def _library(value: object) -> str:
    return str(getattr(value, "__module__", "")).partition(".")[0]


def _choose(namespace: Mapping[str, object], servers: Mapping[str, T], name: str, source: str) -> T:
    if name:
        return _find_named(namespace, servers, name, source)
    if len({id(server) for server in servers.values()}) == 1:
        return next(iter(servers.values()))
    for customary in CUSTOMARY_NAMES:
        if customary in servers:
            return servers[customary]
    raise CommandError(
        f"{source} has several servers: {', '.join(servers)}.",
        why="It isn't clear which one to run.",
        fix=f"Name it: millstream run {source}:{next(iter(servers))}",
    )


def _adopt(value: object, source: str) -> Server:
    """Return a server with the items of another library's server object."""
    from millstream._app.program_server import server_of  # noqa: PLC0415  only for other libraries

    try:
        return server_of(value)
    except ProgramError as exc:
        raise CommandError(f"{source} can't be run.", why=str(exc)) from exc


def _load_upstream(target: str) -> Server:
    from millstream._app.gateway_server import server_of_upstream  # noqa: PLC0415  only for gateways

    is_program = _is_program(target)
    program = target.split(maxsplit=1)[0]
    if not (is_program or "://" in target or Path(target).suffix in _SCRIPTS or shutil.which(program)):
        raise CommandError(f"There is no program {program!r}.", fix="Check its name, and that it is on the PATH.")
    try:
        return server_of_upstream([target] if is_program else target)
    except VariableError as exc:
        raise _import_failure("millstream", exc) from exc
    except ValueError as exc:
        raise CommandError(str(exc)) from exc


def _load_gateway(path: Path) -> Server:
    from millstream._app.gateway_server import server_of_file  # noqa: PLC0415  only for gateways
    from millstream.gateway._config import ConfigError  # noqa: PLC0415  as above

    _check_file(path)
    try:
        return server_of_file(path)
    except VariableError as exc:
        raise _import_failure(path.name, exc) from exc
    except ConfigError as exc:
        raise CommandError(str(exc)) from exc


def _server(value: object) -> Server | None:
    """Return a server, or the server of an object of `millstream.compat`, or None."""
    if not isinstance(value, Server) and not isinstance(value, type):
        value = getattr(value, "__millstream_server__", None)
    return value if isinstance(value, Server) else None


def _can_mount(value: object) -> bool:
    """Return whether a value is an instance of FastAPI, Starlette, or a similar application."""
    return not isinstance(value, type) and callable(value) and callable(getattr(value, "mount", None))


def _mount_hint(source: str, name: str) -> str:
    path = Path(source)
    module = ".".join(path.with_suffix("").parts) if path.suffix == ".py" and not path.is_absolute() else path.stem
    return f'Mount a server in it, {name}.mount("/", mcp), and serve the application: uvicorn {module}:{name}'


def _find_named(namespace: Mapping[str, object], servers: Mapping[str, T], name: str, source: str) -> T:
    if name in servers:
        return servers[name]
    if (owner := name.partition(".")[0]) != name and owner in servers:
        raise CommandError(f"{name} isn't a global name.", fix=f"Use the server itself: {source}:{owner}")
    known = f"Name one of: {', '.join(servers)}." if servers else 'Create one: mcp = Server("my-server")'
    if name in namespace:
        kind = type(namespace[name]).__name__
        if _can_mount(namespace[name]):
            known = f"{known} {_mount_hint(source, name)}" if servers else _mount_hint(source, name)
        raise CommandError(f"{name} in {source} is a {kind}, not a millstream.Server.", fix=known)
    raise CommandError(f"There is no {name} in {source}.", fix=known)


def _nearest_file(path: Path) -> str:
    folder = path.resolve().parent
    names = [each.name for each in folder.glob("*.py")] if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
    return (
        f"Did you mean {path.parent / near[0]}?" if near else "Check the path; it is relative to the working directory."
    )


def _import_failure(source: str, exc: BaseException) -> CommandError:
    if isinstance(exc, VariableError):
        return CommandError(
            str(exc),
            why="Environment variables are read when the server is created.",
            fix="Correct it or unset it; help(millstream.Settings) lists all settings.",
        )
    frames = user_frames(exc)
    if isinstance(exc, MissingExtra):
        return CommandError(exc.what, why=f"{_sentence(place_of(exc, frames))} requires it.", fix=f"Run: {exc.remedy}")
    if isinstance(exc, LocalError):
        return CommandError(str(exc), why=f"{_sentence(place_of(exc, frames))} needs it.")
    detail = show_failure(exc, frames)
    if isinstance(exc, ModuleNotFoundError) and exc.name and exc.name.startswith("millstream."):
        found = re.search(r"import (\w+)", frames[-1].line or "") if frames else None
        name = found[1] if found and hasattr(millstream, found[1]) else "Server"
        return CommandError(
            f"Millstream has no module {exc.name}.",
            fix=f"Import from the package itself: from millstream import {name}",
            detail=detail,
        )
    if isinstance(exc, ModuleNotFoundError) and exc.name:
        package = exc.name.partition(".")[0]
        return CommandError(
            f"{source} needs the module {exc.name}, which isn't installed.",
            why=f"Millstream's environment doesn't contain it: {sys.executable}",
            fix=f"Install its package, or add it for one run: millstream run {source} --with {package}",
            detail=detail,
        )
    if isinstance(exc, SystemExit):
        return CommandError(
            f"{source} exited during its import.",
            why="It calls sys.exit(), or runs a program, at the top level.",
            fix='Move that below: if __name__ == "__main__":',
            detail=detail,
        )
    what = f"{source} can't be imported: {type(exc).__name__}."
    return CommandError(what, fix=f"Correct {place_of(exc, frames)}.", detail=detail)


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]
