import asyncio
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from issuer_world import AUDIENCE, ISSUER, claims, key_set, token
from patience import WAIT
from workers_world import Client, call, run_workers

pytestmark = pytest.mark.server


async def test_limits_are_shared_by_four_processes(tmp_path: Path) -> None:
    with run_workers(tmp_path, 4, env=os.environ | {"MILLSTREAM_LIMIT_CALLS": "12/day"}) as served:

        async def one() -> tuple[int, int | None]:
            client = Client(served.port)
            reply = await client.request(call("who"))
            await client.close()
            return reply.status, reply.value if reply.status == 200 else None

        replies = [await one() for _ in range(6)] + list(await asyncio.gather(*(one() for _ in range(40))))
        assert Counter(status for status, _ in replies) == {200: 12, 429: 34}
        assert {pid for _, pid in replies if pid is not None} <= set(served.pids)


async def test_unreadable_messages_use_up_the_limit_of_four_processes(tmp_path: Path) -> None:
    with run_workers(tmp_path, 4, env=os.environ | {"MILLSTREAM_LIMIT_ADDRESS": "12/day"}) as served:

        async def status(message: bytes) -> int:
            client = Client(served.port)
            reply = await client.request(message)
            await client.close()
            return reply.status

        async with asyncio.timeout(WAIT):
            unreadable = [await status(b'{"jsonrpc')]
            while unreadable[-1] != 429:
                unreadable.append(await status(b'{"jsonrpc'))
        assert unreadable[:12] == [400] * 12
        assert await status(call("who")) == 429


TOKENS = """
import json, os
from millstream import Server, auth

keys = json.loads(os.environ["KEYS"])
issuer, audience = os.environ["ISSUER"], os.environ["AUDIENCE"]
mcp = Server("shop", auth=[auth.jwt(issuer=issuer, audience=audience, jwks=keys), auth.keys("k" * 16)])


@mcp.tool
async def who() -> int:
    return os.getpid()
"""


async def test_expired_tokens_do_not_keep_good_ones_out_of_any_worker(tmp_path: Path) -> None:
    env = os.environ | {"KEYS": json.dumps(key_set()), "ISSUER": ISSUER, "AUDIENCE": AUDIENCE}
    with run_workers(tmp_path, 2, program=TOKENS, env=env) as served:

        async def status(credential: str) -> int:
            client = Client(served.port)
            reply = await client.request(call("who"), headers={"authorization": f"Bearer {credential}"})
            await client.close()
            return reply.status

        expired = [token(claims(sub=f"p{number}", exp=1)) for number in range(40)]
        others = [token(claims(sub=f"p{number}", aud="https://other.example/mcp")) for number in range(40)]
        for sent in (expired, [expired[0]] * 40, others, ["old-key"] * 40):
            assert [await status(each) for each in sent] == [401] * 40
        assert [await status(token(claims(sub=f"p{number}"))) for number in range(10)] == [200] * 10
        assert await status("k" * 16) == 200
        guesses = [await status(f"guess-{number}") for number in range(40)]
        assert 28 <= guesses.count(401) <= 34, "each worker reports a guess after its reply"
        assert guesses[-1] == 429
        assert [await status(token(claims(sub=f"q{number}"))) for number in range(10)] == [200] * 10
