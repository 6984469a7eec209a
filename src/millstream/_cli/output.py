"""Standard output in unusual states: closed, full, a pipe without a reader, or with a limited encoding."""

import errno
import os
import sys
from contextlib import suppress

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def open_streams() -> None:
    """Open all three streams, and print a ? for characters that the output's encoding lacks."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the caller of the command has closed it
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")


def nobody_reads() -> None:
    """Close the input as well when the reader of the output is gone (`millstream list … | head`)."""
    with suppress(OSError):  # this one may be the broken pipe
        sys.stderr.close()


def status_without_output(exc: OSError) -> int | None:
    """Return the exit status if printing failed, after reporting it; None for other errors."""
    broken = isinstance(exc, BrokenPipeError)
    if exc.filename is not None or not (broken or exc.errno in _NO_ROOM):
        return None
    # Buffered output must not be written again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if broken:  # `millstream list … | head`
        return 0
    sys.stderr.write(f"Error: The output can't be written: {exc.strerror}.\n")
    return 1
