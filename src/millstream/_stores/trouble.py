"""What the log has about work on a store that is done again and again: a line when it begins to fail, and one when it's
over. A store may be away for hours, and says the same each time.
"""

import logging
from types import TracebackType
from typing import Self

from millstream._protocol.errors import LocalError


class Trouble:
    """Takes what a store raises inside a ``with`` block, and says so once.

    Example:
        >>> trouble = Trouble(logger, "The list can't be read, which is tried again", "The list is read again.")
        >>> with trouble:
        ...     await read()
        >>> if trouble.lasts:
        ...     await asyncio.sleep(PAUSE)
    """

    __slots__ = ("_logger", "_over", "_what", "lasts")

    def __init__(self, logger: logging.Logger, what: str, over: str) -> None:
        self._logger = logger
        self._what = what
        self._over = over
        self.lasts = False
        """The last try has failed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if failure is None:
            if self.lasts:
                self._logger.warning("%s", self._over)
            self.lasts = False
            return False
        if not isinstance(failure, LocalError | OSError):
            return False
        if not self.lasts:
            why = (isinstance(failure, OSError) and failure.strerror) or failure
            self._logger.warning("%s: %s", self._what, why)
        self.lasts = True
        return True
