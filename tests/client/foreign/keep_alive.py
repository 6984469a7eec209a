"""Raise the keep-alive timeout of uvicorn, so a frozen machine doesn't close connections.

By default, uvicorn closes idle connections after five seconds, even if a request has just arrived on one.
"""

import functools
from typing import Any

import uvicorn


def install() -> None:
    """Apply the timeout to all servers of this process."""
    patient: Any = functools.partial(uvicorn.Config, timeout_keep_alive=3600)
    uvicorn.Config = patient  # type: ignore[misc]
