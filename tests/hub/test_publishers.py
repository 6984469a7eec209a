"""The publishers of events and the members of channels: names verified by the server, and names that people choose."""

import asyncio
import json
import zlib
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from auth_world import STREAM, GuardedServer, run_guarded
from extensions.event_shop import ADA, BOB, OrderPaid, make_shop, run_shop
from extensions.receiver import run_receiver
from fleet import real_fleet
from http_peer import serve
from millstream import Context, Principal, Server, Settings, SyncContext, auth
from millstream.auth import AuthMethod, Identity
from patience import WAIT
from store_parts import LocalBacking
from wire import Json

EVE, DESK, OFFICE = "key-of-eve-0123456789", "key-of-desk-0123456789", "key-of-office-0123456789"
SHARED = "shared-key-0123456789"
CLAIM = b'{"channel":"room","data":{"name":"bob","text":"I am bob"}}'
JSON_BODY = {"content_type": "application/json"}


def make_rooms(store: str = "memory://", **settings: Any) -> Server:
    """Return a server where eve may publish, the desk may read, and the office sees who is behind a name."""
    named = {"eve": EVE, "desk": DESK, "office": (OFFICE, ["millstream:identities"])}
    server = Server(
        "rooms",
        serve="all",
        auth=auth.keys(SHARED, named_keys=named),
        authorize_channel=lambda principal, action, channel: True,
        settings=Settings(store=store, **settings),
    )

    @server.tool
    async def say(text: str, ctx: Context) -> None:
        """Say something as the caller."""
        await ctx.hub.publish("room", text, publisher=ctx.principal)

    @server.tool
    def whisper(text: str, ctx: SyncContext) -> None:
        """Send something to the desk as the caller."""
        desk = Principal("desk", client="desk")
        ctx.hub.send("desk-1", text, principal=desk, publisher=ctx.principal)

    @server.tool
    async def announce(text: str, ctx: Context) -> None:
        """Say something as the server."""
        await ctx.hub.publish("room", text)

    @server.tool
    async def recent(ctx: Context) -> list[str]:
        """Return who spoke."""
        return ["" if each.user is None else each.user.name for each in await ctx.hub.history("room")]

    return server


async def publish(world: GuardedServer, key: str, body: bytes = CLAIM) -> None:
    """Publish over HTTP."""
    reply = await world.ask(key, "POST", "/publish", body, **JSON_BODY)
    assert reply.status == 200, reply.body


async def read(world: GuardedServer, key: str, path: str, end: bytes = b"data:", **headers: str) -> bytes:
    """Return the beginning of a stream up to a blank line after some text."""
    peer = await world.send(key, "GET", path, **{**STREAM, **headers})
    assert (await peer.head())[0] == 200
    text = b""
    async with asyncio.timeout(WAIT):
        while end not in text or not text.endswith(b"\n\n"):
            text += await peer.chunk()
    peer.close()
    return text


def fields(text: bytes) -> list[dict[str, str]]:
    """Return the fields of the events of a stream that have data."""
    blocks = [[line.partition(": ") for line in each.splitlines()] for each in text.decode().split("\n\n")]
    return [found for each in blocks if "data" in (found := {name: value for name, _, value in each})]


async def hear(socket: Any) -> Json:
    """Return the next event of a WebSocket."""
    async with asyncio.timeout(WAIT):
        while (message := json.loads(await socket.recv()))["type"] != "event":
            pass
    return dict(message)


async def test_event_streams_identify_the_publisher_next_to_the_claimed_name() -> None:
    async with run_guarded(make_rooms()) as world:
        await publish(world, EVE)
        [event] = fields(await read(world, DESK, "/events?channel=room&history=5"))
        assert json.loads(event["user"]) == {"name": "eve"}
        assert json.loads(event["data"])["name"] == "bob"


async def test_pages_read_the_publisher_from_an_envelope() -> None:
    async with run_guarded(make_rooms()) as world:
        await publish(world, EVE)
        path = "/events?channel=room&history=5&envelope=1"
        text = await read(world, DESK, path)
        [event] = fields(text)
        found = json.loads(event["data"])
        assert (found["channel"], found["user"], json.loads(found["data"])["name"]) == ("room", {"name": "eve"}, "bob")
        assert b"\nuser:" not in text
        assert (await world.ask(DESK, "GET", "/events?envelope=yes", **STREAM)).status == 400


async def test_compressed_streams_identify_the_publisher() -> None:
    async with run_guarded(make_rooms(gzip_streams=True)) as world:
        await publish(world, EVE)
        peer = await world.send(DESK, "GET", "/events?channel=room&history=5", **STREAM, accept_encoding="gzip")
        await peer.head()
        packed = b""
        async with asyncio.timeout(WAIT):
            while b'user: {"name":"eve"}' not in (text := _inflate(packed)):
                packed += await peer.chunk()
        assert b"I am bob" in text
        peer.close()


