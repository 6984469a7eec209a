"""A quota for memory that clients use as long as they're connected: session records and subscribed URIs."""

from millstream._protocol.errors import ProtocolError
from millstream._protocol.principal import Share
from millstream._server.calls.sessions import FULL, OTHERS, YOURS, Session

MAX_HELD = 128 * 1024 * 1024
"""Maximum bytes per worker. A single caller can use half of them."""
_RELEASED = -1


class ClientMemoryQuota:
    """The number of bytes that all clients of a server use. A change that needs no more bytes is never refused."""

    def __init__(self) -> None:
        self.bytes: Share = Share(MAX_HELD)

    def take(self, owner: str, size: int) -> None:
        """Count bytes for a caller, until `give`.

        Raises:
            ProtocolError: FULL, HTTP 503: the caller's share or the whole quota is used up.
        """
        if not self.bytes.take(owner, size):
            is_full = self.bytes.used + size > self.bytes.maximum
            raise ProtocolError(FULL, OTHERS if is_full else YOURS, status=503)

    def give(self, owner: str, size: int) -> None:
        """Release bytes of a caller."""
        self.bytes.leave(owner, size)

    def resize(self, session: Session, size: int) -> None:
        """Set the record size of a connection's session.

        Raises:
            ProtocolError: As for `take`.
        """
        if session.charged_bytes == _RELEASED:
            return
        if size > session.charged_bytes:
            self.take(session.owner, size - session.charged_bytes)
        else:
            self.give(session.owner, session.charged_bytes - size)
        session.charged_bytes = size

    def release(self, session: Session) -> None:
        """Free the bytes of a session whose connection has ended. Later changes of the session aren't counted."""
        self.resize(session, 0)
        session.charged_bytes = _RELEASED
