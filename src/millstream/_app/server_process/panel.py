"""Start-up messages: a panel on a terminal, or else one log record with the same facts.

Written to standard error like all logs.
"""

import logging
import sys
from typing import TextIO

import msgspec

from millstream._app.server_process.facts import Facts

logger = logging.getLogger("millstream")


def show(told: Facts, *, stream: TextIO | None = None) -> None:
    """Write the facts to standard error: a panel on a terminal, or else one log record (and one for the warning)."""
    target = stream or sys.stderr
    if target.isatty():
        from millstream._app.server_process.panel_layout import Console, draw  # noqa: PLC0415  only a terminal needs the drawing library

        draw(told, Console(file=target, highlight=False))
        return
    fields = {
        key: value for key, value in msgspec.structs.asdict(told).items() if key not in ("call", "name", "warning")
    }
    if not told.workers:
        del fields["workers"]
    logger.info("%s is serving on %s", told.name, told.url, extra={"server": told.name, **fields})
    if told.warning:
        logger.warning(told.warning)
