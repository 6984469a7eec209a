from cases import for_each
from millstream import Client, Server
from millstream.protocol import REVISIONS


@for_each("revision", REVISIONS)
async def test_pinned_client_uses_its_revision_and_no_newer_one(revision: str) -> None:
    async with Client(Server("shop"), revision=revision) as client:
        assert client.revision == revision
