"""A Kafka server for tests, one process that's its own controller, on free local ports."""

import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError

from nats_parts import free_ports
from processes import ROOT
from programs import MISSING, find_program
from redis_parts import until

_FOLDER = ROOT / ".bench" / "kafka"
_CONFIGURATION = """
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
log.dirs={folder}/data
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
group.initial.rebalance.delay.ms=0
"""


class KafkaServer:
    """One broker."""

    def __init__(self, *topics: str) -> None:
        java = find_program("java")
        if java is None or not (_FOLDER / ".ready").exists():
            pytest.skip(f"{MISSING}kafka")
        self._topics = topics
        self._temporary = TemporaryDirectory(prefix="millstream-")
        folder = Path(self._temporary.name)
        port, controller = free_ports(2)
        self.address = f"127.0.0.1:{port}"
        path = folder / "server.properties"
        path.write_text(_CONFIGURATION.format(port=port, controller=controller, folder=folder))
        start = [java, "-Xmx256m", "-cp", f"{_FOLDER}/*"]
        formats = ["format", "--standalone", "--cluster-id", "MkU3OEVBNTcwNTJENDM2Qk", "--config", str(path)]
        with (folder / "log").open("wb") as log:
            subprocess.run([*start, "kafka.tools.StorageTool", *formats], stdout=log, stderr=log, check=True)
            self._process = subprocess.Popen(
                [*start, "kafka.Kafka", str(path)], stdout=log, stderr=log, cwd=folder, env=os.environ
            )

    async def wait(self) -> None:
        """Return once it has the topics, with two partitions each."""

        async def creates() -> bool:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.address)
            try:
                await admin.start()
                await admin.create_topics([NewTopic(each, 2, 1) for each in self._topics])
            except KafkaConnectionError:
                return False
            finally:
                await admin.close()
            return True

        await until(creates)

    def close(self) -> None:
        """Stop it, and delete its data."""
        self._process.kill()
        self._process.wait()
        self._temporary.cleanup()
