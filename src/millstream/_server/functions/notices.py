"""Warnings about a function, which point to the line where it is written."""

import warnings
from types import CodeType


def notice(text: str, code: CodeType | None) -> None:
    """Warn whoever wrote a function.

    Args:
        text: what is wrong with it, and what to do.
        code: of the function; without one the warning points to nothing.
    """
    if code is None:
        warnings.warn(text, stacklevel=3)
    else:
        warnings.warn_explicit(text, UserWarning, code.co_filename, code.co_firstlineno)
