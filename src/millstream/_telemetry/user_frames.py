"""Tracebacks of the person's own code: without the frames of Millstream, of Python and of installed packages.

Somebody whose function failed looks for the line in their own file. Everything between the socket and that line is
noise to them, and so is what a library did after their line called it.
"""

import inspect
import sysconfig
import traceback
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import cast

from millstream._telemetry.logs import MAX_TEXT

PROGRAM = Path(__file__).parents[1]
"""Where Millstream's own code is."""
_MAX_CHAIN = 64
"""Exceptions that caused each other, or that are members of a group; more are left as they are."""


def user_frames(exc: BaseException) -> list[traceback.FrameSummary]:
    """Return the frames of the person's own code; all of them where none is left, since the person's file may lie
    anywhere.
    """
    shown = [each for each in traceback.extract_tb(exc.__traceback__) if not each.filename.startswith("<frozen")]
    own = [each for each in shown if not is_foreign(each.filename)]
    return own if own or isinstance(exc, SyntaxError) else shown  # such an error says by itself where it is


def with_user_frames(exc: BaseException, *, told: tuple[type[BaseException], ...] = ()) -> BaseException:
    """Return the same exception, with the tracebacks of it and of everything that led to it cut down to the person's
    frames.

    One of which no frame is left keeps those that aren't Millstream's, else all; none, if it is of a kind in `told`,
    whose texts say everything.
    """
    seen: set[int] = set()
    for each in _chain(exc, seen):
        each.__traceback__ = _cut(each.__traceback__, whole=not isinstance(each, told))
    return exc


def advise(exc: BaseException) -> None:
    """Say what to do about an error that Python words for experts: a coroutine was used as if it were its result."""
    if not isinstance(exc, AttributeError | TypeError) or "'coroutine'" not in str(exc):
        return
    forgotten = getattr(exc, "obj", None)
    if inspect.iscoroutine(forgotten):
        forgotten.close()  # else Python warns a second time, and of a line of ours
    exc.add_note("A coroutine is what an `async def` function gives before it has run: write `await` before the call.")


def shown_error(exc: BaseException) -> str:
    """Return the whole text of an error as a person reads it in development: the person's frames, then what was
    raised.
    """
    text = "".join(traceback.format_exception(with_user_frames(exc))).rstrip()
    return text if len(text) <= MAX_TEXT else f"…{text[-MAX_TEXT:]}"


@lru_cache(maxsize=1024)
def is_foreign(filename: str) -> bool:
    """Return whether a file belongs to Python, to an installed package or to Millstream, or is code that one of them
    made.
    """
    if filename.startswith("<frozen") or filename == "<string>":  # the `__init__` of a dataclass is of no file
        return True
    paths = sysconfig.get_paths()
    path = Path(filename)
    return any(path.is_relative_to(each) for each in (paths["stdlib"], paths["purelib"], paths["platlib"], PROGRAM))


def _chain(exc: BaseException, seen: set[int]) -> Iterator[BaseException]:
    waiting: list[BaseException | None] = [exc]
    while waiting and len(seen) < _MAX_CHAIN:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, None if each.__suppress_context__ else each.__context__]
        if isinstance(each, BaseExceptionGroup):
            waiting += cast("BaseExceptionGroup[BaseException]", each).exceptions


def _cut(trace: TracebackType | None, *, whole: bool) -> TracebackType | None:
    links: list[TracebackType] = []
    while trace is not None:
        links.append(trace)
        trace = trace.tb_next
    kept = [each for each in links if not is_foreign(_file(each.tb_frame))]
    kept = kept or [each for each in links if not Path(_file(each.tb_frame)).is_relative_to(PROGRAM)]
    kept = kept or (links if whole else [])
    cut: TracebackType | None = None
    for each in reversed(kept):
        cut = TracebackType(cut, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return cut


def _file(frame: FrameType) -> str:
    return frame.f_code.co_filename
