"""Servers on uvicorn keep idle connections for longer than a machine stands still. By default it closes them after five
seconds, also one on which a request has come meanwhile, and the client can't know whether it was seen.
"""

import functools
from typing import Any

import uvicorn


def install() -> None:
    """For every server that this process starts."""
    patient: Any = functools.partial(uvicorn.Config, timeout_keep_alive=3600)
    uvicorn.Config = patient  # type: ignore[misc]
