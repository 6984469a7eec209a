"""Adapters that run the server objects of each library through its public interface."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib import import_module, metadata
from typing import Any, cast

from millstream.gateway._programs.classes import ProgramError, UnsupportedVersion, library_of
from millstream.gateway._programs.http import HttpSide
from millstream.gateway._programs.program import Program, ProgramServer
from millstream.gateway._programs.single_exchange import SingleExchange


def program_of(value: Any) -> Program:
    """Return a server object of another library as a target.

    Raises:
        ProgramError: it isn't one, or this version of its library isn't supported.
    """
    library = library_of(value)
    if not library:
        raise ProgramError(f"{type(value).__name__} isn't a server of mcp or fastmcp.")
    library_version = f"{library} {metadata.version(library)}"
    name = str(getattr(value, "name", "") or "") or "server"
    if library == "fastmcp":
        side, open = HttpSide(value.http_app()), partial(_fastmcp, value, library_version)
    elif isinstance(value, _low_level_class()):
        side, open = None, partial(_low_level, value)
    elif not hasattr(value, "streamable_http_app"):
        raise UnsupportedVersion(f"{library_version} is too old to run here. Update it.")
    else:
        side = HttpSide(value.streamable_http_app())
        open = partial(_low_level, _check_low_level(side.low_level, library_version))
    unknown = side.unknown_middleware() if side is not None else []
    if unknown:
        raise ProgramError(
            f"{name} has its own HTTP middleware, which can't run here: {', '.join(unknown)}. Run its command "
            "instead, or serve it as before and use its URL: millstream run URL"
        )
    program = Program(name, library_version, open, side, handshake_only=not _has_per_request_era())
    low_level = value if side is None else side.low_level
    # fastmcp 3 and newer expose it only while their lifespan runs.
    options = None if low_level is None else low_level.create_initialization_options()
    program.version = str(options.server_version if options is not None else value.version or "")
    return program


def upstream_of(value: Any) -> Program:
    """Return a server object as an upstream of a server that may admit other callers than the program does.

    Raises:
        ProgramError: as `program_of`, or the program checks tokens.
    """
    program = value if isinstance(value, Program) else program_of(value)
    if program is not value and program.protected:
        raise ProgramError(
            f"{program.name} checks the tokens of its callers, but as an upstream it would serve every caller of "
            "this server. Serve it on its own with millstream run, or use its URL as the upstream."
        )
    return program


def _has_per_request_era() -> bool:
    return hasattr(_optional("mcp.server.runner"), "serve_dual_era_loop")


def _optional(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None


def _low_level_class() -> type:
    return cast("type", import_module("mcp.server.lowlevel").Server)


def _check_low_level(server: Any, library_version: str) -> Any:
    """Return `server` if it's a low-level server.

    Raises:
        ProgramError: it isn't one, because this version structures its application differently.
    """
    if not isinstance(server, _low_level_class()):
        raise UnsupportedVersion(
            f"{library_version} doesn't expose the server behind its HTTP application. Run the program as a command "
            'instead: millstream run "python FILE"'
        )
    return server


@asynccontextmanager
async def _low_level(server: Any) -> AsyncGenerator[ProgramServer]:
    """Run a low-level server as its own HTTP transport would: 1.x runs the lifespan per session, 2.x once."""
    options = server.create_initialization_options()
    if not _has_per_request_era():
        yield ProgramServer(lambda input, output: server.run(input, output, options))
        return
    serve = import_module("mcp.server.runner").serve_dual_era_loop
    async with server.lifespan(server) as state:
        try:
            single = SingleExchange(server, state)
        except (ImportError, AttributeError):  # sessions support this era as well
            single = None
        yield ProgramServer(
            lambda input, output: serve(server, input, output, lifespan_state=state, init_options=options), single
        )


@asynccontextmanager
async def _fastmcp(server: Any, library_version: str) -> AsyncGenerator[ProgramServer]:
    """Run a fastmcp server: its application's lifespan once, and its low-level server for each session."""
    application = server.http_app()  # its session manager runs only once
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(application.router.lifespan_context(application))
        # Known only now, because fastmcp 3 and newer create the session manager in the lifespan.
        yield await stack.enter_async_context(
            _low_level(_check_low_level(HttpSide(application).low_level, library_version))
        )
