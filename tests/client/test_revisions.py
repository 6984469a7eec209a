import pytest

from cases import for_each
from client.feature_walk import FILE, shop, walk
from millstream.protocol import BY_DATE


@for_each("revision", [None, *BY_DATE])
async def test_server_objects_work_on_every_revision(revision: str | None) -> None:
    await walk(shop.mcp, revision, "memory")


@pytest.mark.server
@for_each("revision", [None, *BY_DATE])
async def test_scripts_work_on_every_revision(revision: str | None) -> None:
    await walk(FILE, revision, "stdio")
