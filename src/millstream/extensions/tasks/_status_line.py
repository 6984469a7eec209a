"""The line of a task: what the function reports becomes the status message of the task."""

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

_MAX_TEXT = 1_000
"""Characters of a status message."""


class _Params(Struct, frozen=True, gc=False):
    progress: float = 0.0
    total: float | None = None
    message: str | None = None
    data: Any = None


class _Notification(Struct, gc=False):
    method: str = ""
    params: _Params = _Params()


_decode = msgspec.json.Decoder(_Notification).decode


class StatusLine:
    """`Line` of a call that runs as a task. No client reads it."""

    asks: bool = False

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report

    async def send(self, message: bytes) -> None:
        """Report progress and log messages. The specification has no place for anything else."""
        if text := status_text(message):
            self._report(text)

    def push(self, message: bytes) -> bool:
        """Discard the message: what isn't sent by the function isn't about the task."""
        return True

    async def interrupt(self, retry_ms: int | None) -> bool:
        """Return False: there's no connection to close."""
        return False

    async def keep_alive(self) -> None:
        """Do nothing: clients poll."""

    def on_close(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Never call back: the line ends with the task."""
        return lambda: None


def status_text(message: bytes) -> str:
    """Return the status message for a notification of a function; empty if it has none."""
    sent = _decode(message)
    params = sent.params
    if sent.method == "notifications/message":
        text = params.data if isinstance(params.data, str) else msgspec.json.encode(params.data).decode()
    elif sent.method == "notifications/progress":
        text = params.message or ""
        if params.total:
            share = f"{params.progress:g} of {params.total:g}"
            text = f"{text} ({share})" if text else share
    else:
        return ""
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
