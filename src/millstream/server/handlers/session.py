"""Methods that are about the session itself: `ping`, `logging/setLevel`."""

from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from millstream.protocol.errors import INVALID_PARAMS, ProtocolError
from millstream.protocol.messages import SetLevelRequestParams
from millstream.protocol.metadata import LOG_LEVELS
from millstream.server.calls.call import Call
from millstream.server.calls.services import Services
from millstream.server.dispatch import Handler
from millstream.server.handlers.params import read

_level_decoder = msgspec.json.Decoder(SetLevelRequestParams)


class SessionHandlers:
    """Handlers of the session methods."""

    __slots__ = ("_services",)

    def __init__(self, services: Services) -> None:
        self._services = services

    def table(self) -> Mapping[str, Handler]:
        """Handlers by method."""
        return {"ping": self.ping, "logging/setLevel": self.set_level}

    async def ping(self, call: Call) -> bytes:
        """Answer at once."""
        return b""

    async def set_level(self, call: Call) -> bytes:
        """Set the least severity of log messages for this session. Without a session, nothing is kept."""
        level = read(_level_decoder, call).level
        if level not in LOG_LEVELS:
            raise ProtocolError(INVALID_PARAMS, f"Unknown log level {level[:32]!r}: use one of {', '.join(LOG_LEVELS)}")
        if call.session is not None:
            await self._services.records.change(
                call.session, lambda record: None if record.log_level == level else replace(record, log_level=level)
            )
        return b""
