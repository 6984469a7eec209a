"""The client's log. In a program with several connections, such as a gateway, its lines name the server."""

import logging
from contextvars import ContextVar

SERVER: ContextVar[str] = ContextVar("millstream_server", default="")
"""The program's name for the server that a task talks to. Tasks that this one starts have it, too."""


def client_logger(name: str) -> logging.Logger:
    """Return a logger whose records have the field `upstream`, if `SERVER` is set."""
    logger = logging.getLogger(name)
    logger.addFilter(_add_server)
    return logger


def _add_server(record: logging.LogRecord) -> bool:
    if name := SERVER.get():
        record.upstream = name
    return True
