"""Why a call didn't reach its upstream, although the upstream hasn't failed."""

from millstream._server.pool import Pool
from millstream.client import ClientError, ConnectFailed


class InUse(ConnectFailed):
    """The caller's share of processes or connections is in use. This isn't a failure of the upstream."""

    def __init__(
        self,
        places: Pool,
        owner: str,
        what: str = "its {} connections",
        *,
        remedy: str = "",
        advice: str = "Try again when one of your calls has ended.",
    ) -> None:
        holding = f"{places.count(owner) or 'none'} of {what.format(places.maximum)}"
        super().__init__(f"The upstream is busy: the caller is using {holding}.", remedy=remedy)
        self.holding: str = holding
        """The caller's current number and the maximum, as text."""
        self.advice: str = advice
        """What the caller can do."""


class NoCredentials(ClientError):
    """A request has no credentials at the moment. This isn't a failure of the upstream."""


class ClientRejected(NoCredentials):
    """The authorization server rejects the client that the operator configured for the gateway."""


class EndedHere(ClientError):
    """This gateway has ended the caller's session at the upstream. The next call uses another one."""


class EndedThere(EndedHere):
    """As `EndedHere`, but the upstream has ended the session, or lost it."""
