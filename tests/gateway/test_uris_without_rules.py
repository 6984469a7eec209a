"""Rules about some URIs, which leave others alone."""

import pytest

from millstream import Client, Server
from millstream.gateway import UpstreamPolicy
from patience import WAIT


@pytest.mark.parametrize(
    "uri", ["http://my_host:8080/plan", "https://bücher.example/plan", "ftp://me@ftp.example/plan"]
)
async def test_a_rule_about_other_uris_leaves_the_rest_readable(uri: str) -> None:
    files, front = Server("files"), Server("front")
    files.resource(uri.replace("plan", "{name}"), name="file")(lambda name: name)
    front.upstream("u", files, prefix="", policy=UpstreamPolicy(deny=("db://private/*",)), start_timeout=WAIT)
    async with Client(front) as client:
        assert [each.text for each in await client.read(uri)] == ["plan"]
