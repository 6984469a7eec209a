import asyncio
from pathlib import Path
from typing import Any

import pytest

from cases import for_each
from extensions.shop import NAME, Peer, Stock
from millstream import Client, ProtocolError, Server
from millstream.client import ServerError
from millstream.extensions import MessageRequest, Next
from millstream.extensions.apps import Apps
from millstream.extensions.skills import Skills
from millstream.gateway import UpstreamPolicy
from millstream.middleware import Middleware
from millstream.protocol import NEWEST, NEWEST_HANDSHAKE
from millstream.testing import connect
from patience import WAIT

OLD, NEW = NEWEST_HANDSHAKE.date, NEWEST.date


def make_gateway(*upstreams: tuple[str, Server], revision: str | None = None, **more: Any) -> Server:
    """Return a gateway to servers."""
    server = Server("front")
    for name, upstream in upstreams:
        server.upstream(name, upstream, start_timeout=WAIT, revision=revision, **more)
    return server


@for_each(("own", "theirs"), [(NEW, NEW), (NEW, OLD), (OLD, NEW), (OLD, OLD)])
async def test_extension_from_an_unprefixed_upstream_is_forwarded(own: str, theirs: str) -> None:
    server = make_gateway(("shop", Server("shop", extensions=[Stock()])), revision=theirs, prefix="")
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
        with pytest.raises(ServerError, match="No such book"):
            await client.request("com.example/stock", {"isbn": "0"})
        with pytest.raises(ServerError, match="Method not found"):
            await client.request("com.example/nothing")


async def test_forwarded_extension_is_not_declared_for_other_clients() -> None:
    shop = Server("shop", extensions=[Stock()])
    for server in (shop, make_gateway(("shop", shop), prefix="")):
        async with connect(server) as client:
            assert (await client.request("com.example/stock", {"isbn": "1"}))["copies"] == 7
            assert [each["method"] for each in client.notifications] == ["com.example/looking"]
            with pytest.raises(ServerError, match="Missing required client capability"):
                await client.request("com.example/reserve", {"isbn": "1"})


async def test_ambiguous_prefixed_or_restricted_extensions_are_not_forwarded() -> None:
    one, two = (Server(name, extensions=[Stock()]) for name in ("one", "two"))
    with_prefix = make_gateway(("shop", Server("shop", extensions=[Stock()])))
    with_policy = make_gateway(
        ("shop", Server("shop", extensions=[Stock()])), prefix="", policy=UpstreamPolicy(tags=("all",))
    )
    both = make_gateway(("one", one), prefix="")
    both.upstream("two", two, start_timeout=WAIT)
    own = make_gateway(("shop", Server("shop", extensions=[Stock()])), prefix="")
    own.extend(Stock())
    for server in (with_prefix, with_policy, both):
        async with Client(server, extensions=[Peer()]) as client:
            assert NAME not in client.server_extensions
            with pytest.raises(ServerError, match="Method not found"):
                await client.request("com.example/stock", {"isbn": "1"})


async def test_skills_from_an_unprefixed_upstream_are_unchanged() -> None:
    shop = Server("shop")

    @shop.extend(Skills()).skill(files={"a.md": "text"})
    def wrapping() -> str:
        """Wrap a gift."""
        return "Wrap it."

    async with Client(make_gateway(("shop", shop), prefix="")) as client:
        (skill,) = await client.skills()
        assert b"Wrap it." in await client.read_skill(skill)
        assert await client.read_skill(skill, "a.md") == b"text"
        listed = await client.request("resources/directory/read", {"uri": skill.root})
        assert len(listed["resources"]) == 2


def _make_skill_server(name: str, word: str) -> Server:
    """Return an upstream with two skills, the second of which has a file."""
    server = Server(name)
    skills = server.extend(Skills())

    @skills.skill
    def secret() -> str:
        """Keep a secret."""
        return f"{word}: hush."

    @skills.skill(files={"a.md": word})
    def wrapping() -> str:
        """Wrap a gift."""
        return f"{word}: wrap it."

    return server


