"""Import of the server for a target: ``shop.py``, ``shop.py:mcp``, ``shop``, or ``shop:mcp``.

A file is imported under a special name, so that ``if __name__ == "__main__"`` doesn't run, and a file such as
``logging.py`` doesn't hide another module. Errors refer to the user's code, not to the import system. Programs for
other libraries can be imported as well: see `compatible_imports`.
"""

import importlib.util
import inspect
import re
import shutil
import sys
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from pkgutil import iter_modules
from traceback import walk_tb
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import millstream
from millstream._app import Server
from millstream._app.server_process import CommandError, RunCalled, fix_of, mark_import, place_of, show_failure
from millstream._config import ConfigVersion, VariableError
from millstream._gateway.programs.libraries import ProgramError, UnsupportedVersion, library_of
from millstream._modules import CONFIGURATIONS, SCRIPTS, find_import_folders, is_module, split_target
from millstream._override import override
from millstream._protocol.errors import LocalError, MissingExtra
from millstream._suggestions import closest_name
from millstream._telemetry.logs import user_frames

if TYPE_CHECKING:
    from millstream._gateway.files.live import LiveConfig

T = TypeVar("T")

CUSTOMARY_NAMES = ("mcp", "server", "app")


class NoServer(CommandError):
    """The imported program has no server."""


def load(target: str, version: ConfigVersion | None = None) -> Server:
    """Return the server for ``FILE[:OBJECT]``, ``module[:object]``, a gateway's configuration file, or a command.

    Args:
        version: The version of a configuration file to use, from a parent process that watches it.

    Raises:
        CommandError: The file, module, or object doesn't exist, can't be imported, or is ambiguous, or an environment
            variable is invalid.
    """
    source, name = split_target(target)
    try:
        if (command := find_command(target)) is not None:
            from millstream._app.gateway_server import server_of_upstream  # noqa: PLC0415  only for gateways

            return server_of_upstream(command)
        check_target(target)
        if Path(source).suffix in CONFIGURATIONS:
            from millstream._app.gateway_server import server_of_file  # noqa: PLC0415  only for gateways

            return server_of_file(Path(source), name, version)
    except VariableError as exc:
        raise _import_failure(source, exc) from exc
    except ValueError as exc:
        raise CommandError(str(exc)) from exc
    with compatible_imports() as imports:
        try:
            return _import(source, name)
        except CommandError as exc:
            if not imports.replace_sdk(exc.__cause__):
                raise
        return _import(source, name)


def _import(source: str, name: str) -> Server:
    try:
        with mark_import(source):
            module = load_file(Path(source)) if _is_path(source) else load_module(source)
    except RunCalled as call:
        return _server(call.server) or _adopt(call.server, source)
    except CommandError:
        raise
    except (Exception, SystemExit) as exc:
        raise _import_failure(source, exc) from exc
    return pick(vars(module), name, source)


def live_config(target: str) -> "LiveConfig | None":
    """Return the configuration file that a target names, or None if it's something else.

    Raises:
        CommandError: The file can't be used.
    """
    source, name = split_target(target)
    if Path(source).suffix not in CONFIGURATIONS or find_command(target) is not None:
        return None
    from millstream._gateway.files.live import LiveConfig  # noqa: PLC0415  only for gateways

    try:
        return LiveConfig(Path(source), name)
    except ValueError as exc:
        raise CommandError(str(exc)) from exc


def check_target(target: str) -> None:
    """Check that a file exists before anything starts, without importing it.

    Raises:
        CommandError: It doesn't exist.
    """
    source, _ = split_target(target)
    if find_command(target) is not None:
        return
    if not source.strip() or source.startswith(":") or source.endswith(":"):
        raise CommandError(
            f"{source!r} isn't a file name.", fix="Specify a file, and optionally an object in it: shop.py:mcp"
        )
    if _is_path(source):
        _check_file(Path(source))


def find_command(target: str) -> str | list[str] | None:
    """Return a target that a gateway accepts and that isn't imported: a URL, a Node script, or a command. Return None
    for others.

    Raises:
        CommandError: There is no such program.
    """
    suffix, source, words = Path(target).suffix, Path(split_target(target)[0]), target.split()
    if "://" in target or suffix in SCRIPTS:
        return target
    if is_module(target, Path.cwd()):
        return None
    if suffix not in (".py", *CONFIGURATIONS) and shutil.which(target) is not None:
        return [target]
    with suppress(OSError):  # a command can be too long for a file name
        if len(words) < 2 or source.is_file():
            return None
    if shutil.which(words[0]) is not None:
        return target
    if source.suffix == ".py":
        return None
    fix = "Check its name, and that it is on the PATH."
    if "=" in words[0] and words[0].partition("=")[0].isidentifier():
        fix = f"Pass the variable as an option: --env {words[0]}"
    raise CommandError(f"There is no program {words[0]!r}.", fix=fix)


