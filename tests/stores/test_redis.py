import asyncio
import itertools
import re
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cases import for_each
from hub_parts import Clients
from millstream._protocol.errors import LocalError
from millstream._stores import open_store
from millstream._stores.base import (
    EntryRepeated,
    Gap,
    Index,
    OwnerQuotaExceeded,
    Position,
    StoreFull,
    StoreUnavailable,
)
from millstream._stores.health import StoreHealth
from millstream._stores.redis import keys
from millstream._stores.redis.address import parse_address
from millstream._stores.store import Store
from patience import WAIT, Clock
from processes import ROOT, free_port
from redis_monitor import Monitor
from redis_parts import RedisServer, RedisStore, open_worker, until, warm_up
from store_parts import TTL, MessageRecorder, append, data_of, read_all

pytestmark = pytest.mark.server
STREAM = "hub:journal"


@for_each(
    ("url", "said"),
    [
        ("redis://:hunter2@", "has no host"),
        ("redis://:hunter2@host:port", "is invalid"),
        ("redis://:a?hunter2=b@host", "is invalid"),
        ("redis://:hunter2@host/one", "database number"),
        ("redis://:hunter2@host/0?color=hunter2", "Unknown option"),
        ("redis://:hunter2@host/0?prefix={hunter2}", "prefix"),
        ("redis+sentinel://:hunter2@host:26379", "Sentinel service name"),
        ("redis+cluster://:hunter2@host:7000/3", "only database 0"),
        ("rediss://:hunter2@host?ca=/nowhere/hunter2", "certificates"),
        ("redis://:hunter2@host?wait=hunter2", "wait must be a number"),
        ("http://:hunter2@host", "Unknown store"),
    ],
)
def test_errors_for_invalid_redis_urls_hide_the_password(url: str, said: str) -> None:
    with pytest.raises(LocalError, match=said) as refused:
        open_store(url)
    assert "hunter2" not in str(refused.value)


async def test_unreachable_redis_fails_after_a_bounded_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._stores.redis.client.START_SECONDS", 0.2)
    with pytest.raises(LocalError, match="can't be reached"):
        async with open_worker("redis://127.0.0.1:1"):
            pass


async def test_redis_that_starts_later_is_awaited() -> None:
    server = RedisServer()
    server.stop()
    try:
        store = RedisStore(parse_address(server.url))
        opening = asyncio.create_task(store.open())
        await asyncio.wait([opening], timeout=0.1)
        assert not opening.done()
        server.start()
        await opening
        await append(store, STREAM, b"taken")
        await store.close()
    finally:
        server.close()


async def test_wrong_redis_password_is_reported_without_showing_it(server: RedisServer) -> None:
    server.ask("CONFIG", "SET", "requirepass", "right")
    for url in (f"redis://:hunter2@127.0.0.1:{server.port}", server.url):
        with pytest.raises(LocalError, match="user or password") as refused:
            async with open_worker(url):
                pass
        assert "hunter2" not in str(refused.value)
    async with open_worker(f"redis://:right@127.0.0.1:{server.port}/0") as store:
        await store.kv.put("key", b"", TTL)


async def test_changed_redis_password_is_an_outage_until_fixed(
    server: RedisServer,
) -> None:
    server.ask("ACL", "SETUSER", "millstream", "on", ">secret", *documented_permissions())
    async with open_worker(f"redis://millstream:secret@127.0.0.1:{server.port}") as store:
        await warm_up(store)
        (first,) = await append(store, STREAM, b"before")
        server.ask("ACL", "SETUSER", "millstream", "resetpass", ">another")
        server.ask("CLIENT", "KILL", "USER", "millstream")
        for ask in (
            lambda: append(store, STREAM, b"refused"),
            lambda: store.log.read(STREAM, None),
            lambda: store.kv.put("session:a", b"", TTL),
            lambda: store.kv.keys(""),
            lambda: Clients(store).join("chat", "ann"),
        ):
            with pytest.raises(StoreUnavailable) as refused:
                await ask()
            assert "user or password" in str(refused.value)
            assert "secret" not in str(refused.value)
        server.ask("ACL", "SETUSER", "millstream", ">secret")
        (second,) = await append(store, STREAM, b"after")
        assert second == Position(first.epoch, first.offset + 1)


