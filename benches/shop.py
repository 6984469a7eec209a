"""The backends of the shop's servers: Redis with its data, and the HTTP API, both on the load generator's core.

The layout is that of TM Dev Lab's second benchmark of MCP servers: three tools, 50 users, and for each tool an
`initialize`, a notification, and the call; after the three, the same for `tools/list`.
"""

import http.client
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import redis

from benches.processes import LOAD_CORE, ROOT, BenchError, free_port, pinned
from benches.wire import USERS

PROGRAM = ROOT / ".bench" / "go" / "api"
PRODUCTS = 100_000
_SECONDS = 20.0


class Backend:
    """Redis and an API for all servers of a run."""

    def __init__(self, folder: Path) -> None:
        self.redis, self.api = free_port(), free_port()
        if shutil.which("redis-server") is None:
            raise BenchError("redis-server isn't installed")
        if not PROGRAM.exists():
            raise BenchError("the HTTP API is missing: Go isn't installed or couldn't build it")
        options = ["--port", str(self.redis), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        with (folder / "backend.log").open("wb") as log:
            self._processes = [
                subprocess.Popen(
                    pinned(LOAD_CORE, command), stdout=log, stderr=log, env=os.environ | {"GOMAXPROCS": "1"}
                )
                for command in (["redis-server", *options], [str(PROGRAM), str(self.api)])
            ]
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with the addresses, for the servers."""
        return {"BENCH_REDIS": f"redis://127.0.0.1:{self.redis}", "BENCH_API": f"http://127.0.0.1:{self.api}"}

    def fill(self) -> None:
        """Reset the data in Redis."""
        with redis.Redis(port=self.redis) as client:
            client.flushall()
            pipe = client.pipeline(transaction=False)
            for number in range(1, USERS + 1):
                user = f"user-{number:05d}"
                items = [{"product_id": number * 7 + at, "quantity": 1 + at} for at in range(3)]
                pipe.hset(
                    f"bench:cart:{user}", mapping={"user_id": user, "items": json.dumps(items), "total": "129.50"}
                )
                orders = [json.dumps({"user_id": user, "items": items, "ts": 1_740_000_000 + at}) for at in range(20)]
                pipe.rpush(f"bench:history:{user}", *orders)
            for first in range(1, PRODUCTS + 1, 5_000):
                pipe.zadd(
                    "bench:popular", {f"product:{each}": each * 7 % 10_000 for each in range(first, first + 5_000)}
                )
            pipe.zadd("bench:popular", {"product:42": 1e9})  # the set is ordered, and the item's rank must not change
            pipe.execute()

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(5)

    def _wait(self) -> None:
        end = time.monotonic() + _SECONDS
        while True:
            try:
                self.fill()
                connection = http.client.HTTPConnection("127.0.0.1", self.api, timeout=5)
                connection.request("GET", "/products/1")
                connection.getresponse().read()
            except (OSError, redis.RedisError) as exc:
                if time.monotonic() > end:
                    raise BenchError(f"Redis or the HTTP API did not start: {exc}") from exc
                time.sleep(0.02)
            else:
                connection.close()
                return
