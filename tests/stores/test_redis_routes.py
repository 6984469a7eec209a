"""The ways to the servers of a Cluster, and to the primary that Sentinel names, while something is wrong with them."""

import asyncio

import pytest

from millstream._protocol.errors import LocalError
from millstream._stores.base import StoreUnavailable
from millstream._stores.redis.address import parse_address
from millstream._stores.redis.keys import slot_of
from millstream._stores.redis.link import Link
from millstream._stores.redis.routes import COMMANDS, routes_to
from millstream._stores.redis.store import RedisStore
from redis_parts import Cluster, RedisServer, opened, until
from store_parts import Heard, append

pytestmark = pytest.mark.server
STREAM = "hub:journal"


async def test_a_worker_hears_again_after_no_node_of_a_cluster_could_be_used() -> None:
    """Fixed defect: a password that was wrong for a while ended the task that reads, and the worker stayed deaf."""
    servers = Cluster()
    try:
        for node in servers.nodes:
            node.ask("ACL", "SETUSER", "millstream", "on", ">secret", "~*", "&*", "+@all")
        async with opened(servers.url.replace("://", "://millstream:secret@")) as store:
            heard = Heard()
            store.log.listen(STREAM, heard)
            await store.log.listening(STREAM)
            reading, before = store._tasks[0], store._reader._link
            turns = _count_renewals(store, reading)
            for node in servers.nodes:
                node.ask("ACL", "SETUSER", "millstream", "resetpass", ">another")
                node.ask("CLIENT", "KILL", "USER", "millstream")
            with pytest.raises(StoreUnavailable, match="user or password"):
                await append(store, STREAM, b"refused")
            await until(lambda: len(turns) > 1 or reading.done())
            assert not reading.done()
            for node in servers.nodes:
                node.ask("ACL", "SETUSER", "millstream", ">secret")
            await until(lambda: store._reader._link is not before)
            await append(store, STREAM, b"heard")
            await until(lambda: [entry.data for entry in heard.items] == [b"heard"])
    finally:
        servers.close()


def _count_renewals(store: RedisStore, task: asyncio.Task[None]) -> list[str]:
    """Why a task has asked for other ways, each time that it has got an answer or an error."""
    found: list[str] = []
    renew = store._routes.renew

    async def counted(why: str) -> int | None:
        try:
            return await renew(why)
        finally:
            if asyncio.current_task() is task:
                found.append(why)

    store._routes.renew = counted  # type: ignore[method-assign]
    return found


async def test_the_doubt_about_a_node_ends_with_its_place_in_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixed defect: a node that evicted and then died left the store degraded for good."""
    monkeypatch.setattr("millstream._stores.redis.commands.LOOK", 0.0)
    server = RedisServer("--maxmemory", "100mb")
    try:
        async with opened(server.url) as store:
            server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
            await until(store.doubt)
            server.stop()
            await until(lambda: not store._commands._links)
            assert not await store.doubt()
    finally:
        server.close()


async def test_a_reader_that_connects_to_the_new_primary_does_not_keep_commands_at_the_old_one() -> None:
    """Fixed defect: whoever connected last said where all were. Commands then went on at a server that was replaced,
    and the others waited for this worker until they told everybody that events may be lost.
    """
    old, new = RedisServer(), RedisServer()
    named, answered = [old], asyncio.Semaphore(0)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%d\r\n" % (len(str(named[0].port)), named[0].port))
        await reader.read()
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        answered.release()

    links: list[Link] = []
    try:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as sentinel:
            port = sentinel.sockets[0].getsockname()[1]
            routes = routes_to(parse_address(f"redis+sentinel://127.0.0.1:{port}/main"))
            links.append(await routes.connect(0, COMMANDS, lambda link: None))
            assert not await routes.moved()
            named[0] = new
            links.append(await routes.connect(0, "reader", lambda link: None))
            assert await routes.moved()
            links.append(await routes.connect(0, COMMANDS, lambda link: None))
            assert not await routes.moved()
            for _ in range(6):
                await answered.acquire()
    finally:
        for link in links:
            link.close()
        old.close()
        new.close()


async def test_an_outage_of_redis_is_one_line_a_worker_and_not_one_a_heartbeat(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fixed defect: whoever looked for what had happened found a line for each try, half of them about a connection
    that was said to be wedged.
    """
    monkeypatch.setattr("millstream._stores.redis.workers.BEAT", 0.01)
    server = RedisServer()
    beats: list[None] = []
    try:
        async with opened(server.url) as store:
            beat = store.workers.beat

            async def counted() -> None:
                beats.append(None)
                await beat()

            monkeypatch.setattr(store.workers, "beat", counted)
            server.stop()
            await until(lambda: not store._commands._links)
            before = len(beats)
            await until(lambda: len(beats) > before + 10)
            assert "wedged" not in caplog.text
            server.start()
            await until(lambda: "renewed again" in caplog.text)
    finally:
        server.close()
    said = [record.getMessage() for record in caplog.records if "lease" in record.getMessage()]
    assert len([line for line in said if "can't be renewed" in line]) == 1
    assert len([line for line in said if "renewed again" in line]) == 1


async def test_a_node_of_a_cluster_whose_url_names_one_server_is_refused_with_what_to_write() -> None:
    """Fixed defect: after five seconds the message was a redirection of the Cluster's own protocol."""
    servers = Cluster()
    try:
        node = servers.nodes[0 if slot_of("j0") >= 5461 else 1]
        with pytest.raises(LocalError, match=r"part of a Cluster\. Begin its URL with redis\+cluster://"):
            async with opened(node.url):
                pass
    finally:
        servers.close()


@pytest.mark.impatient
async def test_a_server_without_tls_is_named_as_one() -> None:
    """Redis says nothing to a client that begins with TLS: one letter too much looked like a server that hangs."""
    server = RedisServer()
    try:
        with pytest.raises(LocalError, match="doesn't answer over TLS"):
            async with opened(server.url.replace("redis:", "rediss:")):
                pass
    finally:
        server.close()
