"""The audit log: every call with its outcome, and every rejected credential."""

import logging
import time
from pathlib import Path

from millstream._app.definition import Definition
from millstream._app.parts import OwnPart
from millstream._override import override
from millstream._parts import Host
from millstream._protocol.admission import target_name
from millstream._server.calls.call import Call
from millstream._telemetry.audit import AuditEntry, AuditLog, stamp
from millstream._telemetry.messages import session_hash

logger = logging.getLogger("millstream")


class AuditPart(OwnPart):
    """Writes the audit log of one server. Failures to write are logged, and don't stop calls."""

    name: str = "audit"

    def __init__(self, definition: Definition) -> None:
        super().__init__(definition)
        self._failed = False
        self._log: AuditLog

    async def open(self, host: Host) -> None:
        """Open the file.

        Raises:
            LocalError: the file can't be used.
        """
        self._log = AuditLog(Path(self.definition.settings.audit_log))
        host.observe(self._observe)
        if host.guard is not None:
            host.guard.tell(self._refuse)

    @override
    async def close(self) -> None:
        """Write pending lines, and close the file."""
        try:
            self._log.sync()
        finally:
            self._log.close()

    def _observe(self, call: Call, seconds: float, answer: bytes) -> None:
        principal, failure = call.principal, call.failure
        self._write(
            AuditEntry(
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

    def _refuse(self, address: str) -> None:
        self._write(AuditEntry(stamp(time.time()), "sign-in", outcome="refused", address=address))

    def _write(self, entry: AuditEntry) -> None:
        try:
            self._log.write(entry)
            self._failed = False
        except OSError as exc:
            if not self._failed:
                logger.error("The audit log can't be written: %s. Calls continue without it.", exc)
            self._failed = True
