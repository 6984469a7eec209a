"""Extensions of upstreams through a gateway."""

import asyncio
from typing import Any

import pytest

from cases import for_each
from extensions.shop import NAME, Peer, Stock
from millstream import Client, Server
from millstream._protocol.revisions import NEWEST, NEWEST_HANDSHAKE
from millstream.client import Failure
from millstream.gateway import UpstreamPolicy
from millstream.testing import connect
from patience import WAIT

OLD, NEW = NEWEST_HANDSHAKE.date, NEWEST.date


def front(*upstreams: tuple[str, Server], revision: str | None = None, **more: Any) -> Server:
    """A gateway in front of servers."""
    server = Server("front")
    for name, upstream in upstreams:
        server.upstream(name, upstream, start_timeout=WAIT, revision=revision, **more)
    return server


@for_each(("own", "theirs"), [(NEW, NEW), (NEW, OLD), (OLD, NEW), (OLD, OLD)])
async def test_an_extension_of_one_upstream_without_a_prefix_passes(own: str, theirs: str) -> None:
    """Capability, methods, errors, questions, and notifications of a call, between all eras."""
    server = front(("shop", Server("shop", extensions=[Stock()])), revision=theirs, prefix="")
    peer = Peer()
    async with (
        asyncio.timeout(WAIT),
        Client(server, revision=own, extensions=[peer], elicit=lambda question: {"name": "Ada"}) as client,
    ):
        assert client.server_extensions == {NAME: {"unit": "copy"}}
        assert (await client.request("com.example/stock", {"isbn": "1"}))["copies"] == 7
        assert peer.looking == [("1", "peer")]
        reserved = await client.request("com.example/reserve", {"isbn": "1"}, name="1")
        assert (reserved["reserved"], reserved["_meta"]["com.example/n"]) == ("1", 2)
        assert (await client.request("com.example/name"))["name"] == "Ada"
        with pytest.raises(Failure, match="No such book"):
            await client.request("com.example/stock", {"isbn": "0"})
        with pytest.raises(Failure, match="Method not found"):
            await client.request("com.example/nothing")


async def test_a_client_without_the_extension_does_not_borrow_it() -> None:
    """The upstream hears what the client declared, and nothing of the gateway's."""
    async with connect(front(("shop", Server("shop", extensions=[Stock()])), prefix="")) as client:
        assert (await client.request("com.example/stock", {"isbn": "1"}))["copies"] == 7
        assert [each["method"] for each in client.notifications] == []
        with pytest.raises(Failure, match="Missing required client capability"):
            await client.request("com.example/reserve", {"isbn": "1"})


async def test_what_several_upstreams_have_or_a_prefix_or_policy_hides_does_not_pass() -> None:
    """Nothing is announced, and the methods aren't there."""
    one, two = (Server(name, extensions=[Stock()]) for name in ("one", "two"))
    with_prefix = front(("shop", Server("shop", extensions=[Stock()])))
    with_policy = front(("shop", Server("shop", extensions=[Stock()])), prefix="", policy=UpstreamPolicy())
    both = front(("one", one), prefix="")
    both.upstream("two", two, start_timeout=WAIT)
    own = front(("shop", Server("shop", extensions=[Stock()])), prefix="")
    own.extend(Stock())
    for server in (with_prefix, with_policy, both):
        async with Client(server, extensions=[Peer()]) as client:
            assert NAME not in client.server_extensions
            with pytest.raises(Failure, match="Method not found"):
                await client.request("com.example/stock", {"isbn": "1"})


async def test_skills_pass_as_they_are() -> None:
    """Entries, files, and their digests."""
    shop = Server("shop")

    @shop.skill(files={"a.md": "text"})
    def wrapping() -> str:
        """Wrap a gift."""
        return "Wrap it."

    async with Client(front(("shop", shop), prefix="")) as client:
        (skill,) = await client.skills()
        assert b"Wrap it." in await client.read_skill(skill)
        assert await client.read_skill(skill, "a.md") == b"text"
        listed = await client.request("resources/directory/read", {"uri": skill.root})
        assert len(listed["resources"]) == 2