def _inflate(packed: bytes) -> bytes:
    return zlib.decompressobj(31).decompress(packed)


async def test_websockets_identify_the_publisher_next_to_the_claimed_name() -> None:
    async with run_guarded(make_rooms()) as world, world.socket(DESK) as desk, world.socket(EVE) as eve:
        await desk.send('{"type":"subscribe","channel":"room"}')
        await eve.send('{"type":"publish","channel":"room","data":{"name":"bob"}}')
        event = await hear(desk)
        assert (event["user"], json.loads(event["data"])) == ({"name": "eve"}, {"name": "bob"})


async def test_publishers_cannot_impersonate_another_user() -> None:
    async with run_guarded(make_rooms()) as world:
        forged = b'{"channel":"room","data":1,"user":{"name":"bob"}}'
        reply = await world.ask(EVE, "POST", "/publish", forged, **JSON_BODY)
        assert (reply.status, b"user" in reply.body) == (400, True)
        async with world.socket(EVE) as socket:
            await socket.recv()
            await socket.send('{"type":"publish","channel":"room","data":1,"user":{"name":"bob"}}')
            assert json.loads(await socket.recv())["type"] == "error"
        await publish(world, EVE, b'{"channel":"room","data":"x\\n\\nuser: {\\"name\\":\\"bob\\"}","event":"a"}')
        text = await read(world, DESK, "/events?channel=room&history=5")
        assert [line for line in text.splitlines() if line.startswith(b"user:")] == [b'user: {"name":"eve"}']


async def test_tools_publish_as_their_caller_or_as_the_server() -> None:
    async with run_guarded(make_rooms()) as world:
        for tool in ("say", "announce"):
            assert (await world.call(EVE, tool, {"text": f"by {tool}"})).status == 200
        assert b'"eve",""' in (await world.call(DESK, "recent")).body.replace(b'\\"', b'"')
        first, second = fields(await read(world, DESK, "/events?channel=room&history=5", b"by announce"))
        assert ("user" in first, "user" in second) == (True, False)


async def test_messages_to_a_client_identify_their_sender() -> None:
    async with run_guarded(make_rooms()) as world:
        assert (await world.call(EVE, "whisper", {"text": "psst"})).status == 200
        event = fields(await read(world, DESK, "/mcp/sse/desk-1", b"psst"))[-1]
        assert (event["data"], json.loads(event["user"])) == ("psst", {"name": "eve"})


async def test_messages_to_another_person_wait_for_that_person() -> None:
    """Two people can have clients with the same id."""
    server = make_rooms()
    async with run_guarded(server) as world:
        for text, person in (("for eve", "eve"), ("for the desk", "desk"), ("for all", "")):
            principal = Principal(person, client=person) if person else None
            sent = await server.hub.send("phone", text, principal=principal)
            assert sent.subscribers == 0
        for key, text in ((DESK, "for the desk"), (EVE, "for eve")):
            found = fields(await read(world, key, "/mcp/sse/phone", b"for "))
            assert [each["data"] for each in found[1:]] == [text]


async def test_subjects_reach_only_readers_with_the_scope() -> None:
    async with run_guarded(make_rooms()) as world, world.socket(OFFICE) as office, world.socket(DESK) as desk:
        for socket in (office, desk):
            await socket.send('{"type":"subscribe","channel":"room"}')
        await publish(world, EVE)
        assert (await hear(office))["user"] == {"name": "eve", "subject": "eve"}
        assert (await hear(desk))["user"] == {"name": "eve"}
        for path in ("/events?channel=room&history=5", "/events?channel=room&history=5&envelope=1"):
            assert b'"subject":"eve"' in (await read(world, OFFICE, path)).replace(b"\\", b"")
            assert b"subject" not in await read(world, DESK, path)


async def test_presence_distinguishes_verified_names_from_chosen_ones() -> None:
    async with run_guarded(make_rooms()) as world, world.socket(DESK) as desk, world.socket(EVE) as eve:
        await desk.send('{"type":"subscribe","channel":"$presence.room"}')
        await eve.send('{"type":"subscribe","channel":"room","name":"bob"}')
        change = await hear(desk)
        assert (change["event"], change["user"]) == ("join", {"name": "eve"})
        member = json.loads(change["data"])
        assert (member["name"], member["user"], "owner" in member) == ("bob", {"name": "eve"}, False)
        for key, user in ((DESK, {"name": "eve"}), (OFFICE, {"name": "eve", "subject": "eve"})):
            reply = await world.ask(key, "GET", "/members?channel=room")
            [found] = json.loads(reply.body)["members"]
            assert (found["name"], found["user"], "owner" in found) == ("bob", user, False)
        [known] = await world.server.hub.presence("room")
        assert known.user is not None
        assert known.user.subject == "eve"


