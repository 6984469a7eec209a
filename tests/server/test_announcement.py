import json

from cases import for_each
from millstream import Server
from millstream._app.definition import Info
from millstream._protocol.revisions import HANDSHAKE, NEWEST, NEWEST_HANDSHAKE, Revision
from millstream._server.dispatch import ServerDescription
from wire import POST, per_request, routing, run_wire


def announcement(server: Server) -> ServerDescription:
    """Return the announcement of a server that isn't running."""
    return ServerDescription(server.registry, server.definition.describe(), "Be kind.")


@for_each("revision", HANDSHAKE.values(), ids=HANDSHAKE)
def test_initialize_response_is_built_once_per_revision(revision: Revision) -> None:
    said = announcement(Server("shop", version="2"))
    first = said.initialize(revision)
    assert said.initialize(revision) is first
    told = json.loads(first)
    assert (told["protocolVersion"], told["serverInfo"]["version"], told["instructions"]) == (
        revision.date, "2", "Be kind.",
    )  # fmt: skip


def test_response_without_streams_announces_no_list_changes() -> None:
    server = Server("shop")
    server.tool(nothing)
    said = announcement(server)
    with_streams, without = (json.loads(said.initialize(NEWEST_HANDSHAKE, streams=each)) for each in (True, False))
    assert with_streams["capabilities"]["tools"] == {"listChanged": True}
    assert without["capabilities"]["tools"] == {}


def test_first_tool_added_at_run_time_adds_the_capability() -> None:
    server = Server("shop")
    said = announcement(server)
    assert "tools" not in json.loads(said.initialize(NEWEST_HANDSHAKE))["capabilities"]
    assert b'"tools"' not in said.discover(NEWEST)
    server.tool(nothing)
    assert "tools" in json.loads(said.initialize(NEWEST_HANDSHAKE))["capabilities"]
    kept = said.discover(NEWEST)
    assert b'"tools"' in kept
    assert said.discover(NEWEST) is kept
    server.prompt(greeting)
    assert b'"prompts"' in said.discover(NEWEST)


async def test_icons_and_descriptions_appear_only_in_discovery() -> None:
    """Regression: each result of 2026-07-28 repeated them, including icons as data URIs."""
    icon = {"src": "data:image/png;base64," + "A" * 2_000}
    server = Server("shop", version="2", info=Info(title="Shop", description="long", icons=[icon]))
    server.tool(nothing)
    key = "io.modelcontextprotocol/serverInfo"
    async with run_wire(server, "asgi") as wire:
        asked = {}
        for method, name in (("server/discover", ""), ("tools/list", ""), ("tools/call", "nothing")):
            message = per_request(method, {"name": name} if name else {})
            reply = await wire.post(message, {**POST, **routing(method, name)})
            asked[method] = reply.message["result"]["_meta"][key]
    assert asked["server/discover"] == {
        "name": "shop", "version": "2", "title": "Shop", "description": "long", "icons": [icon],
    }  # fmt: skip
    brief = {"name": "shop", "version": "2", "title": "Shop"}
    assert asked["tools/list"] == asked["tools/call"] == brief


def nothing() -> None:
    """Do nothing."""


def greeting() -> str:
    """Say hello."""
    return "Hello"
