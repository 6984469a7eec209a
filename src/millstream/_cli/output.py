"""Standard output that is closed, on a full disk, a pipe without a reader, or limited by its encoding."""

import errno
import os
import sys
from contextlib import suppress

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def open_streams() -> None:
    """Open streams that are closed, and print ``?`` for characters outside of the encoding."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")


def close_stderr() -> None:
    """Close standard error if the output's reader has exited, as in ``millstream list … | head``."""
    with suppress(OSError):  # standard error may be the broken pipe
        sys.stderr.close()


def status_without_output(exc: OSError) -> int | None:
    """Report a failed write to standard output, and return the exit status, or None for other errors."""
    broken = isinstance(exc, BrokenPipeError)
    if exc.filename is not None or not (broken or exc.errno in _NO_ROOM):
        return None
    # Buffered output must not be written again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if broken:  # `millstream list … | head`
        return 0
    sys.stderr.write(f"Error: The output can't be written: {exc.strerror}.\n")
    return 1
