"""The session methods `ping` and `logging/setLevel`."""

from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from millstream._protocol.errors import INVALID_PARAMS, ProtocolError
from millstream._protocol.metadata import LOG_LEVELS
from millstream._protocol.notifications import SetLevelRequestParams
from millstream._server.calls.call import Call
from millstream._server.calls.services import Services
from millstream._server.dispatch import Handler
from millstream._server.handlers.params import read

_level_decoder = msgspec.json.Decoder(SetLevelRequestParams)


class SessionHandlers:
    """Handlers of the session methods."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def table(self) -> Mapping[str, Handler]:
        return {"ping": self.ping, "logging/setLevel": self.set_level}

    async def ping(self, call: Call) -> bytes:
        """Return an empty result."""
        return b""

    async def set_level(self, call: Call) -> bytes:
        """Set the minimum severity of log messages for this session. Without a session, do nothing."""
        level = read(_level_decoder, call).level
        if level not in LOG_LEVELS:
            raise ProtocolError(
                INVALID_PARAMS, f"Unknown log level {level[:32]!r}. Use one of {', '.join(LOG_LEVELS)}."
            )
        if call.session is not None:
            await self._services.records.change(
                call.session, lambda record: None if record.log_level == level else replace(record, log_level=level)
            )
        return b""
