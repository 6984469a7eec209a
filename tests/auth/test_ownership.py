import asyncio
import json
from typing import Any

from auth_world import ALICE, BOB, STREAM, GuardedServer, run_guarded
from cases import for_each
from fleet import until
from millstream import Principal
from millstream.hub import Member
from patience import WAIT
from wire import Reply, request

PING = request("ping", id=5)
BOTH = "text/event-stream, application/json"


def same(stolen: Reply, unknown: Reply) -> None:
    """Check that two replies are indistinguishable."""
    assert (stolen.status, stolen.body) == (unknown.status, unknown.body)
    assert stolen.headers.keys() == unknown.headers.keys()


@for_each("method", ["POST", "GET", "DELETE"])
async def test_sessions_are_bound_to_their_owner_on_every_method(method: str) -> None:
    """modelcontextprotocol.io/docs/tutorials/security/security_best_practices: sessions are bound to users."""
    async with run_guarded() as world:
        session = await world.initialize(ALICE)
        body = json.dumps(PING).encode() if method == "POST" else b""
        for _ in range(2):
            assert (await world.post(ALICE, PING, mcp_session_id=session)).status == 200  # caches the session
            headers = {"content_type": "application/json", "accept": BOTH}
            stolen = await world.ask(BOB, method, "/mcp", body, mcp_session_id=session, **headers)
            unknown = await world.ask(BOB, method, "/mcp", body, mcp_session_id="Q" * len(session), **headers)
            assert stolen.status == 404
            same(stolen, unknown)


async def test_fast_path_checks_the_session_owner() -> None:
    call = request("tools/call", {"name": "who", "arguments": {}})
    async with run_guarded() as world:
        session = await world.initialize(ALICE)
        for key, status in ((ALICE, 200), (BOB, 404), (ALICE, 200), (BOB, 404)):
            reply = await world.post(key, call, mcp_session_id=session, mcp_protocol_version="2025-11-25")
            assert reply.status == status


async def test_streams_are_resumed_only_by_their_owner() -> None:
    async with run_guarded() as world:
        session = await world.initialize(ALICE)
        params = {"name": "counts", "arguments": {}, "_meta": {"progressToken": 1}}
        reply = await world.post(ALICE, request("tools/call", params), mcp_session_id=session)
        ids = [line[4:].decode() for line in reply.body.split(b"\n") if line.startswith(b"id: ")]
        assert ids
        for key, wanted in ((BOB, 404), (ALICE, 200)):
            peer = await world.send(key, "GET", "/mcp", **STREAM, mcp_session_id=session, last_event_id=ids[0])
            assert (await peer.head())[0] == wanted
        own = await world.initialize(BOB)
        peer = await world.send(BOB, "GET", "/mcp", **STREAM, mcp_session_id=own, last_event_id=ids[0])
        stolen = Reply(*await peer.reply())
        made_up = ids[0][::-1]
        peer = await world.send(BOB, "GET", "/mcp", **STREAM, mcp_session_id=own, last_event_id=made_up)
        same(stolen, Reply(*await peer.reply()))


async def test_messages_to_foreign_sse_sessions_get_404() -> None:
    async with run_guarded() as world:
        stream = await world.send(ALICE, "GET", "/sse", **STREAM)
        await stream.head()
        path = (await stream.chunk()).split(b"data: ")[1].strip().decode()
        body = json.dumps(PING).encode()
        stolen = await world.ask(BOB, "POST", path, body, content_type="application/json")
        unknown = await world.ask(BOB, "POST", path[:-4] + "0000", body, content_type="application/json")
        assert stolen.status == 404
        same(stolen, unknown)
        assert (await world.ask(ALICE, "POST", path, body, content_type="application/json")).status == 202


async def first_of(peer: Any, text: bytes) -> bytes:
    """Return the first chunk that contains a text."""
    while text not in (chunk := await peer.chunk()):
        assert chunk
    return bytes(chunk)


async def streamed(world: GuardedServer, key: str, client_id: str) -> None:
    """Make a call whose progress and result also go to a client's stream."""
    body = b'{"stream":true}'
    reply = await world.ask(key, "POST", "/tools/counts", body, content_type="application/json", x_client_id=client_id)
    assert reply.status == 200


async def test_mailboxes_are_separate_for_each_caller() -> None:
    async with run_guarded() as world:
        await streamed(world, ALICE, "desk")  # waits in the mailbox
        thief = await world.send(BOB, "GET", "/mcp/sse/desk", **STREAM)
        assert (await thief.head())[0] == 200
        owner = await world.send(ALICE, "GET", "/mcp/sse/desk", **STREAM)
        assert (await owner.head())[0] == 200
        assert b'"result"' in await first_of(owner, b'"result"')
        await streamed(world, ALICE, "desk")  # goes to the open stream
        await first_of(owner, b'"result"')
        await streamed(world, BOB, "desk")
        heard = await first_of(thief, b'"result"')
        assert heard.count(b'"result"') == 1
        alice = Principal("alice", client="alice")
        await world.server.hub.send("desk", "for alice", principal=alice)
        await world.server.hub.send("desk", "for nobody")
        assert b"for alice" in await first_of(owner, b"for ")


