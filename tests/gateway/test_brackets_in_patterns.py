"""Patterns with brackets, which documents don't mention: only `*` and `?` are special there."""

from millstream import Client, Server
from millstream.gateway import UpstreamPolicy
from patience import WAIT


async def test_denied_uris_with_brackets_are_denied() -> None:
    notes = Server("notes")
    for uri in ("note://shelf/a[1]", "note://shelf/a1", "http://[::1]/plan"):
        notes.resource(uri, name="note")(lambda: "read")
    front = Server("front")
    policy = UpstreamPolicy(deny=("note://shelf/a[1]", "http://[::1]/*"))
    front.upstream("n", notes, prefix="", policy=policy, start_timeout=WAIT)
    async with Client(front) as client:
        assert [each.uri for each in await client.resources()] == ["note://shelf/a1"]