async def test_released_values_free_their_share(server: RedisServer) -> None:
    async with open_worker(server.url) as store:
        store.backend.kv._room = 4_000
        order, sizes = "millstream:{~ada}:o:session.~ada", "millstream:{~ada}:s:session.~ada"
        await store.kv.put("session:~ada.1", bytes(1_500), 0.1)

        async def taken() -> bool:
            with suppress(OwnerQuotaExceeded):
                await store.kv.put("session:~ada.2", bytes(1_500), TTL)
                return True
            return False

        await until(taken)
        assert server.ask("ZRANGE", order, "0", "-1") == [b"millstream:{~ada}:k:session:~ada.2"]
        assert server.ask("HGET", sizes, "") == b"%d" % (1_500 + len("millstream:{~ada}:k:session:~ada.2") + 200)
        await store.kv.delete("session:~ada.2")
        assert server.ask("HGET", sizes, "") == b"0"
        assert server.ask("EXISTS", order) == 0
        assert 0 < int(server.ask("PTTL", sizes)) <= (TTL + 60) * 1_000


async def test_unencodable_position_is_reported_as_a_gap_and_does_not_affect_other_reads(server: RedisServer) -> None:
    async with open_worker(server.url) as store:
        (position,) = await append(store, STREAM, b"taken")
        found = await asyncio.gather(
            store.log.read(STREAM, Position("\ud800", position.offset)),
            store.log.read(STREAM, None),
            return_exceptions=True,
        )
        assert isinstance(found[0], Gap)
        assert found[0].oldest == found[0].newest == position
        assert data_of(found[1]) == [b"taken"]


async def test_redis_with_eviction_is_rejected(server: RedisServer) -> None:
    server.ask("CONFIG", "SET", "maxmemory", "100mb")
    server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with pytest.raises(LocalError, match="noeviction"):
        async with open_worker(server.url):
            pass


