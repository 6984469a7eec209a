"""A server with all tools that tests attack, served by `millstream run --workers 4 --store redis://…`.

It starts on first use, once for each test process, and is replaced after a failure. Callers need a key; `Wire` adds one
if the test doesn't. Each connection comes from another loopback address, so wrong keys of one test don't throttle
another, and any of the four workers may accept it. Two workers can also share a SQLite file, or NATS.
"""

import atexit
import itertools
import json
import os
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from http_peer import RunningServer
from millstream._http.server.guard import ServerState
from processes import ROOT, TEST_PATH, SharedServer, run_command

FOUR = "four"
"""Parameter value for this server, beside those for a server in the test's own process."""
ON_FOUR = pytest.param(FOUR, marks=pytest.mark.server)
SQLITE, NATS = "two on SQLite", "two on NATS"
"""Parameter values for servers with two workers on these stores."""
ON_OTHERS = [pytest.param(kind, marks=pytest.mark.server) for kind in (SQLITE, NATS)]
ALLOWED_ORIGIN = "https://friend.example"
"""An allowed Origin."""
ADMIN_KEY = "key-of-an-attacker-0123456789"
"""A key with all scopes."""
_PROGRAM = f"""
import sys
sys.path[:0] = [*{TEST_PATH.split(os.pathsep)!r}, {str(ROOT)!r}]
from four_workers import make_attacked_server
mcp = make_attacked_server({{keys!r}})
"""


def make_attacked_server(keys: str) -> Any:
    """Return the server of a worker: all attacked tools, with authentication by keys and tokens."""
    from auth_world import add_features, make_key_auth  # noqa: PLC0415  these import this module
    from bad_input.shop import stock  # noqa: PLC0415
    from millstream import Server, Settings, auth  # noqa: PLC0415
    from security.test_adv_07_cross_client_leak import add_echo  # noqa: PLC0415
    from socket_world import add_tools  # noqa: PLC0415

    said = json.loads(Path(keys).read_text("utf-8"))
    server = Server("four", version="1", serve="all", auth=[make_key_auth(), auth.keys(ADMIN_KEY), auth.jwt(**said)],
                    settings=Settings(allowed_origins=(ALLOWED_ORIGIN,)))  # fmt: skip
    add_features(server)
    stock(server)
    add_tools(server)
    add_echo(server)

    @server.route("/size", methods=["POST"], public=True)
    async def size(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    return server


class FourWorkers:
    """The process group, and the store that its workers share: Redis, a SQLite file, or NATS."""

    _servers: ClassVar[dict[str, "FourWorkers"]] = {}

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._redis: Any = None
        self._folder = tempfile.TemporaryDirectory(prefix="millstream-four-")
        folder = Path(self._folder.name)
        self._program = folder / "four.py"
        self._program.write_text(_PROGRAM.format(keys=str(folder / "keys.json")))
        self._keys = folder / "keys.json"
        self._shared = SharedServer(self._command, folder)

    def _command(self, port: int) -> list[str]:
        from issuer_world import AUDIENCE, ISSUER, key_set  # noqa: PLC0415  it makes keys

        self._keys.write_text(json.dumps({"issuer": ISSUER, "audience": AUDIENCE, "jwks": key_set()}))
        self._end_redis()
        if self._kind == FOUR:
            from redis_parts import RedisServer  # noqa: PLC0415  it needs hiredis

            self._redis = RedisServer()
            return run_command(str(self._program), port, "--workers", "4", "--store", self._redis.url)
        url = f"sqlite:///{self._folder.name}/{port}.db"
        if self._kind == NATS:
            from nats_parts import shared_url  # noqa: PLC0415  it needs nats-py

            url = shared_url()
        return run_command(str(self._program), port, "--workers", "2", "--store", url)

    def port(self) -> int:
        """The port of the server."""
        return self._shared.port()

    def close(self) -> None:
        """Stop the server."""
        self._shared.close()
        self._end_redis()
        self._folder.cleanup()

    def _end_redis(self) -> None:
        if self._redis is not None:
            self._redis.close()

    @classmethod
    def of_this_process(cls, kind: str) -> "FourWorkers":
        """Return the instance of this test process."""
        if kind not in cls._servers:
            cls._servers[kind] = cls(kind)
            atexit.register(cls._servers[kind].close)
        return cls._servers[kind]


_numbers = itertools.count(os.getpid() * 251)


def next_address() -> str:
    """Return an unused loopback address."""
    number = next(_numbers)
    return f"127.{1 + number // 62500 % 250}.{1 + number // 250 % 250}.{1 + number % 250}"


def connect_to_four(kind: str = FOUR) -> RunningServer:
    """Return access to the server. `drop_connections` ends the connections."""
    return RunningServer(ServerState(), FourWorkers.of_this_process(kind).port(), source_address=next_address)
