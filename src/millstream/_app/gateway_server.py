"""A server from a configuration file: ``gateway.toml``, or the `mcpServers` of another application."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from millstream._app.server import Server
from millstream._config import Settings, VariableError
from millstream.gateway._config import ConfigError, GatewayConfig, load_file
from millstream.gateway._part import check

START_TIMEOUT = 30.0
"""Seconds that the start waits for the lists of a command or program, since there's nothing else to offer."""


def server_of_upstream(target: str | list[str]) -> Server:
    """Return a server that offers the items of one other server, under their own names.

    A command inherits the operator's environment variables, except for Millstream's.

    Args:
        target: A URL, a script, or a command as text or list.

    Raises:
        ValueError: The target isn't a server.
        VariableError: An environment variable is invalid.
    """
    name = _name_of(target)
    made = Server(name)
    made.definition.named = False
    if "://" in target:
        made.upstream(name, target, prefix="")
    else:
        made.upstream(name, target, prefix="", env=_variables(), start_timeout=START_TIMEOUT)
    check(made.definition.upstreams)
    return made


def _variables() -> dict[str, str]:
    ours = ("MILLSTREAM_", "MCP_SERVER_AUTH_KEY")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def _name_of(target: str | list[str]) -> str:
    """Return a name for a server: its host, or its program."""
    if isinstance(target, str) and "://" in target:
        return urlsplit(target).hostname or "server"
    words = [Path(word).name for word in (target.split() if isinstance(target, str) else target)]
    return next((word for word in words[1:] if not word.startswith("-")), words[0])


def server_of_file(path: Path) -> Server:
    """Return the server that a file describes, with its upstreams.

    Args:
        path: Path of a ``gateway.toml``, or of a JSON file with `mcpServers` or `servers`.

    Raises:
        ConfigError: The file can't be used; the message names the line.
        VariableError: An environment variable is invalid.
    """
    config = load_file(path)
    try:
        settings = Settings.load(**config.settings)
        made = Server(
            config.name,
            version=config.version,
            instructions=config.instructions,
            store=config.store,
            serve=config.serve,
            settings=settings,
        )
    except VariableError:
        raise
    except ValueError as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    made.definition.named = config.name != GatewayConfig().name
    if not config.upstreams:
        raise ConfigError(f"{path} has no upstreams. Add a table such as [upstreams.files].")
    for each in config.upstreams:
        made.definition.add_upstream(each)
    return made
