"""Serving over HTTP for the commands `run`, `dev`, and `gateway`, without the command-line library.

Before it serves, a command can add packages (``--with``) and environment variables (``--env-file``).
"""

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from millstream._app import Server
from millstream._app.server_process import CommandError, set_up_logs
from millstream._app.server_process.listen_sockets import chosen_address
from millstream._app.server_process.over_http import bind_address, is_supervisor, serve_worker
from millstream._app.server_process.startup_message import Facts, show
from millstream._app.server_process.worker_process import claim
from millstream._cli.load import check_target, folder_of, live_config, load
from millstream._config import Settings, VariableError
from millstream.files import EnvFileError, read_env_file


def serve_http(  # noqa: PLR0913  the options of commands
    target: str,
    host: str | None,
    port: int | None,
    /,
    *,
    descriptor: int | None = None,
    workers: int = 1,
    reload: bool = False,
    on_ready: Callable[[Facts], None] = show,
    serve: str = "",
    store: str = "",
    web: bool = False,
    settings: Mapping[str, object],
) -> None:
    """Serve until stopped, as a single process, the supervisor of workers, or a worker.

    Args:
        target: The server.
        host: Address to listen on.
        port: Port to listen on.
        descriptor: Descriptor of a socket to listen on instead.
        workers: Number of processes.
        reload: Whether to restart when a file changes.
        on_ready: Called when the server is ready.
        serve: Parts to serve, instead of those of the program.
        store: URL of the store.
        web: Whether to also serve the pages.
        settings: Settings by name. None leaves a setting unchanged.

    Raises:
        CommandError: The server can't be found, or the address or an option is invalid.
    """
    host, port = chosen_address(host, port)
    place = claim()
    if place is None and is_supervisor(workers, reload=reload):
        from millstream._app.server_process.supervisor import supervise  # noqa: PLC0415  only for several workers

        check_target(target)
        set_up_logs(_settings(), str(settings.get("log_level") or ""))
        watched = folder_of(target) if reload else None
        supervise(
            host, port, workers, descriptor=descriptor, watched=watched, on_ready=on_ready, live=live_config(target)
        )
        return
    with place.report_errors() if place is not None else nullcontext():
        server = load(target, None if place is None else place.hello.config)
        configure(server, serve=serve, store=store, web=web, settings=settings)
        set_up_logs(server.settings)
    if place is not None:
        serve_worker(place, server)
    else:
        bind_address(server, host, port, descriptor=descriptor, on_ready=on_ready).run()


def configure(server: Server, *, serve: str, store: str, settings: Mapping[str, object], web: bool = False) -> None:
    """Override the program's settings with the options.

    Raises:
        CommandError: An option is invalid.
    """
    chosen: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    check_inspected(chosen.get("inspect_urls", ()))
    if store:
        server.definition.store = store
    try:
        server.definition.configure(**chosen)
    except ValueError as exc:
        raise CommandError(str(exc), fix="Correct the option, or leave it out.") from exc
    try:
        server.definition.configure(serve=serve)
        if web and "web" not in server.definition.parts:
            server.definition.configure(serve=server.definition.parts | {"web"})
    except ValueError as exc:
        raise CommandError(str(exc), fix="Use --serve all, or a list such as --serve hub,rest.") from exc


def check_inspected(urls: object) -> None:
    """Check the URLs for the inspector before anything starts.

    Raises:
        CommandError: A URL is invalid, or isn't http or https.
    """
    if not urls:
        return
    from millstream._http.client.url import parse_url  # noqa: PLC0415
    from millstream.client._errors import TargetError  # noqa: PLC0415  rarely needed

    for each in cast("tuple[str, ...]", urls):
        try:
            supported = parse_url(each).scheme in ("http", "https")
        except TargetError as exc:
            raise CommandError(str(exc)) from exc
        if not supported:
            raise CommandError(f"{each} can't be inspected.", fix="Use an http or https URL.")


def _settings() -> Settings:
    """Return the settings of the supervisor, which doesn't load the program."""
    try:
        return Settings.load()
    except VariableError:
        return Settings()  # the workers report the error


_OPTIONS = ("--with", "--with-editable")


def find_uv() -> str:
    """Return the path of uv.

    Raises:
        CommandError: The command `uv` isn't installed.
    """
    beside = Path(sys.executable).with_name("uv.exe" if os.name == "nt" else "uv")
    found = str(beside) if beside.is_file() else shutil.which("uv")
    if found is None:
        raise CommandError(
            "--with and --with-editable require uv, which isn't installed.",
            why="uv creates an environment with these packages, without changing yours.",
            fix="Install uv (pip install uv), or install the packages into your environment and leave out the options.",
        )
    return found


def with_packages(packages: Sequence[str], editable: Sequence[str]) -> list[str]:
    """Return the start of a command that runs in this environment with additional packages.

    Raises:
        CommandError: Uv or a folder doesn't exist.
    """
    words = [find_uv(), "run", "--quiet", "--no-project", "--python", sys.executable]
    for each in packages:
        words += ["--with", each]
    for each in editable:
        folder = Path(each).resolve()
        if not folder.is_dir():
            raise CommandError(f"There is no folder {each}.", fix="--with-editable requires the folder of a package.")
        words += ["--with-editable", str(folder)]
    return words


def run_with(packages: Sequence[str], editable: Sequence[str]) -> None:
    """Restart this program with the packages, or return if there are none.

    uv adds the packages for one run, without changing the environment.

    Raises:
        CommandError: Uv or a folder doesn't exist.
        SystemExit: On Windows, with the status of the program.
    """
    if not (packages or editable):
        return
    count = len(sys.argv) - 1
    start, arguments = sys.orig_argv[1 : len(sys.orig_argv) - count], sys.argv[1:]
    words = [*with_packages(packages, editable), "python", *start, *without_packages(arguments)]
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "posix":
        os.execv(words[0], words)  # noqa: S606  no shell
    import subprocess  # noqa: PLC0415  only without `execv`

    sys.exit(subprocess.run(words, check=False).returncode)  # noqa: S603  the user's own command


def without_packages(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without ``--with`` and ``--with-editable``."""
    words: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if word in _OPTIONS:
            next(rest, None)
        elif word.partition("=")[0] not in _OPTIONS:
            words.append(word)
    return words


def read_file(path: Path) -> dict[str, str]:
    """Return the variables of a file.

    Raises:
        CommandError: The file can't be read, or a line isn't NAME=VALUE.
    """
    try:
        return read_env_file(path)
    except EnvFileError as exc:
        fix = "Check the file's path." if isinstance(exc.__cause__, OSError) else "Correct it, or make it a # comment."
        raise CommandError(str(exc), fix=fix) from exc


def use_file(path: Path | None) -> None:
    """Set the variables in a file for this program, except variables that are already set.

    Raises:
        CommandError: The file can't be read.
    """
    if path is not None:
        for name, value in read_file(path).items():
            os.environ.setdefault(name, value)