@for_each("revision", [NEW, OLD])
async def test_skills_from_several_upstreams_are_merged_with_prefixes(revision: str) -> None:
    server = make_gateway(
        ("one", _make_skill_server("one", "first")), ("two", _make_skill_server("two", "second")), revision=revision
    )
    async with asyncio.timeout(WAIT), Client(server) as client:
        skills = {each.uri: each for each in await client.skills()}
        assert sorted(skills) == [
            f"skill://{prefix}/{name}/SKILL.md" for prefix in ("one", "two") for name in ("secret", "wrapping")
        ]
        for prefix, word in (("one", b"first"), ("two", b"second")):
            skill = skills[f"skill://{prefix}/wrapping/SKILL.md"]
            assert word + b": wrap it." in await client.read_skill(skill)
            assert await client.read_skill(skill, "a.md") == word
            found = await client.request("skills/get", {"uri": skill.uri})
            assert found["skill"]["uri"] == skill.uri
            listed = await client.request("resources/directory/read", {"uri": skill.root})
            assert {each["uri"] for each in listed["resources"]} == {f"{skill.root}/a.md", skill.uri}
        for method_name in ("skills/get", "resources/directory/read"):
            with pytest.raises(ServerError):
                await client.request(method_name, {"uri": "skill://three/wrapping/SKILL.md"})


async def test_policy_hides_skills_together_with_their_files() -> None:
    policy = UpstreamPolicy(deny=("skill://secret/*",))
    for prefix in ("", "shop"):
        server = make_gateway(("shop", _make_skill_server("shop", "word")), prefix=prefix, policy=policy)
        root = f"skill://{prefix}/" if prefix else "skill://"
        async with asyncio.timeout(WAIT), Client(server) as client:
            assert [each.uri for each in await client.skills()] == [f"{root}wrapping/SKILL.md"]
            with pytest.raises(ServerError, match="No skill"):
                await client.request("skills/get", {"uri": f"{root}secret/SKILL.md"})
            with pytest.raises(ServerError):
                await client.read(f"{root}secret/SKILL.md")


class _BrokenSkills(Middleware):
    """A middleware that breaks `skills/list`."""

    async def on_message(self, request: MessageRequest, next: Next) -> dict[str, Any]:
        """Raise an error for the method."""
        if request.method == "skills/list":
            raise ProtocolError(-31000, "Not now")
        result: dict[str, Any] = await next(request)
        return result


async def test_skills_from_failing_upstreams_are_skipped() -> None:
    broken = Server("broken", middleware=[_BrokenSkills()])

    @broken.extend(Skills()).skill
    def lost() -> str:
        """Wrap nothing."""
        return "Somewhere."

    server = make_gateway(("broken", broken), ("here", _make_skill_server("here", "word")))
    async with asyncio.timeout(WAIT), Client(server) as client:
        assert {each.uri.split("/")[2] for each in await client.skills()} == {"here"}


async def test_tools_from_a_prefixed_upstream_refer_to_its_views(tmp_path: Path) -> None:
    shop = Server("shop")
    (tmp_path / "table.html").write_text("<!doctype html>", "utf-8")
    apps = shop.extend(Apps())
    apps.add(str(tmp_path / "table.html"), uri="ui://orders/table")

    @apps.tool("ui://orders/table")
    def orders() -> str:
        """List the orders."""
        return "none"

    async with asyncio.timeout(WAIT), Client(make_gateway(("shop", shop))) as client:
        assert "io.modelcontextprotocol/ui" in client.server_extensions
        (tool,) = await client.tools()
        assert tool.meta["ui"]["resourceUri"] == tool.meta["ui/resourceUri"] == "ui://shop/orders/table"
        (read,) = await client.read(tool.meta["ui"]["resourceUri"])
        assert read.text == "<!doctype html>"