async def test_replays_after_a_restart_identify_the_publisher(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'rooms.db'}"
    async with run_guarded(make_rooms(store)) as world:
        await publish(world, EVE)
        id = fields(await read(world, DESK, "/events?channel=room&history=5"))[0]["id"]
        await publish(world, EVE)
    async with run_guarded(make_rooms(store)) as world:
        [event] = fields(await read(world, DESK, "/events?channel=room", last_event_id=id))
        assert json.loads(event["user"]) == {"name": "eve"}


async def test_other_workers_identify_the_publisher() -> None:
    backing = LocalBacking()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(backing.close)
        workers = await stack.enter_async_context(real_fleet(make_rooms, backing, 2))
        one, two = [
            GuardedServer(each.server, each.runtime, await stack.enter_async_context(serve(each.server)))
            for each in workers
        ]
        async with two.socket(DESK) as desk, one.socket(EVE) as eve:
            for socket, name in ((desk, ""), (eve, "bob")):
                await socket.send(json.dumps({"type": "subscribe", "channel": "room", "name": name}))
                async with asyncio.timeout(WAIT):
                    while json.loads(await socket.recv())["type"] != "subscribed":
                        pass
            await publish(one, EVE)
            assert (await hear(desk))["user"] == {"name": "eve"}
            [member] = json.loads((await two.ask(DESK, "GET", "/members?channel=room")).body)["members"]
            assert (member["name"], member["user"]) == ("bob", {"name": "eve"})


async def test_shared_key_does_not_identify_a_publisher() -> None:
    async with run_guarded(make_rooms()) as world:
        await publish(world, SHARED)
        [event] = fields(await read(world, DESK, "/events?channel=room&history=5"))
        assert json.loads(event["user"]) == {}


async def test_publishers_are_not_identified_without_a_claim() -> None:
    async with run_guarded(make_rooms(display_name_claims=())) as world:
        await publish(world, EVE)
        [event] = fields(await read(world, OFFICE, "/events?channel=room&history=5"))
        assert "user" not in event


async def test_streams_without_sign_in_have_no_extra_field() -> None:
    server = Server("open", serve="hub", settings=Settings())
    async with run_guarded(server) as world:
        reply = await world.ask(None, "POST", "/publish", CLAIM, **JSON_BODY)
        assert reply.status == 200
        peer = await world.send(None, "GET", "/events?channel=room&history=5", **STREAM)
        await peer.head()
        text = await peer.chunk()
        assert {each.partition(b":")[0] for each in text.splitlines() if each} == {b"id", b"data"}
        peer.close()


class People(AuthMethod):
    """People of an issuer, whose credential is their claims."""

    def __init__(self) -> None:
        self.issuers = ("https://id.example.com",)

    async def identify(self, credential: str) -> Identity | None:
        """Return the person of a credential."""
        claims = json.loads(bytes.fromhex(credential))
        scopes = frozenset(claims.pop("scope", "").split())
        return Identity(Principal(claims["sub"], "https://id.example.com", "app", scopes, claims), 60.0)

    def holds(self, id: str) -> bool:
        """Every person keeps their credential."""
        return True


def token(**claims: Any) -> str:
    """Return the credential of a person."""
    return json.dumps({"sub": "17-eve", **claims}).encode().hex()


async def name_for(settings: Json, reader_scope: str = "", **claims: Any) -> Json:
    """Return what a reader learns about the publisher with these claims."""
    server = Server(
        "rooms", serve="hub", auth=People(), authorize_channel=lambda *_: True, settings=Settings(**settings)
    )
    async with run_guarded(server) as world:
        await publish(world, token(**claims))
        reader = token(sub="reader", scope=reader_scope)
        [event] = fields(await read(world, reader, "/events?channel=room&history=5"))
        return dict(json.loads(event["user"]))


async def test_operator_chooses_the_claim_for_display_names() -> None:
    claims = {"name": "Bob", "employee": "Eve of Sales", "preferred_username": "eve"}
    assert await name_for({}, **claims) == {"name": "Bob"}
    assert await name_for({"display_name_claims": ("employee",)}, **claims) == {"name": "Eve of Sales"}
    assert await name_for({"display_name_claims": ("missing", "preferred_username")}, **claims) == {"name": "eve"}


