import json
import re
from pathlib import Path

import pytest

from app_peer import ask
from millstream import Info, Server, Settings, auth
from millstream._app.gateway_server import server_of_file
from millstream._protocol.revisions import NEWEST
from millstream.extensions.cards import CardError

URL = "https://shop.example.com/mcp"
PATHS = (
    "/mcp/server-card",
    "/.well-known/ai-catalog.json",
    "/.well-known/ard.json",
    "/.well-known/mcp/server-card.json",
)


def shop(**settings: object) -> Server:
    """Return a server with a card."""
    about = Info(title="The shop", description="Sell books. " * 20, website_url="https://shop.example.com")
    return Server("book shop", version="1.2.0", info=about, settings=Settings(card_url=URL, **settings))  # type: ignore[arg-type]


async def test_card_contains_name_and_address() -> None:
    server = shop()
    async with server.running():
        reply = await ask(server, "GET", "/mcp/server-card", accept="application/mcp-server-card+json")
        card = json.loads(reply.body)
    assert (reply.status, reply.headers[b"content-type"]) == (200, b"application/mcp-server-card+json")
    assert (card["name"], card["version"], card["title"]) == ("com.example.shop/book-shop", "1.2.0", "The shop")
    assert len(card["description"]) == 100
    (remote,) = card["remotes"]
    assert (remote["type"], remote["url"]) == ("streamable-http", URL)
    assert NEWEST.date in remote["supportedProtocolVersions"]
    assert "headers" not in remote
    assert re.fullmatch(
        r"https://static\.modelcontextprotocol\.io/schemas/v1/server-card\.schema\.json", card["$schema"]
    )


async def test_long_titles_are_shortened_in_card_and_catalog() -> None:
    server = Server("shop", info=Info(title="T" * 150), settings=Settings(card_url=URL))
    async with server.running():
        card, listed = [json.loads((await ask(server, "GET", path)).body) for path in PATHS[:2]]
    assert (card["title"], listed["entries"][0]["displayName"]) == ("T" * 100, "T" * 100)


async def test_catalog_and_card_are_readable_from_any_origin() -> None:
    server = shop()
    async with server.running():
        listed = json.loads((await ask(server, "GET", PATHS[1])).body)
        assert listed["specVersion"] == "1.0"
        assert listed["entries"] == [
            {
                "identifier": "urn:air:shop.example.com:mcp:book-shop",
                "displayName": "The shop",
                "type": "application/mcp-server-card+json",
                "url": f"{URL}/server-card",
            }
        ]
        assert json.loads((await ask(server, "GET", PATHS[2])).body) == listed
        for path in PATHS:
            reply = await ask(server, "GET", path, origin="https://elsewhere.example")
            assert reply.headers[b"access-control-allow-origin"] == b"*"
            assert reply.headers[b"access-control-expose-headers"] == b"ETag"
            assert reply.headers[b"cache-control"] == b"public, max-age=3600"
            tag = reply.headers[b"etag"].decode()
            again = await ask(server, "GET", path, if_none_match=f'"other", W/{tag}')
            assert (again.status, again.body, again.headers[b"etag"].decode()) == (304, b"", tag)
            assert (await ask(server, "GET", path, if_none_match='"other"')).status == 200
            preflight = await ask(
                server, "OPTIONS", path, origin="https://elsewhere.example", access_control_request_method="GET"
            )
            assert preflight.status == 204
            assert (await ask(server, "POST", path)).status == 405


async def test_server_without_card_url_has_no_card() -> None:
    server = Server("shop")
    async with server.running():
        for path in PATHS:
            assert (await ask(server, "GET", path)).status == 404


async def test_card_of_a_protected_server_is_public_and_mentions_the_key() -> None:
    server = Server("shop", auth=auth.keys("k" * 40), settings=Settings(card_url=URL, card_name="org.example/books"))
    async with server.running():
        reply = await ask(server, "GET", "/mcp/server-card")
        card = json.loads(reply.body)
        assert (reply.status, card["name"]) == (200, "org.example/books")
        (header,) = card["remotes"][0]["headers"]
        assert (header["name"], header["isSecret"]) == ("Authorization", True)
        assert "k" * 40 not in reply.body.decode()


@pytest.mark.parametrize(
    ("url", "name", "problem"),
    [
        ("shop.example.com/mcp", "", "Set the public URL"),
        ("https://user@shop.example.com/mcp", "", "Set the public URL"),
        ("https://shop.example.com/mcp?key=1", "", "Set the public URL"),
        ("https://192.0.2.7/mcp", "", "Set card_name as well"),
        (URL, "shop", "a name: com.example/"),
    ],
)
async def test_invalid_card_settings_prevent_startup(url: str, name: str, problem: str) -> None:
    server = Server("shop", settings=Settings(card_url=url, card_name=name))
    with pytest.raises(CardError, match=problem):
        async with server.running():
            raise AssertionError


async def test_gateway_serves_its_own_card(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(
        f'name = "front"\nversion = "3"\n[settings]\ncard_url = "{URL}"\n'
        '[upstreams.shop]\nurl = "http://127.0.0.1:1/mcp"\nstart_timeout = 0.01\n'
    )
    server = server_of_file(file)
    async with server.running():
        card = json.loads((await ask(server, "GET", "/mcp/server-card")).body)
    assert (card["name"], card["version"], card["remotes"][0]["url"]) == ("com.example.shop/front", "3", URL)
