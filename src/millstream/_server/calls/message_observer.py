"""What observers hear of a message that doesn't become a call."""

from typing import Protocol

from millstream._protocol.handshake import Handshake
from millstream._protocol.principal import Principal
from millstream._server.calls.sessions import Session

SESSION_OVER = "$session over"
"""What `ObserveMessage` gets in place of a method when a session ends."""


class ObserveMessage(Protocol):
    """Hears of every message that isn't a call: a handshake, a notification, an answer, a refusal, and what is said to
    the hub. The dispatcher's observer hears of calls.
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
        opening: Handshake | None = None,
    ) -> None:
        """Take note of one message.

        Args:
            method: of the specification, ``response`` for an answer, ``hub/publish`` and the like; empty when it could
                not be read.
            transport: what carried it.
            session: of the message, with client and revision.
            status: empty for success, else what went wrong: the JSON-RPC code, HTTP status or kind of problem of the
                answer. One of few: it is a label.
            target: the tool or channel it is about.
            principal: who sent it.
            opening: what `initialize` settled.
        """


def ignore_message(*_: object, **__: object) -> None:
    """The `ObserveMessage` of a server that nobody observes."""
