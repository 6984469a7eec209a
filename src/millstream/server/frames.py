"""The part of a traceback that is about the user's program: without the frames of ours that lead there."""

import sysconfig
from pathlib import Path
from types import TracebackType

from millstream.protocol.errors import LocalError
from millstream.server.functions.pydantic_types import NotJson

_OURS = str(Path(__file__).parents[1])
_STDLIB = sysconfig.get_path("stdlib")
_PACKAGES = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))

_TOLD = (NotJson, LocalError, ValueError)
"""What our checks raise: the text says everything, and where in our code it was found does not matter."""

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


def users_view(exc: BaseException) -> ExcInfo:
    """What to log about an exception: it and the frames from the user's function on.

    Where none of them is the user's, our own stay: the fault is probably ours. Not so for what our checks raise.
    """
    frames: list[TracebackType] = []
    frame = exc.__traceback__
    while frame is not None:
        if frames or not _is_ours(frame.tb_frame.f_code.co_filename):
            frames.append(frame)
        frame = frame.tb_next
    if isinstance(exc, _TOLD):
        while frames and frames[-1].tb_frame.f_code.co_filename.startswith(_OURS):
            frames.pop()
        made: TracebackType | None = None
        for each in reversed(frames):
            made = TracebackType(made, each.tb_frame, each.tb_lasti, each.tb_lineno)
        return type(exc), exc, made
    return type(exc), exc, frames[0] if frames else exc.__traceback__


def _is_ours(filename: str) -> bool:
    if filename.startswith(_PACKAGES):
        return filename.startswith(_OURS)
    return filename.startswith((_OURS, _STDLIB))
