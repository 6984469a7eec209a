"""URIs are compared by equivalence, because clients don't always send them as listed."""

import asyncio
from collections.abc import Callable

import pytest
from pydantic import AnyUrl

from millstream import Client, EmbeddedResource, ResourceContents, ResourceLink, Server
from millstream.client import ServerError
from millstream.gateway import UpstreamPolicy
from millstream.middleware import MessageRequest, Next
from millstream.protocol import Json
from millstream.testing import connect
from patience import WAIT

URIS = ["static://café", "http://example.com", "https://Example.com/A?q=ä", "memo://a/../x", "file:///tmp/plain.txt"]
REVISIONS = ["2025-11-25", "2026-07-28"]


def make_server(*middleware: object) -> Server:
    mcp = Server("uris", middleware=[*middleware])
    for uri in URIS:
        mcp.resource(uri, name=uri)(_returning(uri))

    @mcp.resource("Shop://Items/{number}")
    def item(number: int) -> str:
        return f"item {number}"

    return mcp


def _returning(text: str) -> Callable[[], str]:
    def read() -> str:
        return text

    return read


async def _read(client: Client, uri: str) -> str | None:
    (contents,) = await client.read(uri)
    return contents.text


async def test_resource_can_be_read_by_a_uri_that_another_library_normalized() -> None:
    async with Client(make_server()) as client:
        for uri in URIS:
            (contents,) = await client.read(str(AnyUrl(uri)))
            assert contents.uri == str(AnyUrl(uri))
            assert contents.text == uri
        assert await _read(client, str(AnyUrl("Shop://Items/3"))) == "item 3"
        assert await _read(client, "shop://items/3") == "item 3"


async def test_gateway_requests_resources_by_the_upstreams_spelling_of_the_uri() -> None:
    asked: list[str] = []

    class Note:
        async def on_message(self, request: MessageRequest, next: Next) -> Json:
            if request.method == "resources/read":
                asked.append(request.params["uri"])
            return await next(request)

    shop = make_server(Note())

    gateway = Server("gateway")
    gateway.upstream("shop", shop, prefix="up")
    async with Client(gateway) as client:
        listed = [each.uri for each in await client.resources()]
        for uri in listed:
            assert await _read(client, str(AnyUrl(uri))) in URIS
        assert await _read(client, "shop://up/Items/3") == "item 3"
    assert asked == [*URIS, "Shop://Items/3"]


async def test_scopes_apply_to_every_spelling_of_a_uri() -> None:
    mcp = Server("secrets")
    mcp.resource("vault://Keys/master", scopes=["admin"])(_returning("secret"))
    mcp.resource("{+anything}", name="anything")(lambda anything: f"open {anything}")
    async with connect(mcp, principal="eve") as client:
        for uri in (
            "vault://Keys/master",
            "VAULT://keys/master",
            "vault://KEYS/x/../%6Daster",
            "vault://keys/./master",
        ):
            with pytest.raises(ServerError, match="admin"):
                await client.read(uri)


async def test_no_spelling_of_a_uri_bypasses_a_policy() -> None:
    shop = Server("shop")
    shop.resource("http://example.com/open")(_returning("open"))
    shop.resource("http://example.com/secret")(_returning("secret"))
    shop.resource("http://café.example/x")(_returning("secret"))
    gateway = Server("gateway")
    denied = ("http://example.com/secret", "http://café.example/*")
    gateway.upstream("shop", shop, prefix="", policy=UpstreamPolicy(deny=denied))
    async with Client(gateway) as client:
        assert await _read(client, "HTTP://example.com:80/open") == "open"
        for uri in (
            "http://example.com:80/secret",
            "http://example.com/a/../s%65cret",
            "http://EXAMPLE.com:/secret",
            "http://xn--caf-dma.example/x",
            "http://caf%C3%A9.example:80/x",
        ):
            with pytest.raises(ServerError, match="not found"):
                await client.read(uri)


def test_equivalent_uris_are_rejected_at_registration() -> None:
    mcp = Server("twice")
    mcp.resource("static://café")(_returning("one"))
    with pytest.raises(ValueError, match="'static://café' already exists, and 'STATIC://caf%C3%A9' is the same URI"):
        mcp.resource("STATIC://caf%C3%A9")(_returning("two"))
    mcp.resource("Shop://x/{a}", name="a")(lambda a: a)
    with pytest.raises(ValueError, match="the same URI in another spelling"):
        mcp.resource("shop://X/{a}", name="a")(lambda a: a)
    mcp.remove_resource("static://café")
    mcp.resource("STATIC://caf%C3%A9")(_returning("two"))


@pytest.mark.parametrize("revision", REVISIONS)
async def test_subscriber_is_notified_of_an_update_under_another_spelling_of_the_uri(revision: str) -> None:
    mcp = make_server()
    async with (
        connect(mcp, revision=revision) as client,
        client.watch("static://caf%C3%A9") as changes,
    ):
        await mcp.resource_updated("static://café")
        async with asyncio.timeout(WAIT):
            change = await anext(aiter(changes))
        assert change.uri == "static://caf%C3%A9"


def test_links_and_contents_must_have_a_uri() -> None:
    for write in (
        lambda: ResourceLink("notes/7", "note"),
        lambda: ResourceLink("a b:c", "note"),
        lambda: EmbeddedResource("My report.txt", text="x"),
        lambda: EmbeddedResource(resource=ResourceContents("notes 7", text="x")),
    ):
        with pytest.raises(ValueError, match="a URI must start with a scheme"):
            write()
    assert ResourceLink("note:7", "note").uri == "note:7"


async def test_a_uri_with_a_fragment_is_a_resource_of_its_own() -> None:
    mcp = Server("shop")
    for uri in ("shop://terms", "shop://terms#returns"):
        mcp.resource(uri, name=uri)(_returning(uri))
    async with Client(mcp, timeout=WAIT) as client:
        assert await _read(client, "shop://terms") == "shop://terms"
        assert await _read(client, "SHOP://terms#returns") == "shop://terms#returns"
        with pytest.raises(ServerError, match="Resource not found"):
            await client.read("shop://terms#prices")
