import asyncio
from contextlib import suppress
from time import monotonic

import pytest

from auth_world import ALICE, make_server, run_guarded
from cases import for_each
from http_peer import Peer
from issuer_world import AUDIENCE, OTHER, claims, run_issuer, token
from millstream import auth
from millstream.auth import Identity, Rejection
from patience import WAIT
from wire import request

UNKNOWN_KEY = "The signature is by an unknown key."
BETWEEN = 0.05
"""Seconds between two pieces from a slow sender."""
LIMIT = 0.5
"""Seconds that the server waits for a head, and for a body."""
CROWD = 150
HALF = b"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1\r\n"
BODY = (
    HALF + f"authorization: Bearer {ALICE}\r\ncontent-type: application/json\r\ncontent-length: 9000\r\n\r\n".encode()
)


@pytest.mark.many
@for_each(("begin", "drop"), [(HALF, b"x: y\r\n"), (BODY, b" ")], ids=["headers", "bodies"])
async def test_slow_senders_are_dropped_while_others_are_served(begin: bytes, drop: bytes) -> None:
    async with run_guarded(make_server(header_timeout=LIMIT, body_timeout=LIMIT)) as world:

        async def dribble(peer: Peer) -> bytes:
            try:
                reading = asyncio.ensure_future(peer.reader.read())
                while not reading.done():
                    peer.writer.write(drop)
                    await asyncio.wait([reading], timeout=BETWEEN)
                return reading.result()
            except ConnectionError:  # the server closed the connection during a write
                return b""
            finally:
                peer.close()

        async def behave() -> bool:
            begun, status = monotonic(), 0
            with suppress(ConnectionError, EOFError, AssertionError):
                status = (await world.post(ALICE, request("ping"))).status
            # On a stalled machine, a normal client may also be too slow.
            assert status == 200 or monotonic() - begun > LIMIT
            return status == 200

        slow = [asyncio.ensure_future(dribble(await world.running.connect(begin))) for _ in range(CROWD)]
        answered = 0
        async with asyncio.timeout(WAIT):
            while not (answered and all(each.done() for each in slow)):
                answered += await behave()
        said = [each.result() for each in slow]
        assert all(each == b"" or each.startswith(b"HTTP/1.1 408") for each in said)


async def test_unknown_key_ids_cause_one_issuer_request() -> None:
    async with run_issuer() as issuer:
        method = auth.oidc(issuer.url, audience=AUDIENCE)
        good = token(claims(iss=issuer.url))
        async with run_guarded(make_server([method, auth.keys(ALICE)])) as world:
            assert (await world.call(good, "who")).status == 200
            before = issuer.request_counts["/keys"]
            guard = world.runtime.guard
            assert guard is not None
            forged = [token(claims(iss=issuer.url), key=OTHER, kid=f"made-up-{number}") for number in range(1000)]
            found = await asyncio.gather(*(guard.identify(each) for each in forged))
            assert {identity.reason for identity, _ in found if isinstance(identity, Rejection)} == {UNKNOWN_KEY}
            assert not any(isinstance(identity, Identity) for identity, _ in found)
            assert issuer.request_counts["/keys"] - before <= 1
            assert (await world.call(good, "who")).status == 200
