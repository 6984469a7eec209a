"""The status message of a task, from its function's notifications."""

from typing import Any

import msgspec
from msgspec import Struct

_MAX_TEXT = 1_000
"""Maximum characters of a status message."""


class _Params(Struct, frozen=True, gc=False):
    progress: float = 0.0
    total: float | None = None
    message: str | None = None
    data: Any = None


class _Notification(Struct, gc=False):
    method: str = ""
    params: _Params = _Params()


_decode = msgspec.json.Decoder(_Notification).decode


def status_text(message: bytes) -> str:
    """Return the status message of a notification; empty if it has none."""
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