async def test_mailboxes_are_not_reachable_by_internal_name() -> None:
    inner = f"{Principal('alice', client='alice').binding.hex()}/desk"
    async with run_guarded() as world:
        paths = [f"/mcp/sse/{inner}", f"/mcp/sse/{inner.replace('/', '%2F')}"]
        paths += [f"/events?channel=$client.{inner}", "/events?channel=$client.*", "/events?channel=$client.>"]
        for path in paths:
            reply = await world.ask(BOB, "GET", path, **STREAM)
            assert reply.status in (400, 403, 404), path


async def test_clients_cannot_impersonate_other_users_in_presence() -> None:
    async with run_guarded() as world:
        path = "/events?channel=room&client_id=desk&name=Me"
        peers = [await world.send(key, "GET", path, **STREAM) for key in (ALICE, BOB)]
        for peer in peers:
            assert (await peer.head())[0] == 200
        members, left = list[Member](), list[Member]()
        async with asyncio.timeout(WAIT):
            while len(members) < 2:  # an arrival is published after the stream begins
                members = await world.server.hub.presence("room")
                await asyncio.sleep(0)
        assert [each.client_id for each in members] == ["desk", "desk"]
        assert len({each.owner for each in members}) == 2
        peers[0].close()
        async with asyncio.timeout(WAIT):
            while len(left) != 1:
                left = await world.server.hub.presence("room")
                await asyncio.sleep(0)
        assert left[0].owner == Principal("bob", client="bob").binding.hex()


async def test_questions_are_answered_only_by_their_session() -> None:
    async with run_guarded() as world:
        session, other = await world.initialize(ALICE), await world.initialize(BOB)
        call = json.dumps(request("tools/call", {"name": "asks", "arguments": {}})).encode()
        headers = {"content_type": "application/json", "accept": BOTH}
        peer = await world.send(ALICE, "POST", "/mcp", call, mcp_session_id=session, **headers)
        assert (await peer.head())[0] == 200
        question = json.loads((await first_of(peer, b"elicitation/create")).split(b"data: ")[1])
        answer = {"jsonrpc": "2.0", "id": question["id"], "result": {"action": "accept", "content": {"n": 6}}}
        assert (await world.post(BOB, answer, mcp_session_id=session)).status == 404
        assert (await world.post(BOB, answer, mcp_session_id=other)).status == 202  # like an answer that is too late
        assert len(world.runtime.services.questions) == 1
        assert (await world.post(ALICE, answer, mcp_session_id=session)).status == 202
        assert b"asked" in await first_of(peer, b'"result"')


async def test_request_state_is_bound_to_its_caller() -> None:
    """MCP 2026-07-28, basic/patterns/mrtr: `requestState` is bound to the principal."""
    async with run_guarded() as world:
        asked = (await world.call(ALICE, "asks")).message["result"]
        assert asked["resultType"] == "input_required"
        (question,) = asked["inputRequests"]
        more = {
            "inputResponses": {question: {"action": "accept", "content": {"n": 1}}},
            "requestState": asked["requestState"],
        }
        stolen = await world.call(BOB, "asks", **more)
        unknown = await world.call(BOB, "asks", **{**more, "requestState": "Q" * len(asked["requestState"])})
        same(stolen, unknown)
        assert "error" in stolen.message
        assert (await world.call(ALICE, "asks", **more)).message["result"]["content"][0]["text"] == "asked"


async def test_calls_are_canceled_only_by_their_session() -> None:
    async with run_guarded() as world:
        session, other = await world.initialize(ALICE), await world.initialize(BOB)
        call = json.dumps(request("tools/call", {"name": "asks", "arguments": {}}, "same")).encode()
        headers = {"content_type": "application/json", "accept": BOTH}
        peer = await world.send(ALICE, "POST", "/mcp", call, mcp_session_id=session, **headers)
        await peer.head()
        await first_of(peer, b"elicitation/create")
        cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "same"}}
        for of, status in ((session, 404), (other, 202)):
            assert (await world.post(BOB, cancel, mcp_session_id=of)).status == status
            assert len(world.runtime.dispatcher.calls) == 1
        assert (await world.post(ALICE, cancel, mcp_session_id=session)).status == 202
        await until(lambda: not world.runtime.dispatcher.calls)


def test_one_users_clients_share_quotas_but_not_sessions() -> None:
    desk, phone = (
        Principal("ada", "https://issuer.example", "desk"),
        Principal("ada", "https://issuer.example", "phone"),
    )
    assert desk.id == phone.id
    assert desk.binding != phone.binding
    assert Principal("a", "bc").binding != Principal("ab", "c").binding != Principal("abc").binding


def test_client_and_user_with_the_same_name_are_different_principals() -> None:
    """RFC 9068 §5: the subject of a machine's token is its client id."""
    issuer = "https://issuer.example"
    machine, person = Principal("ada", issuer, "ada"), Principal("ada", issuer, "claude")
    assert machine.id != person.id
    assert person.id == Principal("ada", issuer, "cursor").id
