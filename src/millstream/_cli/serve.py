"""Serving over HTTP for the commands `run`, `dev`, and `gateway`, without the command-line library."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, cast

from millstream._app import Server
from millstream._app.server_process.errors import CommandError, set_up_logs
from millstream._app.server_process.facts import Facts
from millstream._app.server_process.listen_sockets import chosen_address
from millstream._app.server_process.over_http import is_supervisor, serve_with_panel
from millstream._app.server_process.panel import show
from millstream._app.server_process.workers.slot import claim
from millstream._app.server_process.workers.supervisor import supervise
from millstream._app.server_process.workers.worker import serve_worker
from millstream._cli.from_source import ignore_compiled
from millstream._cli.load import check_target, folder_of, load
from millstream._config import Settings, VariableError


def serve_http(  # noqa: PLR0913  the options of commands
    target: str,
    host: str | None,
    port: int | None,
    /,
    *,
    descriptor: int | None = None,
    workers: int = 1,
    reload: bool = False,
    told: Callable[[Facts], None] = show,
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
        told: Called when it serves.
        serve: Parts to serve, instead of those of the program.
        store: URL of the store.
        web: Whether to serve the pages, too.
        settings: Settings by name; None leaves a setting unchanged.

    Raises:
        CommandError: The server can't be found, or the address or an option is invalid.
    """
    host, port = chosen_address(host, port)
    place = claim()
    if place is None and is_supervisor(workers, reload=reload):
        check_target(target)
        set_up_logs(_settings(), str(settings.get("log_level") or ""))
        watched = folder_of(target) if reload else None
        supervise(host, port, workers, descriptor=descriptor, watched=watched, told=told)
        return
    with place.report_errors() if place is not None else nullcontext():
        if place is not None and reload:
            ignore_compiled(folder_of(target))
        server = load(target)
        configure(server, serve=serve, store=store, web=web, settings=settings)
        set_up_logs(server.settings)
    if place is not None:
        serve_worker(place, server)
    else:
        serve_with_panel(server, host, port, descriptor=descriptor, told=told)


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
        raise CommandError(str(exc), fix="Use --serve all, or a list such as --serve hub,rest") from exc


def check_inspected(urls: object) -> None:
    """Check the URLs for the inspector before anything starts.

    Raises:
        CommandError: A URL is invalid, or isn't http or https.
    """
    if not urls:
        return
    from millstream._http.client.url import parse  # noqa: PLC0415
    from millstream.client._errors import TargetError  # noqa: PLC0415  rarely needed

    for each in cast("tuple[str, ...]", urls):
        try:
            supported = parse(each).scheme in ("http", "https")
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
