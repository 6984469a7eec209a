"""Errors that tests raise in worker processes, which import this module by its name."""

import threading
from typing import Never

from millstream import ToolError


class OutOfStock(ToolError):
    """A program's own error, with arguments of its own."""

    def __init__(self, isbn: str, *, left: int) -> None:
        super().__init__(f"Only {left} copies of {isbn} are left.")
        self.left = left


def raise_error(error: BaseException) -> Never:
    """Raise an error that another process created."""
    raise error


def raise_own_error() -> Never:
    """Raise an error that this process created."""
    raise OutOfStock("978", left=2)


def raise_lock() -> Never:
    """Raise an error with an attribute that can't be pickled."""
    error = OutOfStock("978", left=2)
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    raise error
