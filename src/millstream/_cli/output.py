"""Standard output as a command finds it: it may be closed, full, a pipe that nobody reads, or short of letters."""

import errno
import os
import sys
from contextlib import suppress

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def open_streams() -> None:
    """Have all three streams, and print a ? for a letter that the encoding of the output doesn't have."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # whoever started the command has closed it
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")


def nobody_reads() -> None:
    """The reader is gone (`millstream list … | head`), and hears of nothing else either."""
    with suppress(OSError):  # it may be this one that was read
        sys.stderr.close()


def status_without_output(exc: OSError) -> int | None:
    """The exit status if it was printing that failed, which the person hears of; None if it was something else."""
    broken = isinstance(exc, BrokenPipeError)
    if exc.filename is not None or not (broken or exc.errno in _NO_ROOM):
        return None
    # What's left must not be written again at the end of the process.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if broken:  # `millstream list … | head`
        return 0
    sys.stderr.write(f"Error: The output can't be written: {exc.strerror}.\n")
    return 1
