import asyncio

import pytest

from auth.test_sign_in import cookie
from auth_world import run_guarded
from four_workers import ON_FOUR

NEARLY = [b"\xa0", b"\x85", b"\xc2\xa0", "\u2000".encode(), "\ufeff".encode(), b"\x1c", b"\x0b", b'"', b"=", b",",
          b"$Version=1,", b"%20", b"+"]  # fmt: skip
"""Prefixes of a name. Python treats the first two, in Latin-1, as white space."""


@pytest.mark.parametrize("way", ["lane", "asgi", ON_FOUR])
async def test_similar_cookie_names_are_ignored(way: str) -> None:
    async with run_guarded(lane=way == "lane", way=way) as world:
        jar = (await cookie(world)).encode()
        name, _, value = jar.partition(b"=")

        async def opened(given: bytes) -> int:
            peer = await world.running.connect()
            await peer.send(b"GET /docs HTTP/1.1\r\nhost: 127.0.0.1\r\ncookie: " + given + b"\r\n\r\n")
            status = (await peer.reply())[0]
            peer.close()
            return status

        given = [*(mark + jar for mark in NEARLY), name + b"\xa0=" + value, name.upper() + b"=" + value]
        for each, status in zip(given, await asyncio.gather(*map(opened, given)), strict=True):
            assert status in (400, 401), each
        for blank in (b"", b" ", b"\t", b"other=1;", b"other=1 ;\t "):
            assert await opened(blank + jar) == 200