async def test_email_addresses_are_not_used_as_display_names() -> None:
    claims = {"name": "eve@example.com", "email": "eve@example.com", "preferred_username": "eve@corp.example.com"}
    assert await name_for({}, **claims) == {}
    whole = {"subject": "17-eve", "issuer": "https://id.example.com", "email": "eve@example.com"}
    assert await name_for({}, "millstream:identities", **claims) == whole
    for unverified in (False, "false", None):
        found = await name_for({}, "millstream:identities", **claims, email_verified=unverified)
        assert "email" not in found
    assert await name_for({}, "millstream:identities", **claims, email_verified="true") == whole
    assert await name_for({}, name="eve\uff20example.com") == {}


async def test_addresses_that_resemble_another_persons_are_omitted() -> None:
    for address in ("b\u24de\u24d1@example.com", "bo\u034fb@example.com", " bob@example.com"):
        assert "email" not in await name_for({}, "millstream:identities", email=address)


async def test_display_names_cannot_contain_line_breaks_or_invisible_characters() -> None:
    assert await name_for({}, name="Eve\r\ndata: x\u202e\u200b  B\x00") == {"name": "Eve data: x B"}
    for unseen in "\u3164\u2800\uffa0\u115f\u034f\ufe0f\u17b4\u00ad\U000e0100\U000e0041":
        assert await name_for({}, name=f"{unseen}Bob{unseen}") == {"name": "Bob"}, ascii(unseen)
    assert await name_for({}, name="\uff22ob") == {"name": "Bob"}
    assert await name_for({}, name="Bo\u0301b" + "\u0301" * 60) == {"name": "B\u00f3b\u0301\u0301"}
    assert await name_for({}, name="\u0928\u093f\u0930\u094d\u092e\u0932\u093e") == {
        "name": "\u0928\u093f\u0930\u094d\u092e\u0932\u093e"
    }
    assert await name_for({}, name=["bob"], preferred_username="eve") == {"name": "eve"}
    assert len((await name_for({}, name="e" * 5000))["name"]) == 80


async def test_words_in_names_use_a_single_script() -> None:
    for mixed in ("\u0412ob", "Bo\u044c", "Ada B\u03bfb", "A\u0501a", "\u13aada", "Bob-\u0410da"):
        assert await name_for({}, name=mixed, preferred_username="eve") == {"name": "eve"}, ascii(mixed)
    names = (
        "\u0418\u0432\u0430\u043d",
        "Ivan \u0418\u0432\u0430\u043d",
        "\u5c71\u7530Ada",
        "\u30bf\u30ed\u5c71",
        "Zo\u00eb O'Neil-3",
    )
    for name in names:
        assert await name_for({}, name=name) == {"name": name}


async def test_subjects_are_rejected_as_display_names() -> None:
    server = make_rooms(display_name_claims=("sub",))
    with pytest.raises(ValueError, match="display_name_claims"):
        async with run_guarded(server):
            pass


async def test_event_polls_and_tools_identify_the_publisher() -> None:
    shop = make_shop(webhooks=False, recent_events_tool=True)
    async with run_shop(shop) as world:
        start = (await world.client(BOB).request("events/poll", name="order.paid"))["cursor"]
        ada = Principal("ada", client="ada")
        await world.shop.hub.publish("order.paid", {"order": "1", "customer": "bob"}, publisher=ada)
        await world.events.publish(OrderPaid("2"), publisher=ada)
        await world.events.publish(OrderPaid("3"))
        for key in (ADA, BOB):
            page = await world.client(key).request("events/poll", name="order.paid", cursor=start)
            assert [each.get("_meta") for each in page["events"]] == [
                {"millstream.hub/user": {"name": "ada"}},
                {"millstream.hub/user": {"name": "ada"}},
                None,
            ]


async def test_event_streams_and_webhooks_identify_the_publisher(tmp_path: Path) -> None:
    async with run_receiver(tmp_path) as receiver:
        shop = make_shop(private_callbacks=True, tls=receiver.tls)
        async with asyncio.timeout(WAIT), run_shop(shop) as world:
            client = world.client(BOB)
            await client.subscribe(receiver.url(), receiver.secret())
            async with client.stream(name="order.paid") as messages:
                await anext(messages)
                await world.events.publish(OrderPaid("1"), publisher=Principal("ada", client="ada"))
                message = await anext(messages)
                while "data" not in message["params"]:
                    message = await anext(messages)
            assert message["params"]["_meta"]["millstream.hub/user"] == {"name": "ada"}
            [delivered] = await receiver.wait_for_messages(1)
            assert delivered.data["_meta"] == {"millstream.hub/user": {"name": "ada"}}
