"""What goes into the audit log: every call with its outcome, and every credential that was refused."""

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from millstream._protocol.admission import target_name
from millstream._server.calls.call import Call
from millstream._server.dispatch import Dispatcher, Observe
from millstream._telemetry.audit import AuditLog, Entry, stamp
from millstream._telemetry.messages import session_hash

if TYPE_CHECKING:
    from millstream.auth._guard import Guard

logger = logging.getLogger("millstream")


class Audit:
    """Writes the log of one running server. A line that cannot be written is said in the log, and stops nobody."""

    __slots__ = ("_failed", "_log", "_next")

    def __init__(self, path: Path, following: Observe | None) -> None:
        """Open the file.

        Args:
            path: of the file.
            following: whoever else observes calls.

        Raises:
            LocalError: it cannot be used.
        """
        self._log = AuditLog(path)
        self._next = following
        self._failed = False

    @classmethod
    def open(cls, path: str, dispatcher: Dispatcher, guard: "Guard | None") -> "Audit":
        """Write what this dispatcher runs, after whoever observes it already, and what this guard refuses."""
        audit = cls(Path(path), dispatcher.observe)
        dispatcher.observe = audit.observe
        if guard is not None:
            guard.tell(audit.refused)
        return audit

    def observe(self, call: Call, seconds: float, answer: bytes) -> None:
        """A call is over."""
        if self._next is not None:
            self._next(call, seconds, answer)
        principal, failure = call.principal, call.failure
        self._write(
            Entry(
                stamp(time.time()),
                call.method,
                call.name or target_name(call.method, call.params),
                "ok" if failure is None else failure.outcome,
                "" if principal is None else principal.subject,
                "" if principal is None else principal.issuer,
                "" if principal is None else principal.client,
                "" if call.origin is None else call.origin.peer,
                call.transport,
                "" if call.session is None else session_hash(call.session.id),
            )
        )

    def refused(self, address: str) -> None:
        """A credential was presented that is not valid."""
        self._write(Entry(stamp(time.time()), "sign-in", outcome="refused", address=address))

    def _write(self, entry: Entry) -> None:
        try:
            self._log.write(entry)
            self._failed = False
        except OSError as exc:
            if not self._failed:
                logger.error("The audit log can't be written to: %s. Calls go on.", exc)
            self._failed = True

    def close(self) -> None:
        """The server stops."""
        try:
            self._log.sync()
        finally:
            self._log.close()