async def test_redis_eviction_at_run_time_degrades_the_store(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("millstream._stores.redis.client.LOOK", 0.01)
    server.ask("CONFIG", "SET", "maxmemory", "100mb")
    async with open_worker(server.url) as store:
        await warm_up(store)
        health = StoreHealth("redis", store, bound=WAIT, clock=itertools.count().__next__)
        assert await health.look()
        server.ask("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
        await until(store.degraded_reason)
        assert not await health.look()
        await append(store, STREAM, b"taken")
        server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        await until(lambda: trusts(store))
        assert await health.look()
    said = [record.getMessage() for record in caplog.records if "evict" in record.getMessage()]
    assert len(said) == 2
    assert "maxmemory-policy volatile-lru" in said[0]


async def trusts(store: Store) -> bool:
    """Return whether the store isn't degraded."""
    return not await store.degraded_reason()


async def test_redis_replicas_are_rejected(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._stores.redis.client.START_SECONDS", 0.2)
    server.ask("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(LocalError, match="read-only replica") as refused:
        async with open_worker(server.url):
            pass
    assert ".." not in str(refused.value)


async def test_read_only_redis_is_reported_and_recovers(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_worker(server.url) as store:
        for forbid, allow in (
            (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
            (("CONFIG", "SET", "min-replicas-to-write", "1"), ("CONFIG", "SET", "min-replicas-to-write", "0")),
        ):
            monkeypatch.setattr("millstream._stores.redis.client.PATIENCE", 0.5)
            server.ask(*forbid)
            with pytest.raises(StoreUnavailable):
                await append(store, STREAM, b"refused")
            monkeypatch.setattr("millstream._stores.redis.client.PATIENCE", WAIT)
            server.ask(*allow)
            await append(store, STREAM, b"after")
        assert data_of(await read_all(store, STREAM)) == [b"after", b"after"]


async def test_old_redis_versions_are_rejected() -> None:

    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = b"# Server\r\nredis_version:6.2.14\r\n"
        while command := await reader.read(65536):
            writer.write(b"$%d\r\n%b\r\n" % (len(info), info) if b"INFO" in command else b"+OK\r\n")
        writer.close()

    listener = await asyncio.start_server(old, "127.0.0.1", 0)
    async with listener:
        with pytest.raises(LocalError, match=r"6\.2\.14.*Use Redis 7\.0"):
            async with open_worker(f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}"):
                pass


async def test_full_redis_rejects_writes_and_recovers(server: RedisServer) -> None:
    async with open_worker(server.url) as store:
        (first,) = await append(store, STREAM, b"before")
        await store.kv.put("session:one", b"old", TTL)
        server.ask("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreFull, match="maxmemory"):
            await append(store, STREAM, b"refused")
        with pytest.raises(StoreFull):
            await store.kv.put("session:one", b"new", TTL)
        server.ask("CONFIG", "SET", "maxmemory", "0")
        assert await store.kv.get("session:one") == b"old"
        (second,) = await append(store, STREAM, b"after")
        assert second.offset == first.offset + 1


def documented_permissions() -> list[str]:
    """Return the documented permissions of a Redis user, without name and password."""
    page = (ROOT / "docs/guides/stores.md").read_text("utf-8")
    return page.partition("ACL SETUSER millstream on >PASSWORD ")[2].partition("```")[0].split()


async def test_documented_redis_permissions_are_sufficient(server: RedisServer) -> None:
    server.ask("ACL", "SETUSER", "millstream", "on", ">secret", *documented_permissions())
    async with open_worker(f"redis://millstream:secret@127.0.0.1:{server.port}") as store:
        await warm_up(store)
        heard = MessageRecorder()
        store.log.listen("hub:late", heard)
        await store.log.wait_until_listening("hub:late")
        entry = (await append(store, "hub:late", b"x"))[0]
        await heard.until((await store.log.newest("hub:late", 1))[0])
        assert await store.log.read("hub:late", entry) == []
        await store.log.touch("hub:late", TTL)
        await store.log.append(STREAM, b"", ttl=TTL, max_entries=5, index=Index("hub:channel:x", TTL, 5), seal=True)
        store.log.listen("call:a:b", heard)()
        for lossy in (False, True):
            await store.kv.put("seen:x", b"1", TTL, lossy=lossy)
        assert await store.kv.compare_and_set("seen:x", b"1", None, TTL)
        assert await store.kv.keys("seen:") == []
        assert await store.bus.send(store.workers.me, "t", b"")
        clock = Clock()
        clients = Clients(store, clock)
        await clients.join("late", "late")
        clock.now += 3600
        await clients.presence.refresh()
        await clients.leave("late", "late")
        assert await clients.on("late") == []
        assert not await store.workers.alive("0" * 12)
        await store.log.trim("hub:late")
    refused = server.ask("ACL", "LOG")
    assert refused == []


def test_script_commands_are_documented_and_checked() -> None:
    folder = Path(keys.__file__).parent / "lua"
    pattern = re.compile(r"redis\.p?call\('([A-Z]+)'")
    used = {name for file in folder.glob("*.lua") for name in pattern.findall(file.read_text("utf-8"))}
    table = (folder / "may.lua").read_text("utf-8").partition("needed = {")[2].partition("\n}")[0]
    checked = set(re.findall(r"\{'([A-Z]+)'", table))
    assert used <= checked
    assert {f"+{name.lower()}" for name in checked} <= set(documented_permissions())


async def test_forbidden_redis_commands_are_reported_at_startup(server: RedisServer) -> None:
    for name in ("xadd", "evalsha", "info"):
        server.ask("ACL", "SETUSER", "millstream", "on", ">secret", "~millstream:*", "+@all", f"-{name}")
        with pytest.raises(LocalError, match=f"(?i){name}.*ACL SETUSER"):
            async with open_worker(f"redis://millstream:secret@127.0.0.1:{server.port}"):
                pass


async def test_missing_databases_and_server_modes_are_reported(server: RedisServer) -> None:
    for url, said in (
        (f"{server.url}/99", "rejected the connection"),
        (f"redis+cluster://127.0.0.1:{server.port}", "cluster support"),
    ):
        with pytest.raises(LocalError, match=said):
            async with open_worker(url):
                pass


async def test_publishing_and_logging_need_one_redis_command_each(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream._stores.redis.store.RENEW", 600.0)
    async with open_worker(server.url, lease=600.0) as store:
        await warm_up(store)
        index = Index("hub:channel:x", TTL, 10)
        steps: list[Callable[[], Awaitable[object]]] = [
            lambda: store.log.append(STREAM, b"event", ttl=TTL, max_entries=100, index=index),
            lambda: store.log.append("call:session:1", b"message", ttl=TTL, max_entries=100),
        ]
        for step in steps:
            with closing(Monitor(server)) as monitor:
                await step()
                await store.kv.get("session:last")
                sent = monitor.until("session:last")
            assert len([line for line in sent if "EVAL" in line and keys.script("read").digest not in line]) == 1
        clients = [line for line in server.ask("CLIENT", "LIST").decode().splitlines() if "name=millstream" in line]
        assert len(clients) == 2


async def test_large_entries_leave_a_stream_before_it_fills_redis(server: RedisServer) -> None:
    async with open_worker(server.url) as store:
        room = 2_000_000
        store.backend.log._room = room // 8
        await append(store, STREAM, *[b"small"] * 50)
        positions = await append(store, STREAM, *[bytes(100_000)] * 60)
        kept = await read_all(store, STREAM)
        assert room // 4 < sum(len(entry.data) for entry in kept) < room
        assert kept[-1].position == positions[-1]
        with pytest.raises(Gap):
            await store.log.read(STREAM, positions[0])


async def test_large_streams_drop_only_their_owners_entries(server: RedisServer) -> None:
    async with open_worker(server.url) as store:
        room = 2_000_000
        store.backend.log._room = room // 8
        await append(store, "call:~bob.1:a", b"first", b"second")
        await append(store, "inbox:worker", *[bytes(100_000)] * 60)
        for number in range(60):
            name = f"call:~alice.{number}:a"
            await append(store, name, bytes(100_000))
            assert len(await read_all(store, name)) == 1
        kept = [len(await read_all(store, f"call:~alice.{number}:a")) for number in range(60)]
        assert kept == [0] * (60 - sum(kept)) + [1] * sum(kept)
        assert 4 < sum(kept) <= room // 2 // 100_000
        assert data_of(await read_all(store, "call:~bob.1:a")) == [b"first", b"second"]
        assert len(await read_all(store, "inbox:worker")) == 60


@for_each(("size", "streams"), [(100, 1_000), (100_000, 50)])
async def test_memory_for_one_owners_streams_matches_the_counted_size(
    server: RedisServer, size: int, streams: int
) -> None:
    def used() -> int:
        found = re.search(rb"used_memory:(\d+)", server.ask("INFO", "memory"))
        assert found is not None
        return int(found[1])

    server.ask("FLUSHALL")
    async with open_worker(server.url, lease=600.0) as store:
        await warm_up(store)
        store.backend.log._room = 4_000_000 // 8
        await append(store, "call:~bob.1:a", bytes(size))
        before = used()
        for number in range(streams):  # more than fit
            await append(store, f"call:~alice.{number}:a", bytes(size))
        counted = int(server.ask("HGET", "millstream:{j0}:s:log.call", ""))
        assert 1_800_000 < counted < 2_200_000
        assert used() - before == pytest.approx(counted, rel=0.25)


async def test_concurrent_appends_to_a_stream_share_a_script(server: RedisServer) -> None:
    async with open_worker(server.url, lease=600.0) as store:
        await warm_up(store)
        index = Index("hub:channel:x", TTL, 1000)
        with closing(Monitor(server)) as monitor:
            positions = await asyncio.gather(
                *(store.log.append(STREAM, b"%d" % n, ttl=TTL, max_entries=1000, index=index) for n in range(100))
            )
            large = b"x" * 400_000
            await asyncio.gather(*(append(store, STREAM, large) for _ in range(5)))
            await store.kv.get("session:last")
            sent = monitor.until("session:last")
        digest = keys.script("append").digest
        assert len([line for line in sent if digest in line and STREAM in line]) == 2 + 3
        assert [at.offset for at in positions] == list(range(positions[0].offset, positions[0].offset + 100))
        assert data_of(await read_all(store, STREAM))[1:101] == [b"%d" % n for n in range(100)]
        assert [entry.position for entry in await read_all(store, "hub:channel:x")] == positions


async def test_canceled_and_rejected_appends_do_not_affect_their_batch(server: RedisServer) -> None:
    async with open_worker(server.url, lease=600.0) as store:
        await warm_up(store)

        async def add(number: int, once: str) -> int:
            return (await store.log.append(STREAM, b"%d" % number, ttl=TTL, max_entries=1000, once=once)).offset

        tasks = [asyncio.create_task(add(number, f"id {number % 15}")) for number in range(20)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [
            asyncio.CancelledError if number == 3 else int if number < 15 else EntryRepeated for number in range(20)
        ]
        entries = {int(entry.data): entry.position.offset for entry in (await read_all(store, STREAM))[1:]}
        assert {number: results[number] for number in range(15) if number != 3}.items() <= entries.items()
        assert entries.keys() <= set(range(15))


async def test_unsendable_key_does_not_affect_the_rest_of_its_batch(server: RedisServer) -> None:
    async with open_worker(server.url, lease=600.0) as store:
        keys = ("one:a", "one:\udcff", "one:b")
        results = await asyncio.gather(*(store.kv.put(key, b"1", TTL) for key in keys), return_exceptions=True)
        assert [type(result) for result in results] == [type(None), UnicodeEncodeError, type(None)]
        assert await store.kv.get("one:b") == b"1"


async def test_concurrent_appends_are_pipelined(server: RedisServer) -> None:
    async with open_worker(server.url, lease=600.0) as store:
        await warm_up(store)
        before = int(info(server, "total_reads_processed"))
        await asyncio.gather(*(append(store, STREAM, b"%d" % n) for n in range(256)))
        assert int(info(server, "total_reads_processed")) - before < 64
        assert len(await read_all(store, STREAM)) == 257


def info(server: RedisServer, name: str) -> str:
    """Return one field of INFO."""
    text = server.ask("INFO", "everything").decode()
    return str(text.partition(f"{name}:")[2].partition("\r")[0])


def certificate(folder: Path) -> tuple[Path, Path]:
    """Create a self-signed certificate for localhost, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    files[1].write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    return files


async def test_redis_tls_requires_a_valid_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = certificate(tmp_path)
    port = free_port()
    options = ["--tls-port", str(port), "--tls-cert-file", str(cert), "--tls-key-file", str(key)]
    server = RedisServer(*options, "--tls-ca-cert-file", str(cert))
    try:
        async with open_worker(f"rediss://localhost:{port}?ca={cert}&cert={cert}&key={key}") as store:
            positions = await append(store, STREAM, b"event")
            assert (await store.log.newest(STREAM, 1))[0].position == positions[0]
        for url, why, seconds in (
            (f"rediss://localhost:{port}", "isn't trusted: self-signed certificate.*set ca= to the file", WAIT),
            (f"rediss://127.0.0.1:{port}?ca={cert}", "isn't trusted: IP address mismatch.*use the host name", WAIT),
            (
                f"rediss://localhost:{port}?ca={cert}",
                "can't be reached.*certificate from its clients, add cert= and key=",
                0.5,
            ),
            (f"redis://localhost:{port}", "requires TLS, start the URL with rediss", 2.0),
        ):
            monkeypatch.setattr("millstream._stores.redis.client.START_SECONDS", seconds)
            with pytest.raises(LocalError, match=why):
                async with open_worker(url):
                    pass
    finally:
        server.close()


def test_values_are_stored_where_older_workers_look() -> None:
    for key in ("session:ada.1", "session:~ada.1"):
        share = key.partition(":")[2].partition(".")[0]
        assert keys.RedisKeys("ms:").value(key) == f"ms:{{{share}}}:k:{key}"
