"""Registration with an agent of Consul, by its HTTP interface: while the server accepts new work, Consul lists it.

The check has a time to live, so a server that was killed is critical after that time, and is removed later.
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

from millstream._app.serving.errors import CommandError
from millstream._http.client.dial import allow_any, guard_dial
from millstream._http.client.errors import ClientError, TargetError
from millstream._http.client.fetch import request
from millstream._http.client.url import parse
from millstream._protocol.errors import LocalError
from millstream._protocol.jsonrpc import encode
from millstream._stores.health import LogOnce

TTL: Final = 30.0
"""Seconds after which Consul takes a server that says nothing for dead."""
_BEATS: Final = 3
"""Beats in that time."""
_OK: Final = 200
_REMOVED_AFTER: Final = "10m"
_SECONDS: Final = 5.0
_MAX_ANSWER: Final = 64 * 1024
_EVERY_ADDRESS: Final = frozenset({"", "0.0.0.0", "::"})  # noqa: S104  compared, not bound

logger = logging.getLogger("millstream")


class ConsulRegistration:
    """One server in the list of an agent."""

    def __init__(
        self, agent: str, *, name: str, host: str, port: int, meta: dict[str, str], serves: Callable[[], bool]
    ) -> None:
        """Nothing is sent before `open`.

        Args:
            agent: URL of the agent: ``http://127.0.0.1:8500``.
            name: of the server; of the service with hyphens for what a DNS name can't have.
            host: the address it listens on. Without one of its own, the service has the address of the agent.
            port: the port it listens on.
            meta: what clients read there.
            serves: whether the server is well, asked for each beat.

        Raises:
            CommandError: the URL is none.
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
        """Register in the background, and keep it so. An agent that's down doesn't stop the server."""
        self._task = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Deregister. Idempotent."""
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
            logger.warning("The server isn't deregistered from Consul, which removes it later: %s", status)

    async def _keep(self) -> None:
        trouble = LogOnce(
            logger, "The server can't register with Consul, which is tried again", "The server is registered again."
        )
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
        """Return the status of the answer.

        Raises:
            LocalError: there's none.
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
