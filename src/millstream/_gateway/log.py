"""The gateway's log."""

import logging

logger = logging.getLogger("millstream.gateway")
