"""The authorization hook, with error handling.

Only callers that can subscribe to a channel can see its presence, so ``$presence.X`` is checked as ``X``. A hook that
raises denies access and doesn't affect other subscriptions.
"""

import logging

from millstream._protocol.principal import Principal
from millstream.hub._channels import PRESENCE
from millstream.hub._subscriber import Authorize

_logger = logging.getLogger("millstream.hub")


class SafeAuthorize:
    """The authorization hook of one hub. It's an `Authorize` itself."""

    def __init__(self, authorize: Authorize) -> None:
        self._authorize = authorize
        self._logged: set[type[Exception]] = set()
        """Types of logged errors. Each is logged once, because peers control how often the hook runs."""

    def __call__(self, principal: Principal | None, action: str, channel: str) -> bool:
        try:
            return self._authorize(principal, action, channel.removeprefix(PRESENCE))
        except Exception as exc:
            if type(exc) not in self._logged:
                self._logged.add(type(exc))
                _logger.exception(
                    "The authorization hook failed, so access was denied. Later failures of this kind aren't logged."
                )
            return False