def _is_path(source: str) -> bool:
    """Return whether a source is a file rather than a module."""
    path = Path(source)
    return path.suffix == ".py" or path.name != source or path.is_file()


def folder_of(target: str) -> Path:
    """Return the folder of a program without importing it."""
    path = Path(split_target(target)[0])
    return path.resolve().parent if path.is_file() else Path.cwd()


def load_file(path: Path) -> ModuleType:
    """Import a file, with its directory first on the path, like ``python FILE``, and the one above its package."""
    _check_file(path)
    path = path.resolve()
    known = None if path.stem == "__main__" else sys.modules.get(path.stem)
    if Path(getattr(known, "__file__", None) or path) != path:
        sys.stderr.write(
            f"Warning: Rename {path.name}. Otherwise, `python {path.name}` and other files in the folder import it "
            f"instead of the module {path.stem!r}.\n"
        )
    folders = find_import_folders(path)
    package = ".".join(path.parent.relative_to(folders[-1]).parts)  # for relative imports
    name = f"{package}._served_{path.stem}".lstrip(".")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CommandError(
            f"{path.name} isn't a Python file.",
            fix="Use a file that ends in .py, the name of a module, or an executable program.",
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module when they resolve annotations
    sys.path[:0] = folders
    if path.is_relative_to(Path.cwd()):  # as with python -m
        sys.path.append(str(Path.cwd()))
    spec.loader.exec_module(module)
    return module


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise CommandError(f"{path} is a folder.", fix=_file_in(path))
    if not path.is_file():
        from millstream.client._targets import nearest_file  # noqa: PLC0415  only for this error

        raise CommandError(
            f"There is no file {path}.", why=f"It isn't in {path.resolve().parent}.", fix=nearest_file(path)
        )


def load_module(name: str) -> ModuleType:
    """Import a module by its dotted name, looking in the current directory first."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        return import_module(name)
    except ModuleNotFoundError as exc:
        if not exc.name or not f"{name}.".startswith(f"{exc.name}."):
            raise
        raise CommandError(
            f"There is no module {name}.",
            why=f"It's neither in {Path.cwd()} nor in the packages of {sys.executable}.",
            fix=_file_for(name),
        ) from exc


def _file_for(name: str) -> str:
    """Return a hint about the file that was meant by a module that doesn't exist."""
    files = [Path(name.replace(".", "/") + ".py"), Path(name).with_suffix(".py")]
    near = closest_name(files[0].stem, [each.stem for each in files[0].parent.glob("*.py")])
    found = [*(each for each in files if each.is_file()), *([files[0].with_stem(near)] if near else [])]
    return f"Did you mean {found[0]}?" if found else f"Check the spelling, or use a file: millstream run {files[0]}"


def pick(namespace: Mapping[str, object], name: str, source: str) -> Server:
    """Return the server called `name`, or the only one, or the one called ``mcp``, ``server``, or ``app``."""
    servers = {key: server for key, value in namespace.items() if (server := _server(value)) is not None}
    if not servers:
        programs = {key: value for key, value in namespace.items() if library_of(value)}
        if programs:
            return _adopt(_choose(namespace, programs, name, source), source)
    if servers or name:
        return _choose(namespace, servers, name, source)
    if "__path__" in namespace:
        modules = [each.name for each in iter_modules(vars(sys.modules[source])["__path__"]) if each.name[0] != "_"]
        module = min(modules, key=lambda each: (each not in CUSTOMARY_NAMES, each), default="server")
        fix = f"Specify a module in it: millstream run {source}.{module}"
        if command := _command_of(source):
            fix += f', or run its command: millstream run "{command}"'
        raise CommandError(f"{source} is a package without a server.", fix=fix)
    hosts = [key for key, value in namespace.items() if _can_mount(value)]
    replaced = next((key for key in CUSTOMARY_NAMES if inspect.isfunction(namespace.get(key))), "")
    raise NoServer(
        f"{source} has no millstream.Server.",
        why=f"{replaced} is a function, not a server. A function that has the server's name replaces it."
        if replaced
        else "The file was imported, but none of its global names is a server.",
        fix=_mount_hint(source, hosts[0], namespace[hosts[0]])
        if hosts
        else f'If a function creates its server, run it as a command: millstream run "{_command_of(source)}"'
        if any(
            str(getattr(value, "__module__", "")).startswith(("mcp.", "mcp_types.", "fastmcp."))
            for value in namespace.values()
        )
        else 'Create one at the top level of the file: mcp = Server("my-server")',
    )


def _choose(namespace: Mapping[str, object], servers: Mapping[str, T], name: str, source: str) -> T:
    if name in servers:
        return servers[name]
    if name:
        if (owner := name.partition(".")[0]) != name and owner in servers:
            raise CommandError(f"{name} isn't a global name.", fix=f"Use the server itself: {source}:{owner}")
        known = f"Use one of: {', '.join(servers)}." if servers else 'Create one: mcp = Server("my-server")'
        if name not in namespace:
            raise CommandError(f"There is no {name} in {source}.", fix=known)
        if inspect.isfunction(namespace[name]) and not servers:
            known = f"If it creates the server, specify a file that calls it: mcp = {name}()"
        if _can_mount(namespace[name]):
            hint = _mount_hint(source, name, namespace[name])
            known = f"{known} {hint}" if servers else hint
        kind = type(namespace[name]).__name__
        raise CommandError(f"{name} in {source} is a {kind}, not a millstream.Server.", fix=known)
    if len({id(server) for server in servers.values()}) == 1:
        return next(iter(servers.values()))
    for customary in CUSTOMARY_NAMES:
        if customary in servers:
            return servers[customary]
    raise CommandError(
        f"{source} has several servers: {', '.join(servers)}.",
        why="It isn't clear which one to run.",
        fix=f"Specify it: millstream run {source}:{next(iter(servers))}",
    )


def _adopt(value: object, source: str) -> Server:
    """Return a server with the items of another library's server object."""
    from millstream._app.gateway_server import server_of  # noqa: PLC0415  only for other libraries

    try:
        return server_of(value)
    except ProgramError as exc:
        raise CommandError(f"{source} can't be run.", why=str(exc)) from exc


def _server(value: object) -> Server | None:
    """Return the value if it's a server, the server behind a `millstream.compat` object, or else None."""
    if not isinstance(value, Server) and not isinstance(value, type):
        value = getattr(value, "__millstream_server__", None)
    return value if isinstance(value, Server) else None


def _can_mount(value: object) -> bool:
    """Return whether a value is an instance of FastAPI, Starlette, or a similar application."""
    return not isinstance(value, type) and callable(value) and callable(getattr(value, "mount", None))


def _mount_hint(source: str, name: str, value: object) -> str:
    path = Path(source)
    command = f"uvicorn {path.stem if path.suffix == '.py' else source}:{name}"
    if path.parent != Path():
        command += f" --app-dir {path.parent}"
    if any(_server(getattr(route, "app", None)) for route in getattr(value, "routes", ())):
        return f"Its servers are mounted in {name}, so serve that: {command}"
    return f'Mount a server in it, {name}.mount("/", mcp), and serve the application: {command}'


def _command_of(source: str) -> str:
    """Return the command that starts a program, or "" for a package without one."""
    if _is_path(source):
        return f"python {source}"
    from importlib import metadata  # noqa: PLC0415  takes a tenth of a server's start

    package = source.partition(".")[0]
    scripts = metadata.entry_points(group="console_scripts")
    if command := next((each.name for each in scripts if each.module.partition(".")[0] == package), ""):
        return command
    if importlib.util.find_spec(f"{package}.__main__"):
        return f"python -m {package}"
    return "" if source == package else f"python -m {source}"


def _file_in(folder: Path) -> str:
    return f"Specify a file in it: millstream run {min(folder.glob('[!_]*.py'), default=folder / 'server.py')}"


def _low_level(source: str) -> CommandError:
    return CommandError(
        f"{source} uses the low-level Server of the official SDK, version 1.",
        why="Millstream's compatibility layer supports only FastMCP.",
        fix="Install the SDK beside Millstream: pip install 'mcp<2'",
    )


def _needs_low_level_sdk(exc: BaseException) -> bool:
    """Return whether a program failed because its SDK is missing, or is version 2, which has no such decorators."""
    if isinstance(exc, ImportError):
        name = exc.name or ""
        low_level = name in ("mcp.server.lowlevel", "mcp.server.stdio", "mcp.server.models")
        return low_level or (name == "mcp.server" and not re.search("FastMCP|MCPServer", str(exc)))
    return isinstance(exc, AttributeError) and type(exc.obj).__module__.startswith("mcp.server.lowlevel")


def _import_failure(source: str, exc: BaseException) -> CommandError:
    if isinstance(exc, VariableError):
        return CommandError(
            str(exc),
            why="Environment variables are read when the server is created.",
            fix="Correct it or unset it; help(millstream.Settings) lists all settings.",
        )
    frames = user_frames(exc)
    where = place_of(exc, frames)
    place = where[:1].upper() + where[1:]
    if isinstance(exc, MissingExtra):
        return CommandError(exc.what, why=f"{place} requires it.", fix=f"Run: {exc.remedy}")
    if isinstance(exc, LocalError) or _needs_low_level_sdk(exc):
        return CommandError(str(exc), why=f"{place} needs it.") if isinstance(exc, LocalError) else _low_level(source)
    detail = show_failure(exc, frames)
    if isinstance(exc, ModuleNotFoundError) and exc.name and exc.name.startswith("millstream."):
        found = re.search(r"import (\w+)", frames[-1].line or "") if frames else None
        name = found[1] if found and found[1] in millstream.__all__ else "Server"
        return CommandError(
            f"Millstream has no module {exc.name}.",
            fix=f"Import from the package itself: from millstream import {name}",
            detail=detail,
        )
    package = (exc.name or "").partition(".")[0] if isinstance(exc, ImportError) else ""
    spec = getattr(sys.modules.get(package), "__spec__", None) if package else None
    lacks_name = spec is not None and isinstance(spec.loader, CompatibleImports) and "'FastMCP'" not in str(exc)
    if isinstance(exc, ImportError) and exc.name and (lacks_name or isinstance(exc, ModuleNotFoundError)):
        if spec is not None and not isinstance(spec.loader, CompatibleImports):
            what = f"{source} imports the module {exc.name}, which the installed package {package} doesn't have."
            return CommandError(what, fix="Check its name, and the version of the package.", detail=detail)
        found = re.match(r"cannot import name '(\w+)'", str(exc))
        added = "mcp" if package == "mcp" else "PACKAGE"
        return CommandError(
            f"{source} needs {found[1] + ' from ' if found else ''}the module {exc.name}, which isn't installed.",
            why=f"Millstream's environment doesn't contain it: {sys.executable}",
            fix=f"Install its package, or add it for one run: millstream run {source} --with {added}",
            detail=detail,
        )
    if isinstance(exc, SystemExit):
        return CommandError(
            f"{source} exited while it was imported.",
            why="It calls sys.exit(), or runs a program, at the top level.",
            fix='Move that below: if __name__ == "__main__":',
            detail=detail,
        )
    fix = fix_of(exc, frames)
    if isinstance(exc, ImportError) and "'FastMCP' from 'mcp" in str(exc):
        fix = "Write: from mcp.server.fastmcp import FastMCP"
    if isinstance(exc, ImportError) and "no known parent package" in str(exc):
        file = f"Specify the file: millstream run {source}.py"
        fix = "Create an __init__.py in the folder, which makes it a package." if _is_path(source) else file
    what = f"{source} can't be imported: {type(exc).__name__}."
    return CommandError(what, fix=fix, detail=detail)


_PACKAGES = ("mcp", "mcp.server")
_FASTMCP = (
    "",
    ".exceptions",
    ".prompts",
    ".prompts.base",
    ".resources",
    ".server",
    ".tools",
    ".utilities",
    ".utilities.types",
)
_SOURCES = dict.fromkeys((f"mcp.server.fastmcp{each}" for each in _FASTMCP), "millstream.compat.fastmcp") | {
    "mcp.shared.memory": "millstream.compat.memory",
    "mcp.types": "millstream.compat.types",
    **dict.fromkeys(
        (
            "mcp.server.auth.middleware.auth_context",
            "mcp.server.auth.provider",
            "mcp.server.auth.settings",
            "mcp.server.elicitation",
            "mcp.server.session",
            "mcp.server.streamable_http",
            "mcp.shared.auth",
            "mcp.shared.context",
            "mcp.shared.exceptions",
        ),
        "millstream.compat.fastmcp",
    ),
}
"""Module of the SDK -> module with the same public names."""
_NAMES = {*_PACKAGES, *_SOURCES, "mcp.server.auth", "mcp.server.auth.middleware", "mcp.shared"}
_LIBRARIES = ("mcp", "fastmcp")


class CompatibleImports(MetaPathFinder, Loader):
    """Finds the SDK's modules if no other finder does, or instead of them.

    Programs for the official SDK 1.x run on the compatibility layer, under the SDK's import names, if the SDK isn't
    installed, is a version that can't run them, or can't be imported, like 1.12 with pydantic 2.14.
    """

    def __init__(self) -> None:
        self._before = set(sys.modules)
        self._replaced: Collection[str] = ()
        self._has_warned = False

    def replace_sdk(self, error: BaseException | None) -> bool:
        """Find the SDK's modules first if the SDK can't run the program. Return whether to import the program again.

        Args:
            error: What the import of the program raised.
        """
        missing = isinstance(error, ImportError) and error.name in _SOURCES
        broken = isinstance(error, ImportError) and not missing and _is_in_sdk(error)
        if self._replaced or not (missing or broken or isinstance(error, UnsupportedVersion)):
            return False
        self._replaced = _NAMES if broken else _SOURCES
        sys.meta_path.remove(self)
        sys.meta_path.insert(0, self)
        for name in [each for each in sys.modules if each in self._replaced or each not in self._before]:
            if name in self._replaced or not _is_installed(sys.modules[name]):
                del sys.modules[name]
        return True

    @override
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        found = fullname in (self._replaced or _NAMES)
        return ModuleSpec(fullname, self, is_package=True) if found else None

    @override
    def exec_module(self, module: ModuleType) -> None:
        source = _SOURCES.get(module.__name__)
        if source is None:
            if module.__name__ == "mcp":  # the README of SDK 1.x imported FastMCP from here
                vars(module)["__getattr__"] = _find_in_fastmcp
            return
        found = import_module(source)
        names = getattr(found, "__all__", None) or [name for name in vars(found) if not name.startswith("_")]
        vars(module).update({name: getattr(found, name) for name in names})
        if not self._has_warned:
            from importlib import metadata  # noqa: PLC0415  takes a tenth of a server's start

            self._has_warned = True
            reason = (
                f"mcp {metadata.version('mcp')} can't run this program, so it"
                if self._replaced
                else f"{module.__name__} isn't installed, so the program"
            )
            print(f"{reason} runs on Millstream's compatibility layer.", file=sys.stderr)


def _find_in_fastmcp(name: str) -> Any:
    return getattr(import_module("mcp.server.fastmcp"), name)


def _is_in_sdk(error: BaseException) -> bool:
    """Return whether the SDK's own code, or a package that it imports, raised an error."""
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__", "").partition(".")[0] == "mcp" for frame in frames)


def _is_installed(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None) or "site-packages"
    return "site-packages" in file or file.startswith(sys.base_prefix)


class _RunWatcher(MetaPathFinder):
    """Ends the import of a program at the call that would serve, because the command serves it."""

    def __init__(self) -> None:
        self.restore: Callable[[], None] = lambda: None

    @override
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        if fullname in _LIBRARIES:
            sys.meta_path.remove(self)
            self._watch(import_module("anyio"))
        return None

    def _watch(self, anyio: Any) -> None:
        original: Any = anyio.run

        def run(function: Any, *args: Any, **options: Any) -> Any:
            function_or_method = getattr(function, "func", function)  # of a partial
            cells = getattr(function_or_method, "__closure__", None) or ()
            for owner in (getattr(function_or_method, "__self__", None), *(cell.cell_contents for cell in cells)):
                if library_of(owner):
                    raise RunCalled(owner)
            return original(function, *args, **options)

        anyio.run = run
        self.restore = lambda: setattr(anyio, "run", original)


@contextmanager
def compatible_imports() -> Generator[CompatibleImports]:
    """Provide ``mcp.server.fastmcp`` while the block imports a program, if no package named ``mcp`` is installed.

    A call of `run` by an object of another library ends the import with `RunCalled`.
    """
    finder, watcher = CompatibleImports(), _RunWatcher()
    sys.meta_path.append(finder)  # added last, so that an installed package takes precedence
    sys.meta_path.insert(0, watcher)
    try:
        yield finder
    finally:
        sys.meta_path[:] = [each for each in sys.meta_path if each is not watcher and each is not finder]
        watcher.restore()
