"""The authorization hook, as the hub asks it.

Only those who may hear a channel learn who comes and goes on it, so of ``$presence.X`` the question is about
``X``. A hook that raises refuses: it must neither let anybody in nor end what others are served.
"""

import logging

from millstream._protocol.principal import Principal
from millstream.hub._channels import PRESENCE
from millstream.hub._subscriber import Authorize

_logger = logging.getLogger("millstream.hub")


class SafeAuthorize:
    """The hook of one hub; itself an `Authorize`."""

    __slots__ = ("_authorize", "_logged")

    def __init__(self, authorize: Authorize) -> None:
        self._authorize = authorize
        self._logged: set[type[Exception]] = set()
        """What was logged already: peers choose how often the hook is asked."""

    def __call__(self, principal: Principal | None, action: str, channel: str) -> bool:
        try:
            return self._authorize(principal, action, channel.removeprefix(PRESENCE))
        except Exception as exc:
            if type(exc) not in self._logged:
                self._logged.add(type(exc))
                _logger.exception("The authorization hook failed; that counts as a refusal. It is logged once.")
            return False
