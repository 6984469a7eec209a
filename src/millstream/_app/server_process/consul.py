"""Registration with a Consul agent over its HTTP API, for as long as the server accepts new work.

The check has a time to live, so a killed server becomes critical after that time, and is removed later.
"""

import asyncio
import logging
import os
import random
import re
import socket
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

from millstream._app.server_process.errors import CommandError
from millstream._http.client.dial import allow_any, guard_dial
from millstream._http.client.errors import ClientError, TargetError
from millstream._http.client.fetch import request
from millstream._http.client.url import parse
from millstream._protocol.errors import LocalError
from millstream._protocol.jsonrpc import encode
from millstream._stores.health import LogOnce

TTL: Final = 30.0
"""Time to live of the check, in seconds."""
_BEATS: Final = 3
"""Heartbeats per time to live."""
_OK: Final = 200
_REMOVED_AFTER: Final = "10m"
_SECONDS: Final = 5.0
_MAX_ANSWER: Final = 64 * 1024
_EVERY_ADDRESS: Final = frozenset({"", "0.0.0.0", "::"})  # noqa: S104  compared, not bound

logger = logging.getLogger("millstream")


class ConsulRegistration:
    """The registration of one server with an agent."""

    def __init__(
        self, agent: str, *, name: str, host: str, port: int, meta: dict[str, str], serves: Callable[[], bool]
    ) -> None:
        """Create the registration; `open` sends it.

        Args:
            agent: URL of the agent: ``http://127.0.0.1:8500``.
            name: name of the server; the service name has hyphens for characters that DNS doesn't allow.
            host: address that it listens on. Without a specific one, the service has the address of the agent.
            port: port that it listens on.
            meta: metadata for clients.
            serves: returns whether the server is healthy, for each heartbeat.

        Raises:
            CommandError: the URL is invalid.
        """
        try:
            parse(agent)
        except TargetError as error:
            raise CommandError(
                f"{agent!r} isn't the URL of a Consul agent.", why=str(error), fix="--consul http://127.0.0.1:8500"
            ) from error
        self._base = agent.rstrip("/")
        service = re.sub("[^A-Za-z0-9-]+", "-", name).strip("-") or "millstream"
        self._id = f"{service}-{socket.gethostname()}-{port}"
        self._serves = serves
        self._entry: dict[str, Any] = {
            "ID": self._id,
            "Name": service,
            "Port": port,
            "Tags": ["mcp"],
            "Meta": meta,
            "Check": {
                "Name": "Millstream accepts new work",
                "TTL": f"{TTL:g}s",
                "Status": "passing",
                "DeregisterCriticalServiceAfter": _REMOVED_AFTER,
            },
        }
        if host not in _EVERY_ADDRESS:
            self._entry["Address"] = host
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Register in the background, and keep the registration alive. The server starts even if the agent is down."""
        self._task = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Deregister; may be called repeatedly."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        status: int | str
        try:
            status = await self._put(f"/v1/agent/service/deregister/{quote(self._id, safe='')}")
        except LocalError as error:
            status = str(error)
        if status != _OK:
            logger.warning("The server couldn't be deregistered from Consul, which removes it later: %s", status)

    async def _keep(self) -> None:
        trouble = LogOnce(logger, "The server can't register with Consul; retrying", "The server is registered again.")
        check = quote(f"service:{self._id}", safe="")
        registered = False
        while True:
            with trouble:
                if registered and self._serves():
                    # An agent that has lost its data doesn't know the check.
                    registered = await self._put(f"/v1/agent/check/pass/{check}") == _OK
                if not registered:
                    status = await self._put("/v1/agent/service/register", encode(self._entry))
                    if status != _OK:
                        raise LocalError(f"{self._base} answered {status}.")
                    registered = True
            await asyncio.sleep(random.uniform(0.8, 1.0) * TTL / _BEATS)  # noqa: S311  no secret

    async def _put(self, path: str, body: bytes = b"") -> int:
        """Return the status of the response.

        Raises:
            LocalError: there was no response.
        """
        headers = {"content-type": "application/json", "user-agent": "millstream"}
        if token := os.environ.get("CONSUL_HTTP_TOKEN"):
            headers["x-consul-token"] = token
        try:
            reply = await request(
                "PUT", parse(self._base + path), headers, body, dial=guard_dial(allow_any), max_body=_MAX_ANSWER,
                seconds=_SECONDS,
            )  # fmt: skip
        except (ClientError, OSError) as error:
            raise LocalError(f"{self._base} can't be reached: {str(error)[:200] or type(error).__name__}") from error
        return reply.status
