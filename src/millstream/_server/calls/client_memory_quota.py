"""What clients accumulate that lasts as long as their connections: sessions of connections, URIs of subscriptions."""

from typing import Final

from millstream._http.budget import ByteBudget
from millstream._protocol.errors import ProtocolError
from millstream._server.calls.sessions import FULL, OTHERS, YOURS, Session

MAX_HELD: Final = 128 * 1024 * 1024
"""Bytes in one worker; half of them for one caller."""
_RELEASED: Final = -1


class ClientMemoryQuota:
    """So many bytes for all clients of one running server. What doesn't grow is never refused."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes: ByteBudget = ByteBudget(MAX_HELD)

    def take(self, owner: str, size: int) -> None:
        """Count bytes of a caller, until `give`.

        Raises:
            ProtocolError: FULL, HTTP 503: the caller has its share, or all of the room is taken.
        """
        if not self.bytes.take(owner, size):
            is_full = self.bytes.held > self.bytes.most
            self.bytes.give(owner, size)
            raise ProtocolError(FULL, OTHERS if is_full else YOURS, status=503)

    def give(self, owner: str, size: int) -> None:
        """The bytes are gone."""
        self.bytes.give(owner, size)

    def resize(self, session: Session, size: int) -> None:
        """The session of a connection has a record of so many bytes.

        Raises:
            ProtocolError: as `take`.
        """
        if session.held == _RELEASED:
            return
        if size > session.held:
            self.take(session.owner, size - session.held)
        else:
            self.give(session.owner, session.held - size)
        session.held = size

    def release(self, session: Session) -> None:
        """Its connection has ended. Whatever a call still adds to the session is nobody's."""
        self.resize(session, 0)
        session.held = _RELEASED
