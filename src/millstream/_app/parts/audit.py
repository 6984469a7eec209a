"""The audit log: every call and publication with its outcome, and every rejected credential."""

import logging
import time
from pathlib import Path

from millstream._app.definition import Definition
from millstream._app.parts import OwnPart
from millstream._override import override
from millstream._parts import Host
from millstream._protocol.admission import target_name
from millstream._protocol.handshake import Handshake
from millstream._protocol.principal import Principal
from millstream._server.calls.call import Call
from millstream._server.calls.message_observer import ObserveMessage
from millstream._server.calls.sessions import Session
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
        host.services.note = self._observe_publications(host.services.note)
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
        failure = call.failure
        self._write(
            call.method,
            call.name or target_name(call.method, call.params),
            "ok" if failure is None else failure.outcome,
            "" if call.origin is None else call.origin.peer,
            call.principal,
            transport=call.transport,
            session="" if call.session is None else session_hash(call.session.id),
        )

    def _observe_publications(self, observe: ObserveMessage) -> ObserveMessage:
        """Return an observer of messages that writes publications, which aren't calls, and passes everything on."""

        def note(
            method: str, transport: str, session: Session | None = None, status: str = "", *, target: str = "",
            principal: Principal | None = None, address: str = "", opening: Handshake | None = None,
        ) -> None:  # fmt: skip
            if method == "hub/publish":
                self._write(method, target, status or "ok", address, principal, transport=transport)
            observe(
                method, transport, session, status, target=target, principal=principal, address=address, opening=opening
            )

        return note

    def _refuse(self, address: str) -> None:
        self._write("sign-in", "", "refused", address)

    def _write(
        self, method: str, target: str, outcome: str, address: str, principal: Principal | None = None, *,
        transport: str = "", session: str = "",
    ) -> None:  # fmt: skip
        entry = AuditEntry(
            stamp(time.time()), method, target, outcome,
            *(("", "", "") if principal is None else (principal.subject, principal.issuer, principal.client)),
            address, transport, session,
        )  # fmt: skip
        try:
            self._log.write(entry)
            self._failed = False
        except OSError as exc:
            if not self._failed:
                logger.error("The audit log can't be written: %s. Calls continue without it.", exc)
            self._failed = True
