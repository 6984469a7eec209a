"""Observation of messages that don't become calls."""

from typing import Protocol

from millstream._protocol.handshake import Handshake
from millstream._protocol.principal import Principal
from millstream._server.calls.sessions import Session

SESSION_OVER = "$session over"
"""The method name passed to `ObserveMessage` when a session ends."""


class ObserveMessage(Protocol):
    """An observer of messages that aren't calls: handshakes, notifications, answers, refusals, and hub messages. The
    dispatcher's observer receives calls.
    """

    def __call__(
        self,
        method: str,
        transport: str,
        session: Session | None = None,
        status: str = "",
        *,
        target: str = "",
        principal: Principal | None = None,
        address: str = "",
        opening: Handshake | None = None,
    ) -> None:
        """Record one message.

        Args:
            method: The method, ``response`` for an answer, or a name such as ``hub/publish``. Empty if it couldn't be
                read.
            transport: The transport.
            session: The session, with client and revision.
            status: Empty for success, otherwise the JSON-RPC code, HTTP status, or problem type. It's a label, so the
                number of
                values is small.
            target: The tool or channel.
            principal: The sender.
            address: The sender's address, of a publication.
            opening: The result of `initialize`.
        """


def ignore_message(*_: object, **__: object) -> None:
    """Ignore a message. The `ObserveMessage` of a server without observers."""
