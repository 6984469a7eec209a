"""A RabbitMQ server for tests, with its own `epmd`, on free local ports."""

import asyncio
import atexit
import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from nats_parts import free_ports
from programs import MISSING
from redis_parts import until

_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


class RabbitServer:
    """One node."""

    def __init__(self) -> None:
        self._temporary = TemporaryDirectory(prefix="millstream-")
        folder = Path(self._temporary.name)
        self.port, names, nodes = free_ports(3)
        (folder / "plugins").write_text("[].\n")
        (folder / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{self.port}\nlog.console = true\n")
        environment = os.environ | {
            "ERL_EPMD_PORT": str(names),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "HOME": str(folder),
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(nodes),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 -kernel inet_dist_use_interface {127,0,0,1}",
        }
        with (folder / "log").open("wb") as log:
            self._processes = [
                subprocess.Popen(["epmd", "-port", str(names)], stdout=log, stderr=log, env=environment),
                subprocess.Popen([_SERVER], stdout=log, stderr=log, env=environment, start_new_session=True),
            ]

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    async def wait(self) -> None:
        """Return once it accepts connections."""

        async def listens() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                return False
            writer.close()
            return True

        await until(listens)

    def close(self) -> None:
        """Stop it, and delete its data."""
        os.killpg(self._processes[1].pid, 9)
        for each in self._processes:
            each.kill()
            each.wait()
        self._temporary.cleanup()


_shared: list[RabbitServer] = []


def shared_rabbit() -> RabbitServer:
    """Return the node for all tests of this process."""
    if not _SERVER.exists() or shutil.which("epmd") is None:
        pytest.skip(f"{MISSING}rabbitmq-server")
    if not _shared:
        _shared.append(RabbitServer())
        atexit.register(_shared[0].close)
    return _shared[0]
